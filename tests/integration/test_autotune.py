"""`invoke autotune` on a real server under a scripted load: it adjusts, nobody notices, and it gives up gracefully."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from launchpad import declaration
from launchpad.publishing import Publisher
from launchpad.runfolder import HISTORY, read_history
from launchpad.server import Server
from launchpad.spec import BatchQueue

pytestmark = pytest.mark.alone

PHASES = ((60, 3), (300, 6), (700, 6), (60, 3))
"""Requests a second and seconds: low, five times that, a spike, low."""
SECONDS = sum(seconds for _, seconds in PHASES)
REQUESTS = sum(rate * seconds for rate, seconds in PHASES)
BUSY_RPS = 400
DECLARED = """\
autotune: # digits-cnn's batching parameters follow the traffic
  policy: threshold
  load_floor_rps: 100
"""
TRIED = """\
autotune:
  {load_floor_rps: 200, p99_ms: 2000, tolerance: 1000, interval_s: 0.5, window_s: 1, min_requests: 50,
   confirmations: 1, cool_down_s: 0.5, changes_per_hour: 1000}
"""
"""Latencies on a machine that tests share say nothing: here only the rate decides whether batches grow."""


@pytest.fixture(scope="module")
def served(shared_checkout):
    """A server that batches nothing yet, and a scripted load for it."""
    times, at = [], 1000.0
    for rate, seconds in PHASES:
        times += [at + number / rate for number in range(rate * seconds)]
        at += seconds
    (shared_checkout.root / "trace.txt").write_text("".join(f"{time_s:.6f}\n" for time_s in times))
    traffic = "traffic: [{model: digits-cnn, signature: bytes}]"
    scripted = f"{{loop: open, rate_rps: 1, arrivals: trace.txt, duration_s: {SECONDS}, {traffic}}}"
    steady = f"{{loop: open, rate_rps: {BUSY_RPS}, arrivals: constant, duration_s: 600, {traffic}}}"
    shared_checkout.edit(
        ("    max_batch_size: 16", "    max_batch_size: 1"),
        ("    max_enqueued_batches: 64", "    max_enqueued_batches: 1024"),
        (DECLARED, TRIED),
        ("    smoke:\n", f"    scripted: {scripted}\n    busy: {steady}\n    smoke:\n"),
    )
    for stage in ("export", "configure", "launch"):
        shared_checkout.invoke(stage, check=True)
    return shared_checkout


@pytest.fixture
def autotune(served) -> Iterator[Callable[..., Autotuner]]:
    """Starts `invoke autotune` with options; what still runs when a test is over is ended."""
    started = []
    yield lambda *options: started.append(Autotuner(served, *options)) or started[-1]
    for autotuner in started:
        autotuner.end()


class Autotuner:
    """`invoke autotune` in the background, and what it has said so far."""

    def __init__(self, served, *options: str) -> None:
        self.path = served.root / "autotune.log"
        with self.path.open("w") as log:
            command = served.command("autotune", *options)
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **served.how())

    def said(self) -> str:
        return self.path.read_text()

    def says(self, text: str, seconds: float = 120) -> str:
        """Wait until it has said something; return all that it said."""
        limit = time.monotonic() + seconds
        while text not in self.said():
            assert self.process.poll() is None and time.monotonic() < limit, self.said()
            time.sleep(0.05)
        return self.said()

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


@pytest.fixture
def busy(served) -> Iterator[None]:
    """A steady load, at its full rate, for as long as the test takes."""
    before = len(served.runs())
    load = served.start("loadtest", "--profile", "busy")
    limit = time.monotonic() + 60
    while not any(answered > 0.95 * BUSY_RPS for run in served.runs()[before:] for answered in by_second(run)):
        assert load.poll() is None and time.monotonic() < limit
        time.sleep(0.1)
    yield
    load.send_signal(signal.SIGINT)
    load.communicate(timeout=60)


def by_second(run: Path) -> list[int]:
    """Return the requests of each second of a run that is under way."""
    return [row["requests"] for row in read_history(run)] if (run / HISTORY).exists() else []


def decisions(served) -> list[dict]:
    with sqlite3.connect(served.root / ".launchpad" / "store.db") as store:
        store.row_factory = sqlite3.Row
        return [dict(row) for row in store.execute("select * from decisions order by id")]


def applied(served) -> list[dict]:
    """Return the changes and returns that were made, their parameters as mappings."""
    made = [row for row in decisions(served) if row["outcome"] == "applied"]
    return [row | {key: json.loads(row[key]) for key in ("setting", "wanted", "seen")} for row in made]


def test_parameters_follow_a_scripted_load_and_every_request_is_answered(served, autotune):
    autotuner = autotune()
    autotuner.says("digits-cnn")
    refused = served.invoke("autotune")
    loaded = served.invoke("loadtest", "--profile", "scripted")
    running = Server.ready(served.layout)

    assert autotuner.end() == 0
    assert "the server stays as it is" in autotuner.said()
    assert Server.ready(served.layout) == running and psutil.pid_exists(running.pid)

    assert refused.returncode == 3
    assert "another autotuner adjusts this checkout's server" in refused.stdout
    assert f"process {autotuner.process.pid}" in refused.stdout

    summary = json.loads((served.runs()[-1] / "summary.json").read_text())
    assert summary["totals"]["requests"] == REQUESTS, loaded.stdout
    assert summary["errors"] == []

    changes = applied(served)
    assert len(changes) >= 2
    assert [row["wanted"]["max_batch_size"] for row in changes[:2]] == [2, 4]
    for row in changes:
        seen = row["seen"]
        assert seen["requests"] / seen["seconds"] >= 200 and "requests/s" in row["reason"]
    held = [row for row in decisions(served) if row["action"] == "hold"]
    assert any("under the floor of 200" in row["reason"] for row in held)

    notes = sorted((served.root / "reports" / "notes").glob("*autotune*.md"))
    assert len(notes) == len(changes)
    assert "max_batch_size" in notes[0].read_text() and changes[0]["reason"] in notes[0].read_text()

    assert len(Publisher(declaration.load(served.root)).versions("digits-cnn")) == 1


def test_metrics_that_stop_coming_are_told_and_nothing_is_changed(served, busy, autotune):
    autotuner = autotune()
    autotuner.says("digits-cnn")
    server = psutil.Process(Server.ready(served.layout).pid)
    known = len([row for row in decisions(served) if row["action"] != "hold"])
    server.suspend()
    try:
        autotuner.says("the metrics do not come (timeout")
        assert autotuner.process.poll() is None
    finally:
        server.resume()
    assert len([row for row in decisions(served) if row["action"] != "hold"]) == known
    assert autotuner.end() == 0


@pytest.fixture
def launched_anew(served) -> None:
    served.invoke("launch", "--force", check=True)


def test_the_simulators_policy_ends_a_wait_that_brings_nothing(served, launched_anew, busy, autotune):
    patient = BatchQueue(max_batch_size=64, batch_timeout_micros=20_000, max_enqueued_batches=16)
    publisher = Publisher(declaration.load(served.root))
    publisher.publish("digits-cnn", batching=patient, replace=True)
    autotuner = autotune("--policy", "model")
    autotuner.says("the simulator expects a p99 of")
    autotuner.says("on trial")
    assert autotuner.end() == 0
    queue = publisher.batching("digits-cnn", publisher.served("digits-cnn"))
    assert queue is None or queue.batch_timeout_micros < 5000


@pytest.fixture
def strict(served) -> Iterator[None]:
    """A p99 that doubles is held against a change."""
    held = ("tolerance: 1000", "tolerance: 0.3, bounds: {batch_timeout_micros: {min: 0, max: 100000}}")
    served.edit(held)
    yield
    served.edit(held[::-1])


def test_a_change_that_makes_it_worse_is_taken_back(served, launched_anew, busy, strict, autotune):
    """At 400 requests/s eight come in 20 ms: batches of twice that, which wait twice as long, double p99."""
    fitting = BatchQueue(max_batch_size=8, batch_timeout_micros=20_000, max_enqueued_batches=128)
    publisher = Publisher(declaration.load(served.root))
    publisher.publish("digits-cnn", batching=fitting, replace=True)
    known = len(applied(served))
    autotuner = autotune()
    autotuner.says("changes to batches of 16, 40000 µs")
    autotuner.says("returns to batches of")  # to larger ones than 8 where the machine stalled before the change
    assert autotuner.end() == 0
    rows = applied(served)[known:]
    number = [row["action"] for row in rows].index("return")
    changed, back = rows[number - 1 : number + 1]
    assert changed["action"] == "change" and back["wanted"] == changed["setting"]
    assert "before the change: back to the last good parameters" in back["reason"]
    queue = publisher.batching("digits-cnn", publisher.served("digits-cnn"))
    assert queue.max_batch_size == rows[-1]["wanted"]["max_batch_size"]


def test_a_version_that_cannot_be_loaded_is_told_once_and_the_old_one_serves_on(served, launched_anew, busy, autotune):
    (version,) = served.layout.deployed("digits-cnn").glob("[0-9]*")
    (version / "saved_model.pb").unlink()  # the copy that the next version is made of, not the exported one
    autotuner = autotune()
    autotuner.says("! the server did not load digits-cnn version")
    said = autotuner.says("but the server did not load batches of 2")
    assert autotuner.end() == 0
    assert said.count("! the server did not load") == 1
    assert "AVAILABLE" in served.invoke("status", check=True).stdout
    (note,) = [
        path for path in (served.root / "reports" / "notes").glob("*.md") if "was not applied" in path.read_text()
    ]
    assert "the server did not load" in note.read_text()
