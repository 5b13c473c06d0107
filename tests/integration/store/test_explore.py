"""The store in the browser: Datasette on 127.0.0.1, with the ready-made questions, and nothing that can be changed."""

from __future__ import annotations

import datetime
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
import requests

from launchpad.query.explore import chart_path
from launchpad.query.questions import QUESTIONS
from launchpad.store import Store
from tests.integration.conftest import REPOSITORY, free_ports

SERVE = """
import sys
from pathlib import Path
from launchpad.query.explore import show
show(Path(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.fixture
def page(declared) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The store's page, with a sample in it; gives its address and its process."""
    with Store.open(declared) as store:
        at = datetime.datetime.now(datetime.UTC)
        store.add_samples([{"at": at, "instance": "i", "model": "m", "p99_ms": 12.5, "trouble": ""}])
    (port,) = free_ports(1)
    command = [sys.executable, "-c", SERVE, str(declared.root), str(port)]
    served = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert served.stdout
    said = []
    for line in served.stdout:
        said.append(line)
        if "for reading only" in line:
            break
    assert said and "for reading only" in said[-1], "".join(said)
    yield f"http://127.0.0.1:{port}", served
    served.kill()
    served.wait()


def test_the_page_answers_the_questions_draws_charts_and_changes_nothing(declared, page):
    url, served = page
    front = requests.get(url, timeout=20).text
    for name, question in QUESTIONS.items():
        assert f'href="/store/{name}"' in front
        needs = dict.fromkeys(question.needs, "x")
        answer = requests.get(f"{url}/store/{name}.json", params={"_shape": "array", **needs}, timeout=20)
        assert answer.status_code == 200, answer.text
    assert chart_path("latest").replace("&", "&amp;") in front or chart_path("latest") in front
    assert "datasette_vega" in requests.get(f"{url}/store/latest", timeout=20).text
    (row,) = requests.get(f"{url}/store/latest.json", params={"_shape": "array"}, timeout=20).json()
    assert (row["model"], row["p99_ms"]) == ("m", 12.5)

    for sql in ("delete from samples", "drop table samples", "with x as (select 1) delete from samples"):
        refused = requests.get(f"{url}/store.json", params={"sql": sql}, timeout=20)
        assert "SELECT" in refused.json()["error"] or "readonly" in refused.json()["error"]
    with Store.open(declared) as store:
        assert store.counts()["samples"] == 1

    listens = {c.laddr.ip for c in psutil.Process(served.pid).net_connections() if c.status == psutil.CONN_LISTEN}
    assert listens == {"127.0.0.1"}
    served.send_signal(signal.SIGINT)
    output, _ = served.communicate(timeout=20)
    assert served.returncode == 0 and "Traceback" not in output
