"""Load tests against the embedded server as a user runs them: what a run says is what happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launchpad import runfolder
from launchpad.loadtest import generator
from launchpad.loadtest.arrivals import constant_rate, poisson
from launchpad.server import Server
from launchpad.spec import OpenLoop

pytestmark = pytest.mark.alone

PROFILES_BEGIN = "    smoke:\n"
MLP = "{model: digits-mlp, signature: bytes}"


@pytest.fixture(scope="module")
def served(shared_checkout):
    """A checkout whose server runs, for all tests of this module."""
    shared_checkout.invoke("launch", check=True)
    return shared_checkout


@pytest.fixture
def run(served) -> Iterator[Callable[..., Run]]:
    """Run a load test with a profile given as YAML; the declaration is put back afterwards."""
    path = served.root / "pipeline.yaml"
    before = path.read_text()

    def drive(profile: str, *options: str) -> Run:
        path.write_text(before.replace(PROFILES_BEGIN, f"    tried: {profile}\n{PROFILES_BEGIN}"))
        done = served.invoke("loadtest", "--profile", "tried", *options)
        return Run(done.stdout, done.returncode, served.runs()[-1])

    yield drive
    path.write_text(before)


class Run:
    """A run that has ended: what it printed, its exit code, its folder."""

    def __init__(self, output: str, code: int, folder: Path) -> None:
        self.output = output
        self.code = code
        self.folder = folder
        self.summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())

    def whole(self, kind: str) -> Any:
        """Return the histogram of a kind of latency over lines and seconds."""
        merged = runfolder.histogram()
        for _, _, histogram in runfolder.read_histograms(self.folder, kind):
            merged.add(histogram)
        return merged

    def by_second(self) -> list[int]:
        counts: dict[int, int] = {}
        for row in runfolder.read_history(self.folder):
            counts[row["second"]] = counts.get(row["second"], 0) + row["requests"]
        return [counts[second] for second in sorted(counts)]


def test_an_open_loop_sends_what_was_due_and_counts_from_then(run):
    done = run(f"{{loop: open, rate_rps: 200, arrivals: constant, duration_s: 3, traffic: [{MLP}]}}")

    totals = done.summary["totals"]
    assert (totals["requests"], totals["failures"]) == (600, 0)
    response, service, lag = (done.whole(kind) for kind in (runfolder.RESPONSE, runfolder.SERVICE, runfolder.LAG))
    assert response.get_total_count() == service.get_total_count() == 600
    assert lag.get_total_count() + done.summary["generator"]["held"] == 600
    for percentile in (50, 99, 100):
        assert response.get_value_at_percentile(percentile) >= service.get_value_at_percentile(percentile)
    assert done.summary["profile"]["title"] == "200 requests/s in an open loop, constant arrivals"
    assert done.summary["status"] == "completed"


def test_a_poisson_schedule_is_the_seeds_and_nothing_of_it_is_left_out(run):
    due = poisson(constant_rate(150, 2), seed=4)
    done = run(f"{{loop: open, rate_rps: 150, seed: 4, duration_s: 2, traffic: [{MLP}]}}")
    assert done.summary["totals"]["requests"] == len(due)


def test_several_processes_share_a_rate_and_make_one_run(run):
    done = run(
        f"{{loop: open, rate_rps: 200, arrivals: constant, duration_s: 3, traffic: [{MLP}]}}", "--processes", "2"
    )

    assert done.summary["status"] == "completed" and done.summary["generator"]["processes"] == 2
    rows = runfolder.read_history(done.folder)
    assert len({(row["second"], row["line"]) for row in rows}) == len(rows)
    assert sum(row["requests"] for row in rows) == done.summary["totals"]["requests"] == 600
    assert done.whole(runfolder.RESPONSE).get_total_count() == 600


def test_every_protocol_signature_and_batch_gets_right_answers(run):
    lines = [
        f"{{model: {model}, signature: {signature}, protocol: {protocol}, batch: {batch}}}"
        for model in ("digits-mlp", "digits-cnn")
        for signature in ("serving_default", "bytes")
        for protocol in ("rest", "rest_columns", "grpc")
        for batch in (1, 4)
    ]
    done = run(f"{{users: 4, duration_s: 4, traffic: [{', '.join(lines)}]}}")

    assert done.summary["errors"] == []
    assert len(done.summary["lines"]) == 24
    assert all(line["requests"] > 0 and line["failures"] == 0 for line in done.summary["lines"].values())


def test_a_worker_that_is_killed_fails_the_run(served):
    started = served.start("loadtest", "--profile", "smoke", "--duration", "8", "--processes", "2")
    known = set(served.runs())
    while not (new := set(served.runs()) - known) or not _rows(next(iter(new))):
        assert started.poll() is None
    workers = [process for process in psutil.Process(started.pid).children(recursive=True) if _is_worker(process)]
    assert len(workers) == 2
    workers[0].send_signal(signal.SIGKILL)

    output, _ = started.communicate(timeout=60)

    assert started.returncode == 1
    assert "1 of 2 generator processes ended early" in output
    summary = json.loads((served.runs()[-1] / "summary.json").read_text())
    assert summary["status"] == "failed" and summary["totals"]["requests"] > 0


def _rows(folder: Path) -> list[dict[str, Any]]:
    return runfolder.read_history(folder) if (folder / runfolder.HISTORY).exists() else []


def _is_worker(process: psutil.Process) -> bool:
    """A worker is a fork of Locust's master: the same command line, and a Locust for a parent."""
    parent = process.parent()
    return "locust" in process.cmdline() and parent is not None and "locust" in parent.cmdline()


