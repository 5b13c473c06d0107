"""Versions, labels and configuration as they change, and requests that do not notice."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import text_format

from launchpad.modelserver import protos
from tests.waiting import wait_for

from .conftest import Server, Start, call, model_config, predict_request

SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
HEALTH_OF_ANOTHER = b"\x0a\x05other"


def _publish(source: Path, base: Path, number: int) -> None:
    """Copy a version under a name that is none, then rename it."""
    shutil.copytree(source, base / f"tmp-{number}")
    os.rename(base / f"tmp-{number}", base / str(number))


@pytest.fixture
def base(models: Path, tmp_path: Path) -> Path:
    base = tmp_path / "scale"
    base.mkdir()
    _publish(models / "scale" / "1", base, 1)
    return base


class Asking:
    """Keeps asking a model over several connections, and remembers what came back."""

    def __init__(self, server: Server, path: str, threads: int = 4) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.slowest_s = 0.0
        self._server, self._path = server, path
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._server.rest_port, timeout=30)
        while not self._stop.is_set():
            connection.request("POST", self._path, b'{"instances": [1.0]}')
            response = connection.getresponse()
            self.answers.append((response.status, json.loads(response.read())))

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_a_new_version_takes_over_while_no_request_fails(start_server: Start, base: Path, models: Path) -> None:
    server = start_server("--model_name=scale", f"--model_base_path={base}")
    with Asking(server, "/v1/models/scale:predict") as asking:
        wait_for(lambda: len(asking.answers) > 100)
        _publish(models / "scale" / "2", base, 2)
        wait_for(lambda: server.states("scale") == {"1": "END", "2": "AVAILABLE"})
        answered = len(asking.answers)
        wait_for(lambda: len(asking.answers) > answered + 100)

    assert {status for status, _ in asking.answers} == {200}
    values = [answer["predictions"][0]["y"] for _, answer in asking.answers]
    assert values[0] == 2.0 and values[-1] == 3.0
    assert values == sorted(values), "once the new version has answered, the old one does not any more"


def test_a_bad_version_leaves_the_good_one_serving(start_server: Start, base: Path) -> None:
    server = start_server("--model_name=scale", f"--model_base_path={base}", "--max_num_load_retries=0")
    (base / "7").mkdir()
    (base / "7" / "saved_model.pb").write_bytes(b"nonsense")
    wait_for(lambda: server.states("scale").get("7") == "END")

    _, status = server.rest("/v1/models/scale/versions/7")
    assert status["model_version_status"][0]["status"]["error_code"] != "OK"
    assert server.states("scale")["1"] == "AVAILABLE"
    assert server.rest("/v1/models/scale:predict", {"instances": [4.0]})[1]["predictions"][0]["y"] == 8.0

    shutil.rmtree(base / "7")
    wait_for(lambda: server.states("scale")["7"] == "END")
    assert server.rest("/v1/models/scale:predict", {"instances": [4.0]})[0] == 200


def test_a_failing_load_is_tried_again(start_server: Start, base: Path, models: Path) -> None:
    server = start_server(
        "--model_name=scale",
        f"--model_base_path={base}",
        "--max_num_load_retries=200",
        "--load_retry_interval_micros=50000",
    )
    (base / "2").mkdir()
    wait_for(lambda: server.states("scale").get("2") == "LOADING")
    shutil.copytree(models / "scale" / "2", base / "2", dirs_exist_ok=True)
    wait_for(lambda: server.states("scale")["2"] == "AVAILABLE")


def test_removing_the_newest_version_brings_the_older_one_back(start_server: Start, base: Path, models: Path) -> None:
    _publish(models / "scale" / "2", base, 2)
    server = start_server("--model_name=scale", f"--model_base_path={base}")
    assert server.states("scale") == {"2": "AVAILABLE"}
    shutil.rmtree(base / "2")
    wait_for(lambda: server.states("scale") == {"2": "END", "1": "AVAILABLE"})
    assert server.rest("/v1/models/scale:predict", {"instances": [1.0]})[1]["predictions"][0]["y"] == 2.0


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", {"2"}),
        ("latest { num_versions: 2 }", {"1", "2"}),
        ("all {}", {"1", "2"}),
        ("specific { versions: 1 }", {"1"}),
    ],
)
def test_a_version_policy_chooses_the_versions(
    start_server: Start, models: Path, tmp_path: Path, policy: str, expected: set[str]
) -> None:
    (tmp_path / "models.config").write_text(model_config({"scale": models / "scale"}, policy))
    server = start_server(f"--model_config_file={tmp_path / 'models.config'}")
    assert set(server.states("scale")) == expected


def test_the_model_config_file_is_read_again_when_it_changes(start_server: Start, models: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text(model_config({"scale": models / "scale"}, "all {}"))
    server = start_server(f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=1")

    file.write_text(model_config({"scale": models / "scale"}, "all {}", {"stable": 1, "canary": 2}))
    predict = {"instances": [1.0]}
    wait_for(lambda: server.rest("/v1/models/scale/labels/canary:predict", predict)[0] == 200)
    assert server.rest("/v1/models/scale/labels/stable:predict", predict)[1]["predictions"][0]["y"] == 2.0

    file.write_text("this is no configuration")
    wait_for(lambda: "not obeyed" in server.log())
    assert server.rest("/v1/models/scale:predict", predict)[0] == 200

    file.write_text(model_config({"other": models / "scale"}))
    wait_for(lambda: server.rest("/v1/models/other:predict", predict)[0] == 200)
    wait_for(lambda: set(server.states("scale").values()) == {"END"})
    assert server.rest("/v1/models/scale:predict", predict)[0] == 404


def test_a_configuration_is_reloaded_by_grpc_and_a_bad_label_refused(
    start_server: Start, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "models.config").write_text(model_config({"scale": models / "scale"}, "specific { versions: 1 }"))
    server = start_server(f"--model_config_file={tmp_path / 'models.config'}", "--max_num_load_retries=0")

    def reload(text: str) -> None:
        request = protos.ReloadConfigRequest()
        text_format.Parse(text, request.config)
        with server.channel() as channel:
            call(channel, "ModelService/HandleReloadConfigRequest", request, protos.ReloadConfigResponse)

    with pytest.raises(grpc.RpcError) as refused:
        reload(model_config({"scale": models / "scale"}, "specific { versions: 1 }", {"canary": 2}))
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert refused.value.details() == (
        "Request to assign label to version 2 of model scale, which is not currently available for inference"
    )

    reload(model_config({"scale": models / "scale", "second": models / "slow"}, "all {}"))
    assert server.rest("/v1/models/second:predict", {"instances": [1.0]})[0] == 200

    (tmp_path / "bad" / "1").mkdir(parents=True)
    with pytest.raises(
        grpc.RpcError, match=r"1 model\(s\) did not become available: \{\{\{name: bad version: 1\} due to"
    ):
        reload(model_config({"scale": models / "scale", "bad": tmp_path / "bad"}, "all {}"))


def test_a_label_for_a_version_not_yet_loaded_needs_the_flag(start_server: Start, models: Path, tmp_path: Path) -> None:
    (tmp_path / "models.config").write_text(model_config({"scale": models / "scale"}, "all {}", {"stable": 1}))
    refused = start_server(f"--model_config_file={tmp_path / 'models.config'}", wait=False)
    assert refused.process.wait(20) == 3
    assert "Request to assign label to version 1 of model scale" in refused.log()


def test_a_version_in_use_is_unloaded_when_its_last_request_is_done(
    start_server: Start, models: Path, tmp_path: Path
) -> None:
    base = tmp_path / "swap"
    base.mkdir()
    _publish(models / "slow" / "1", base, 1)
    server = start_server("--model_name=swap", f"--model_base_path={base}")
    answers: list[tuple[int, Any]] = []
    asking = threading.Thread(
        target=lambda: answers.append(server.rest("/v1/models/swap/versions/1:predict", {"instances": [7.0] * 3}))
    )
    asking.start()
    _publish(models / "scale" / "1", base, 2)
    wait_for(lambda: server.states("swap") == {"1": "END", "2": "AVAILABLE"})
    asking.join()
    assert answers == [(200, {"predictions": [7.0, 7.0, 7.0]})]


def test_grpc_works_over_a_unix_socket_and_tells_its_health(probe: Server) -> None:
    socket_path = next(flag for flag in probe.process.args if "grpc_socket_path" in flag).split("=")[1]
    with grpc.insecure_channel(f"unix:{socket_path}") as channel:
        response = call(channel, "PredictionService/Predict", predict_request("probe", [1.0]), protos.PredictResponse)
        assert list(response.outputs["y"].float_val) == [3.5]
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=5) == SERVING
        with pytest.raises(grpc.RpcError) as refused:
            check(HEALTH_OF_ANOTHER, timeout=5)
        assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.NOT_FOUND, "service name unknown")


def test_a_client_that_watches_the_health_is_told_when_the_server_leaves(start_server: Start, models: Path) -> None:
    server = start_server(
        "--model_name=scale", f"--model_base_path={models / 'scale'}", "--enable_grpc_healthcheck_service"
    )
    with server.channel() as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        whole, other = watch(b"", timeout=30), watch(HEALTH_OF_ANOTHER, timeout=30)
        assert (next(whole), next(other)) == (SERVING, SERVICE_UNKNOWN)
        response = call(channel, "PredictionService/Predict", predict_request("scale", [1.0]), protos.PredictResponse)
        assert list(response.outputs["y"].float_val) == [3.0]
        server.process.send_signal(signal.SIGTERM)
        assert list(whole) == [NOT_SERVING]
        assert server.process.wait(30) == 0
    assert "still busy" not in server.log()


def test_grpc_works_over_tls_and_refuses_plain_text(start_server: Start, models: Path, tmp_path: Path) -> None:
    certificate, key = _self_signed(tmp_path)
    (tmp_path / "ssl.config").write_text(
        f"server_key: {json.dumps(key)} server_cert: {json.dumps(certificate)} client_verify: false"
    )
    server = start_server(
        "--model_name=scale", f"--model_base_path={models / 'scale'}", f"--ssl_config_file={tmp_path / 'ssl.config'}"
    )
    credentials = grpc.ssl_channel_credentials(certificate.encode())
    with grpc.secure_channel(f"localhost:{server.grpc_port}", credentials) as channel:
        response = call(channel, "PredictionService/Predict", predict_request("scale", [1.0]), protos.PredictResponse)
    assert list(response.outputs["y"].float_val) == [3.0]
    with server.channel() as channel, pytest.raises(grpc.RpcError):
        call(channel, "PredictionService/Predict", predict_request("scale", [1.0]), protos.PredictResponse, timeout=3)


def _self_signed(folder: Path) -> tuple[str, str]:
    import subprocess

    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost "
        "-keyout key.pem -out cert.pem",
        shell=True,
        check=True,
        capture_output=True,
        cwd=folder,
    )
    return (folder / "cert.pem").read_text(), (folder / "key.pem").read_text()


def test_memory_of_unloaded_versions_is_given_back(start_server: Start, models: Path, tmp_path: Path) -> None:
    base = tmp_path / "scale"
    base.mkdir()
    _publish(models / "scale" / "1", base, 1)
    server = start_server("--model_name=scale", f"--model_base_path={base}")

    def swap(number: int) -> None:
        _publish(models / "scale" / "1", base, number)
        wait_for(lambda: server.states("scale").get(str(number)) == "AVAILABLE")
        shutil.rmtree(base / str(number - 1))
        wait_for(lambda: server.states("scale").get(str(number - 1)) == "END")

    for number in range(2, 5):
        swap(number)
    before = server.rss_mb()
    for number in range(5, 13):
        swap(number)
    assert server.rss_mb() < before + 20


@pytest.mark.parametrize("head", [b"HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"HTTP/1.0\r\n\r\n"])
def test_a_client_that_wants_the_connection_closed_gets_it_closed(probe: Server, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", probe.rest_port), timeout=10) as client:
        client.sendall(b"GET /v1/models/probe " + head)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200") and b"AVAILABLE" in answer
