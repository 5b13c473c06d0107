"""How Locust is started, and how what it hands over is kept."""

from __future__ import annotations

import json
import os
import sys
import threading
from array import array
from typing import Any

import pytest

from launchpad import runfolder
from launchpad.layout import Layout
from launchpad.loadtest.generator import NICENESS, Ending, _locust, drive
from launchpad.loadtest.latencies import packed
from launchpad.spec import OpenLoop

MANY = 100_000
"""Latencies in a second, which fill more than a pipe has room for by itself."""


@pytest.fixture
def command(tmp_path) -> list[str]:
    """What hands over one second, the last, as a Locust process does."""
    line = {"answered": MANY, "held": 0, "failures": [], "latencies": {"response": packed(array("i", [1500] * MANY))}}
    part = {"worker": 0, "second": 0, "length_s": 1.0, "cpu": 0.5, "last": True, "lines": {"a line": line}}
    (tmp_path / "part.json").write_text(json.dumps(part) + "\n")
    return [sys.executable, "-c", "print('ready'); print(open('part.json').read(), end='')"]


def driven(tmp_path, command: list[str], observe) -> Ending:
    ending, load = Ending(), OpenLoop(loop="open", rate_rps=100, duration_s=5)
    drive(Layout(tmp_path), lambda: "", load, 1, tmp_path, ending, observe, command=command)
    return ending


def test_every_latency_of_a_second_is_kept_by_a_thread_that_gives_way(tmp_path, command):
    seen: list[int] = []

    def observe(_: dict[str, Any]) -> bool:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return True

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    ending = driven(tmp_path, command, observe)

    assert (ending.status, ending.measured_s) == ("completed", 1.0)
    ((_, _, histogram),) = runfolder.read_histograms(tmp_path)
    assert (histogram.get_total_count(), histogram.get_value_at_percentile(99)) == (MANY, 1500)
    assert seen == [NICENESS] and os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_what_goes_wrong_while_a_second_is_kept_ends_the_run_and_is_raised(tmp_path, command):
    def observe(_: dict[str, Any]) -> bool:
        raise OSError("no space left on device")

    goes_on = [*command[:-1], command[-1] + "; import signal; signal.pause()"]
    with pytest.raises(OSError, match="no space left"):
        driven(tmp_path, goes_on, observe)
    assert (tmp_path / runfolder.HISTORY).read_text().count("a line") == 1


def test_workers_on_other_hosts_are_waited_for_and_told_where_the_server_is(tmp_path):
    load = OpenLoop(loop="open", rate_rps=100, duration_s=5)
    command = _locust(Layout(tmp_path), load, 2, "http://server:8501")
    assert {"--master", "--expect-workers=2", "--host=http://server:8501"} <= set(command)
    here = _locust(Layout(tmp_path), load, 2, "")
    assert "--processes=2" in here and not any(word.startswith(("--master", "--host")) for word in here)