def test_requests_that_a_hanging_server_never_answers_are_counted(served):
    """The server hangs in the middle and stays so: what was due till the end is there, as failed."""
    path = served.root / "pipeline.yaml"
    before = path.read_text()
    profile = f"{{loop: open, rate_rps: 100, arrivals: constant, duration_s: 4, traffic: [{MLP}]}}"
    path.write_text(before.replace(PROFILES_BEGIN, f"    hung: {profile}\n{PROFILES_BEGIN}"))
    known = set(served.runs())
    server = psutil.Process(Server.ready(served.layout).pid)
    started = served.start("loadtest", "--profile", "hung")
    try:
        while not (new := set(served.runs()) - known) or not _rows(next(iter(new))):
            assert started.poll() is None
        server.suspend()
        output, _ = started.communicate(timeout=60)
    finally:
        server.resume()
        path.write_text(before)

    run = Run(output, started.returncode, served.runs()[-1])
    assert run.code == 1 and run.summary["status"] == "completed"
    assert run.summary["totals"]["requests"] == 400
    assert {row["kind"] for row in run.summary["errors"]} == {"no answer: not by the end"}
    assert 0 < run.summary["totals"]["failures"] == run.whole(runfolder.FAILED).get_total_count() < 400


def test_a_shape_changes_the_load_over_the_run(run):
    shape = "{kind: steps, low: 0.25, steps: 4}"
    done = run(f"{{loop: open, rate_rps: 200, arrivals: constant, duration_s: 4, shape: {shape}, traffic: [{MLP}]}}")

    assert done.by_second()[:4] == pytest.approx([50, 100, 150, 200], abs=4)


def test_a_shape_changes_the_number_of_users_of_a_closed_loop(run):
    """Users with a think time far above the service time: each makes about 20 requests/s."""
    shape = "{kind: ramp, low: 0.1}"
    done = run(f"{{users: 20, think_time_ms: 50, spawn_rate: 50, duration_s: 4, shape: {shape}, traffic: [{MLP}]}}")

    rates = done.by_second()
    assert rates[3] > 2 * rates[0] > 0


def test_a_trace_is_replayed_and_a_bad_one_is_refused_before_any_load(run, served):
    trace = served.root / "trace.txt"
    trace.write_text("".join(f"{1000 + n * 0.01}\n" for n in range(120)))
    profile = f"{{loop: open, rate_rps: 1, arrivals: trace.txt, duration_s: 2, traffic: [{MLP}]}}"
    assert run(profile).summary["totals"]["requests"] == 120

    known = served.runs()
    trace.write_text("1\n2\nyesterday\n1.5\n")
    done = run(profile)
    assert done.code == 2
    assert "trace.txt:3" in done.output and "trace.txt:4" in done.output
    assert served.runs() == known


def test_requests_that_one_connection_cannot_keep_up_with_wait_and_their_wait_counts(run):
    """One connection, far more requests than it can carry: the wait is response time, and nothing is left out."""
    profile = f"{{loop: open, rate_rps: 6000, max_in_flight: 1, duration_s: 2, traffic: [{MLP}]}}"
    done = run(profile)

    totals, generator = done.summary["totals"], done.summary["generator"]
    assert totals["requests"] == pytest.approx(12_000, rel=0.05)
    assert generator["held"] > 1000
    response, service = done.whole(runfolder.RESPONSE), done.whole(runfolder.SERVICE)
    assert response.get_value_at_percentile(50) > 10 * service.get_value_at_percentile(50)
    assert done.code == 1 and "p99 of digits-mlp" in done.output


