"""The Docker engine: which ones cannot be used and why, what it offers, its refusals in the user's words."""

from __future__ import annotations

import http.server
import json
import socket
import socketserver
import threading

import pytest

from launchpad import engine
from launchpad.errors import EnvironmentFault


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Serve JSON answers, by the end of the path, on a socket that DOCKER_HOST names."""
    servers = []

    def start(**answers) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(answers.get(self.path.rpartition("/")[2], {})).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def address_string(self) -> str:
                return "local"

            def log_message(self, *_) -> None:
                pass

        server = socketserver.ThreadingUnixStreamServer(str(tmp_path / "docker.sock"), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


CURRENT = {"ApiVersion": "1.41", "Version": "20.10.24"}


def fault(call) -> str:
    with pytest.raises(EnvironmentFault) as raised:
        call()
    (problem,) = raised.value.problems
    assert raised.value.exit_code == 3 and problem.fix
    return problem.what


def test_a_socket_that_is_not_there_is_no_engine(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert fault(engine.connect) == f"no Docker engine answers at unix://{tmp_path}/none.sock"


def test_a_socket_without_permission_is_told_apart(pretend, monkeypatch):
    pretend(version=CURRENT)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert fault(engine.connect).startswith("no permission to use the Docker engine at unix://")


def test_an_engine_that_is_too_old_is_told_with_its_version(pretend):
    pretend(version={"ApiVersion": "1.39", "Version": "18.09.1"})
    assert "is too old: it is 18.09.1; API 1.40 is needed" in fault(engine.connect)


def test_an_engine_that_is_older_than_the_sdk_is_too_old_too(pretend):
    pretend(version={"ApiVersion": "1.18", "Version": "1.6"})
    assert "is too old" in fault(engine.connect)


def test_something_that_accepts_and_does_not_answer_is_no_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "ANSWER_TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent.sock"))
        silent.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/silent.sock")
        assert "does not answer as a Docker engine does" in fault(engine.connect)


@pytest.mark.parametrize("address", ["tcp://10.1.2.3:2376", "ssh://user@example.org"])
def test_an_engine_on_another_machine_is_not_asked(monkeypatch, address):
    monkeypatch.setenv("DOCKER_HOST", address)
    assert f"the Docker engine at {address} is on another machine" in fault(engine.connect)


@pytest.mark.parametrize(
    ("facts", "offered", "found"),
    [
        ({"Runtimes": {"runc": {}}}, False, "runtimes: runc; devices: none"),
        ({"Runtimes": {"runc": {}, "nvidia": {}}}, True, "runtimes: nvidia, runc; devices: none"),
        (
            {"Runtimes": {"runc": {}}, "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]},
            True,
            "runtimes: runc; devices: nvidia.com/gpu=0",
        ),
    ],
)
def test_gpus_are_offered_by_a_runtime_or_as_devices(pretend, facts, offered, found):
    pretend(version=CURRENT, info=facts)
    assert engine.gpus(engine.connect()) == (offered, found)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("write /layer: no space left on device", "the disk of the Docker engine is full"),
        (
            'Conflict. The container name "/tfs-launchpad-digits" is already in use by container "abc"',
            "the container name tfs-launchpad-digits is taken",
        ),
        (
            "driver failed programming external connectivity on endpoint x: "
            "Bind for 127.0.0.1:8501 failed: port is already allocated",
            "port 127.0.0.1:8501 is taken",
        ),
        (
            "Error starting userland proxy: listen tcp4 127.0.0.1:8500: bind: address already in use",
            "port 127.0.0.1:8500 is taken",
        ),
        (
            'could not select device driver "" with capabilities: [[gpu]]',
            "the Docker engine cannot give the container a GPU",
        ),
        (
            "error during container init: write sysctl key net.core.x: open /proc/sys/net/core/x: no such file",
            "the kernel setting net.core.x cannot be set for a container here",
        ),
        ("Minimum memory limit allowed is 6MB", "serving.container.memory is less than the engine's least, 6MB"),
        ("something new\nmore", "the Docker engine refused, while testing: something new"),
    ],
)
def test_refusals_are_put_into_the_users_words(said, what):
    assert engine.explain(said, "testing").what == what
