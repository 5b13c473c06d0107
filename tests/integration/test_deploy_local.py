"""The chain as its user runs it: real processes, a real server, real load."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest
import requests

from launchpad.backends import how_ended, process
from launchpad.server import Server
from tests.integration.conftest import Checkout

SHORT = ("--profile", "smoke", "--duration", "2")


def wait_for_line(started: subprocess.Popen[str], text: str) -> None:
    """Read a task's output until a line has `text`."""
    assert started.stdout is not None
    seen = []
    for line in started.stdout:
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"ended without {text!r}: {''.join(seen)}")


def generators(root: Path) -> list[psutil.Process]:
    """Return the Locust processes that work in a checkout."""
    found = []
    for candidate in psutil.process_iter(["cmdline", "cwd"]):
        if "locust" in (candidate.info["cmdline"] or []) and candidate.info["cwd"] == str(root):
            found.append(candidate)
    return found


@pytest.fixture
def served(checkout):
    """A checkout whose server runs."""
    checkout.invoke("launch", check=True)
    return checkout


def test_the_chain_ends_with_a_served_model_a_run_and_a_report(checkout):
    done = checkout.invoke("deploy-local", *SHORT, check=True)

    assert "What happened" in done.stdout
    (run,) = checkout.runs()
    names = {path.name for path in run.iterdir()}
    assert {
        "summary.json",
        "history.csv",
        "totals.csv",
        "latency.hlog",
        "errors.csv",
        "config",
        "pipeline.yaml",
    } <= names
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["totals"]["requests"] > 50 and summary["totals"]["failures"] == 0
    assert {row["protocol"] for row in summary["warmup"]} == {"REST", "gRPC"}
    answer = requests.get(f"http://127.0.0.1:{checkout.rest_port}/v1/models/digits-cnn", timeout=5).json()
    assert answer["model_version_status"][0]["state"] == "AVAILABLE"
    page = (checkout.root / "reports" / run.name / "report.html").read_text()
    assert len(page) < 1_000_000
    assert not re.search(r"(src|href)=\"(https?:)?//", page) and "@import" not in page
    assert "All 5 objectives hold." in page
    assert run.name in (checkout.root / "reports" / run.name / "report.md").read_text()


def test_a_second_launch_keeps_the_server_and_a_changed_batching_parameter_replaces_it(served):
    first = Server.ready(served.layout)

    assert "kept running" in served.invoke("launch", check=True).stdout
    assert Server.ready(served.layout).pid == first.pid

    served.edit(("batch_timeout_micros: 500", "batch_timeout_micros: 700"))
    plan = served.invoke("deploy-local", "--dry-run", check=True).stdout
    due = [line for line in plan.splitlines() if "would run" in line]
    assert not any("export" in line for line in due)
    assert any("configure" in line and "serving.batching.batch_timeout_micros" in line for line in due)
    served.invoke("configure", check=True)
    served.invoke("launch", check=True)
    assert Server.ready(served.layout).pid != first.pid
    assert how_ended(first)


def test_a_new_largest_batch_renews_the_warmup_requests_and_not_the_model(checkout):
    checkout.edit(("max_batch_size: 16", "max_batch_size: 8"))

    plan = checkout.invoke("export", "--dry-run", check=True).stdout

    rows = {line.split("│")[2].strip(): line for line in plan.splitlines() if "│ export" in line}
    assert "nothing to do" in rows["digits-cnn"] and "nothing to do" in rows["digits-mlp warmup requests"]
    assert "would run" in rows["digits-cnn warmup requests"]


def test_drift_of_the_rendered_files_is_shown(checkout):
    (checkout.root / "serving" / "config" / "models.config").write_text("changed by hand\n")

    done = checkout.invoke("configure", "--check")

    assert done.returncode == 1
    assert "serving/config/models.config" in done.stdout and "-changed by hand" in done.stdout


def test_a_taken_port_is_named_with_its_holder(checkout):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", checkout.rest_port))
        taken.listen()
        done = checkout.invoke("launch")

    assert done.returncode == 3
    assert f"port {checkout.rest_port} is taken by process {psutil.Process().pid}" in done.stdout
    assert re.search(r"pipeline\.yaml:\d+", done.stdout)
    assert not process.servers_of(checkout.layout.deployment)


def test_of_two_that_start_at_once_on_the_same_ports_one_is_told(checkout, tmp_path):
    other = Checkout(tmp_path / "other")
    mine, others = (f"rest: {one.rest_port}, grpc: {one.grpc_port}" for one in (checkout, other))
    other.edit((others, mine))
    other.invoke("configure", check=True)

    starting = [one.start("launch") for one in (checkout, other)]
    said = [child.communicate(timeout=120)[0] for child in starting]
    other.invoke("stop", check=True)

    codes = [child.returncode for child in starting]
    assert 3 in codes and set(codes) <= {0, 3}, said
    assert any(f"port {checkout.rest_port}" in text and "taken by process" in text for text in said), said


def test_a_server_that_dies_while_starting_shows_the_end_of_its_log(checkout):
    (checkout.root / "models" / "digits-mlp" / "versions" / "1" / "saved_model.pb").write_bytes(b"no model")

    done = checkout.invoke("launch")

    assert done.returncode == 3
    assert "while starting" in done.stdout and "digits-mlp" in done.stdout
    assert "Traceback" not in done.stdout
    assert "no server is running" in checkout.invoke("status", check=True).stdout