def test_a_rate_that_the_generator_cannot_make_is_said(run):
    profile = f"{{loop: open, rate_rps: 60000, duration_s: 2, traffic: [{MLP}]}}"
    done = run(profile)

    generator = done.summary["generator"]
    assert generator["limited"] or generator["held"] > 0
    assert done.code == 1
    assert done.summary["totals"]["requests"] == pytest.approx(120_000, rel=0.05)


def test_refusals_of_a_full_queue_are_counted_by_kind_with_their_latency_apart(checkout):
    checkout.edit(
        ("max_batch_size: 16", "max_batch_size: 1"),
        ("num_batch_threads: 2", "num_batch_threads: 1"),
        ("max_enqueued_batches: 64", "max_enqueued_batches: 1"),
        (
            "      users: 4\n",
            "      users: 32\n      traffic: [{model: digits-cnn}, {model: digits-cnn, protocol: grpc}]\n",
        ),
    )
    for stage in ("export", "configure", "launch"):
        checkout.invoke(stage, check=True)

    done = checkout.invoke("loadtest", "--profile", "smoke", "--duration", "3")

    assert done.returncode == 1
    run = Run(done.stdout, done.returncode, checkout.runs()[-1])
    counted = {row["kind"]: row["count"] for row in run.summary["errors"]}
    assert set(counted) == {"HTTP 503", "UNAVAILABLE"}
    assert (
        sum(counted.values()) == run.summary["totals"]["failures"] == run.whole(runfolder.FAILED).get_total_count() > 0
    )
    answered = run.summary["totals"]["requests"] - run.summary["totals"]["failures"]
    assert run.whole(runfolder.RESPONSE).get_total_count() == answered > 0
    assert all("queue" in row["example"].lower() for row in run.summary["errors"])


def by_hand(served, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "locust", "-f", "loadtests/", "--headless", *words]
    environment = {**os.environ, "PYTHONPATH": str(served.root)}
    return subprocess.run(
        command,
        cwd=served.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )


def test_locust_by_hand_drives_the_declared_server(served):
    done = by_hand(served, "-u", "2", "-t", "3s", "GrpcTensors")

    assert done.returncode == 0, done.stdout
    total = next(line for line in reversed(done.stdout.splitlines()) if line.strip().startswith("Aggregated"))
    assert "digits-cnn serving_default grpc" in done.stdout and "digits-mlp serving_default grpc" in done.stdout
    assert "0(0.00%)" in done.stdout, total


def test_every_form_of_request_is_a_class_to_pick_by_hand(served):
    listed = by_hand(served, "--list")

    assert listed.returncode == 0, listed.stdout
    for name in ("DeclaredTraffic", "RestRows", "RestColumns", "RestBytes", "GrpcTensors", "GrpcBytes"):
        assert name in listed.stdout


def test_a_run_of_failures_that_is_ended_early_is_complete(checkout, tmp_path):
    """As the capacity search ends a probe of a server that refuses."""
    ending = generator.Ending()
    profile = OpenLoop(loop="open", rate_rps=50, duration_s=30)

    generator.drive(checkout.layout, lambda: "", profile, 1, tmp_path, ending, lambda part: part["second"] < 1)

    assert (ending.status, ending.why) == ("completed", "")
    assert sum(error["count"] for error in runfolder.read_errors(tmp_path)) > 0


def test_a_run_that_is_ended_early_when_it_is_over_anyway_is_complete(served, tmp_path):
    """As a probe that is clear with its last second, while answers are still waited for: the server hangs then."""
    ending = generator.Ending()
    profile = OpenLoop(loop="open", rate_rps=50, duration_s=2)
    server = psutil.Process(Server.ready(served.layout).pid)

    def observe(part: dict[str, Any]) -> bool:
        server.suspend()
        return bool(part["second"] < 1)

    try:
        generator.drive(served.layout, lambda: "", profile, 1, tmp_path, ending, observe)
    finally:
        server.resume()

    assert (ending.status, ending.why) == ("completed", "")
    assert {error["kind"] for error in runfolder.read_errors(tmp_path)} == {"no answer: not by the end"}
