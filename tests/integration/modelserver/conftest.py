"""Real servers on free ports, and models made for what the tests ask of them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from launchpad.modelserver import protos
from tests.waiting import wait_for

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests" / "fixtures" / "tfserving"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """A running server; `rest` and `predict` talk to it."""

    process: subprocess.Popen[str]
    rest_port: int
    grpc_port: int
    log_path: Path

    def rest(
        self, path: str, body: Any = None, method: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """The status and the parsed JSON (or the text) of a REST answer; `body` is JSON or ready bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=60)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method or ("GET" if body is None else "POST"), path, data, headers or {})
        response = connection.getresponse()
        text = response.read().decode("utf-8", "replace")
        connection.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text

    def states(self, model: str) -> dict[str, str]:
        _, answer = self.rest(f"/v1/models/{model}")
        return {entry["version"]: entry["state"] for entry in answer.get("model_version_status", [])}

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}")

    def log(self) -> str:
        return self.log_path.read_text()

    def rss_mb(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        raise AssertionError("no VmRSS")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


Start = Callable[..., Server]


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts servers with the given flags; waits for the ports unless told not to."""
    servers: list[Server] = []

    def start(*flags: str, wait: bool = True) -> Server:
        rest_port, grpc_port = free_port(), free_port()
        log_path = tmp_path_factory.mktemp("server") / "log"
        with open(log_path, "w") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "launchpad.modelserver",
                    f"--rest_api_port={rest_port}",
                    f"--port={grpc_port}",
                    *flags,
                ],
                cwd=ROOT,
                stderr=log,
                stdout=log,
                text=True,
            )
        server = Server(process, rest_port, grpc_port, log_path)
        servers.append(server)
        if wait:
            wait_for(lambda: _answers(server), 60)
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def _answers(server: Server) -> bool:
    assert server.process.poll() is None, server.log()
    try:
        socket.create_connection(("127.0.0.1", server.rest_port), 1).close()
        socket.create_connection(("127.0.0.1", server.grpc_port), 1).close()
    except OSError:
        return False
    return True


def model_config(models: dict[str, Path], policy: str = "", labels: dict[str, int] | None = None) -> str:
    """A model config file's text; policy and labels are those of every model in it."""
    label_text = "".join(
        f'version_labels {{ key: "{label}" value: {number} }} ' for label, number in (labels or {}).items()
    )
    policy_text = f"model_version_policy {{ {policy} }}" if policy else ""
    entries = [
        f'config {{ name: "{name}" base_path: "{path}" model_platform: "tensorflow" {policy_text} {label_text} }}'
        for name, path in models.items()
    ]
    return "model_config_list { " + "\n".join(entries) + " }"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what `make_models.py` makes."""
    root = tmp_path_factory.mktemp("models")
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("make_models.py")), str(root)], check=True, capture_output=True
    )
    return root


@pytest.fixture(scope="session")
def probe(start_server: Start, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The probe model as it was served when the transcripts were taken, with metrics and a health service."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "models.config").write_text(
        model_config({"probe": FIXTURES / "models" / "probe"}, "all {}", {"stable": 1, "canary": 2})
    )
    (folder / "monitoring.config").write_text("prometheus_config { enable: true }")
    return start_server(
        f"--model_config_file={folder / 'models.config'}",
        f"--monitoring_config_file={folder / 'monitoring.config'}",
        "--allow_version_labels_for_unavailable_models",
        "--enable_grpc_healthcheck_service",
        f"--grpc_socket_path={folder / 'grpc.sock'}",
        "--max_request_bytes=20000000",
    )


def predict_request(model: str, values: list[float], **spec: Any) -> Any:
    """A PredictRequest for the input x of a model."""
    request = protos.PredictRequest()
    request.model_spec.name = model
    for name, value in spec.items():
        setattr(request.model_spec, name, value)
    tensor = request.inputs["x"]
    tensor.dtype = 1
    tensor.tensor_shape.dim.add(size=len(values))
    tensor.float_val.extend(values)
    return request


def call(channel: grpc.Channel, method: str, request: Any, response_type: Any, timeout: float = 30) -> Any:
    """A unary gRPC call, `method` being such as `PredictionService/Predict`."""
    path = f"/tensorflow.serving.{method}"
    stub = channel.unary_unary(
        path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response_type.FromString,
    )
    return stub(request, timeout=timeout)


os.environ.setdefault("GRPC_VERBOSITY", "NONE")
