"""What every backend does alike: one contract, run against each."""

from __future__ import annotations

import signal
import sys
import time

import numpy as np
import psutil
import pytest
from conftest import dockerise

from launchpad.backends import BACKENDS, how_ended, of
from launchpad.client import GrpcClient, RestClient
from launchpad.launch.stage import stop
from launchpad.server import Server
from tests.integration.conftest import Checkout

NATIVE = """\
#!{python}
import sys
from launchpad.modelserver.__main__ import main
sys.exit(main(["--host=127.0.0.1", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module", params=["embedded", "native", "docker"])
def backend(request, tmp_path_factory):
    """A checkout on each backend; tensorflow_model_server is a stand-in: the embedded server under its name."""
    folder = tmp_path_factory.mktemp(request.param)
    checkout = Checkout(folder / "checkout")
    if request.param == "docker":
        dockerise(checkout, request.getfixturevalue("stand_in"))
    if request.param == "native":
        program = folder / "tensorflow_model_server"
        program.write_text(NATIVE.format(python=sys.executable))
        program.chmod(0o755)
        checkout.edit(("backend: embedded", f"backend: native\n  binary: {program}"))
    build_where_needed(checkout)
    yield checkout
    stop(checkout.layout)


@pytest.fixture
def launched(backend):
    """The checkout with a server that runs, perhaps since an earlier test."""
    backend.invoke("launch", check=True)
    return backend


def build_where_needed(checkout) -> None:
    if "backend: docker" in (checkout.root / "pipeline.yaml").read_text():
        checkout.invoke("build", check=True)


def test_a_server_is_started_found_asked_kept_and_ended(launched):
    server = Server.ready(launched.layout)
    assert not how_ended(server) and of(server).find(launched.layout)
    assert "--max_num_load_retries=0" in server.command
    status = launched.invoke("status", check=True).stdout
    assert of(server).describe(server) in status and f"{server.backend} server" in status
    assert "AVAILABLE" in status and "digits-mlp" in status
    assert "digits-cnn" in launched.invoke("logs", check=True).stdout
    rest = RestClient(server.rest_url)
    name = next(iter(rest.metadata("digits-mlp")["metadata"]["signature_def"]["signature_def"]["bytes"]["inputs"]))
    examples = {name: [bytes(784), bytes(784)]}
    over_rest = rest.predict("digits-mlp", "bytes", examples)
    grpc = GrpcClient(server.grpc_address)
    over_grpc = grpc.predict("digits-mlp", "bytes", examples)
    grpc.close()
    for values in zip(over_rest.values(), over_grpc.values(), strict=True):
        np.testing.assert_allclose(*values, rtol=1e-5)

    assert "kept running" in launched.invoke("launch", check=True).stdout
    assert Server.ready(launched.layout).pid == server.pid

    assert "ended 1 server" in launched.invoke("stop", check=True).stdout
    assert how_ended(server) and not of(server).find(launched.layout)
    assert "no server is running" in launched.invoke("status", check=True).stdout
    assert "digits-cnn" in launched.invoke("logs", check=True).stdout


def test_a_server_that_was_killed_is_told_and_replaced(launched):
    server = Server.ready(launched.layout)
    _server_process(server).send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not how_ended(server) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert how_ended(server)

    assert "has ended" in launched.invoke("status", check=True).stdout
    launched.invoke("launch", check=True)

    replaced = Server.ready(launched.layout)
    assert not how_ended(replaced) and replaced.instance != server.instance
    assert len(of(replaced).find(launched.layout)) == 1


def test_a_load_test_runs_and_a_server_killed_in_mid_run_fails_it(launched):
    launched.invoke("loadtest", "--profile", "smoke", "--duration", "2", check=True)
    started = launched.start("loadtest", "--profile", "smoke", "--duration", "60")
    while not any((run / "history.csv").exists() for run in launched.runs()[1:]):
        assert started.poll() is None
        time.sleep(0.1)
    _server_process(Server.ready(launched.layout)).kill()

    output, _ = started.communicate(timeout=60)

    assert started.returncode == 1 and "the server ended in the middle of the run" in output


def test_a_model_that_cannot_be_loaded_ends_the_launch_with_the_end_of_the_log(backend):
    (backend.root / "models" / "digits-mlp" / "versions" / "1" / "saved_model.pb").write_bytes(b"no model")
    build_where_needed(backend)

    done = backend.invoke("launch")

    assert done.returncode == 3
    assert "ended while starting: exit code" in done.stdout and "the end of .launchpad/logs/server.log" in done.stdout
    assert "digits-mlp" in done.stdout and "Traceback" not in done.stdout
    assert not any(each.find(backend.layout) for each in BACKENDS.values())


def _server_process(server: Server) -> psutil.Process:
    """Return the process that serves: in a container it is a child of the entry point."""
    process = psutil.Process(server.pid)
    return process.children()[0] if server.container else process
