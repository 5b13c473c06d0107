"""How Locust is started."""

from __future__ import annotations

from launchpad.layout import Layout
from launchpad.loadtest.generator import _locust
from launchpad.spec import OpenLoop


def test_workers_on_other_hosts_are_waited_for_and_told_where_the_server_is(tmp_path):
    load = OpenLoop(loop="open", rate_rps=100, duration_s=5)
    command = _locust(Layout(tmp_path), load, 2, "http://server:8501")
    assert {"--master", "--expect-workers=2", "--host=http://server:8501"} <= set(command)
    here = _locust(Layout(tmp_path), load, 2, "")
    assert "--processes=2" in here and not any(word.startswith(("--master", "--host")) for word in here)