def test_a_configuration_that_is_not_what_is_declared_is_not_launched(checkout):
    checkout.edit(("batch_timeout_micros: 500", "batch_timeout_micros: 600"))

    done = checkout.invoke("launch")

    assert done.returncode == 3
    assert "serving/config/batching_parameters.pbtxt: is not what pipeline.yaml gives" in done.stdout
    assert "run `invoke configure`" in done.stdout
    assert "no server is running" in checkout.invoke("status", check=True).stdout


def test_a_server_killed_in_mid_test_fails_the_run_and_keeps_what_was_measured(served):
    started = served.start("deploy-local", "--profile", "smoke", "--duration", "60")
    wait_for_line(started, "loadtest")
    history = None
    while history is None or len(history.read_text().splitlines()) < 10:
        assert started.poll() is None
        history = next((run / "history.csv" for run in served.runs() if (run / "history.csv").exists()), None)
    psutil.Process(Server.ready(served.layout).pid).kill()

    output, _ = started.communicate(timeout=60)

    assert started.returncode == 1
    assert "the server ended in the middle of the run" in output
    (run,) = served.runs()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "failed" and summary["totals"]["requests"] > 0
    assert "The run failed" in (served.root / "reports" / run.name / "report.html").read_text()


def test_a_load_test_without_a_server_says_so_before_any_load(checkout):
    done = checkout.invoke("loadtest", *SHORT)

    assert done.returncode == 3 and "invoke launch" in done.stdout
    assert not checkout.runs()


def test_an_answer_that_is_not_the_exporters_is_a_failure(served):
    examples = served.root / "models" / "digits-mlp" / "evidence" / "1" / "examples.npz"
    examples.write_bytes((served.root / "models" / "digits-cnn" / "evidence" / "1" / "examples.npz").read_bytes())

    done = served.invoke("loadtest", *SHORT)

    assert done.returncode == 1
    summary = json.loads((served.runs()[0] / "summary.json").read_text())
    assert {row["kind"] for row in summary["errors"]} == {"wrong answer"}
    assert summary["models"]["digits-cnn"]["failures"] == 0


def test_a_second_pipeline_is_refused_and_told_who_runs(served):
    first = served.start("loadtest", "--profile", "smoke", "--duration", "30")
    while not served.runs():
        assert first.poll() is None

    second = served.invoke("deploy-local")
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=30)

    assert second.returncode == 3
    assert f"process {first.pid}" in second.stdout and "loadtest" in second.stdout


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_was_measured(served, ending):
    started = served.start("loadtest", "--profile", "smoke", "--duration", "60")
    while not any(
        (run / "history.csv").exists() and len((run / "history.csv").read_text()) > 300 for run in served.runs()
    ):
        assert started.poll() is None
    started.send_signal(ending)

    output, _ = started.communicate(timeout=30)

    assert started.returncode == 128 + ending and "Traceback" not in output
    summary = json.loads((served.runs()[0] / "summary.json").read_text())
    assert summary["status"] == "interrupted" and summary["totals"]["requests"] > 0
    assert not generators(served.root)


def test_kill_9_in_a_load_test_leaves_no_generator_and_the_next_run_continues(served):
    started = served.start("loadtest", "--profile", "smoke", "--duration", "60")
    while not (left := generators(served.root)):
        assert started.poll() is None
    started.kill()
    started.wait()

    _, alive = psutil.wait_procs(left, timeout=20)
    assert left and not alive
    served.invoke("deploy-local", *SHORT, check=True)


def test_kill_9_while_launching_leaves_no_stale_server(checkout):
    started = checkout.start("launch")
    while not (servers := process.servers_of(checkout.layout.deployment)):
        assert started.poll() is None
    started.kill()
    started.wait()

    checkout.invoke("launch", check=True)

    running = process.servers_of(checkout.layout.deployment)
    assert [server.pid for server in running] == [Server.ready(checkout.layout).pid]
    assert servers[0].pid not in {server.pid for server in running}


def test_status_logs_and_stop_speak_of_the_running_server(served):
    status = served.invoke("status", check=True).stdout
    assert "digits-mlp" in status and "AVAILABLE" in status and str(Server.ready(served.layout).pid) in status
    assert "digits-cnn" in served.invoke("logs", check=True).stdout

    assert "ended 1 server" in served.invoke("stop", check=True).stdout

    assert "no server is running" in served.invoke("status", check=True).stdout
    assert not process.servers_of(served.layout.deployment)


def test_a_taken_port_does_not_end_the_server_that_runs(served):
    before = Server.ready(served.layout)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        served.edit((f"rest: {served.rest_port}", f"rest: {port}"))
        served.invoke("configure", check=True)
        done = served.invoke("launch")
    assert done.returncode == 3 and f"port {port} is taken by" in done.stdout
    assert Server.ready(served.layout) == before and not how_ended(before)


def test_clean_keeps_artifacts_and_the_run_store(served):
    served.invoke("loadtest", *SHORT, check=True)

    served.invoke("clean", check=True)

    assert {path.name for path in served.layout.private.iterdir() if path.suffix != ".lock"} == {"lock", "store.db"}
    assert served.runs() and (served.root / "models" / "digits-mlp" / "versions" / "1").is_dir()
    assert not process.servers_of(served.layout.deployment)
