"""What the server refuses, how it starts, and how it stops."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from launchpad.modelserver import protos
from launchpad.modelserver.tfrecord import framed
from tests.waiting import wait_for

from .conftest import Server, Start, call, free_port, predict_request


def test_a_body_over_the_limit_is_refused_with_413(probe: Server) -> None:
    assert probe.rest("/v1/models/probe:predict", b" " * 20_000_001)[0] == 413
    small_but_large = gzip.compress(b" " * 20_000_001)
    assert probe.rest("/v1/models/probe:predict", small_but_large, headers={"Content-Encoding": "gzip"})[0] == 413


def test_a_large_body_is_served(probe: Server) -> None:
    status, answer = probe.rest("/v1/models/probe:predict", {"instances": [0.5] * 1_000_000})
    assert status == 200 and answer["predictions"] == [3.25] * 1_000_000


def test_bodies_may_be_compressed_or_chunked(probe: Server) -> None:
    body = gzip.compress(b'{"instances": [1.0]}')
    assert probe.rest("/v1/models/probe:predict", body, headers={"Content-Encoding": "gzip"}) == (
        200,
        {"predictions": [3.5]},
    )
    assert probe.rest("/v1/models/probe:predict", b"no gzip", headers={"Content-Encoding": "gzip"}) == (
        400,
        {"error": "JSON Parse error: The document is empty"},
    )

    connection = http.client.HTTPConnection("127.0.0.1", probe.rest_port)
    for _ in range(3):
        chunks = iter([b'{"instances"', b": [1.", b"0]}"])
        connection.request("POST", "/v1/models/probe:predict", chunks, encode_chunked=True)
        assert json.loads(connection.getresponse().read()) == {"predictions": [3.5]}


def test_requests_sent_ahead_on_one_connection_are_answered_in_order(probe: Server) -> None:
    with socket.create_connection(("127.0.0.1", probe.rest_port)) as connection:
        for value in (1, 2, 3):
            body = b'{"instances": [%d]}' % value
            connection.sendall(
                b"POST /v1/models/probe:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
        received = b""
        while received.count(b"predictions") < 3 or not received.endswith(b"}"):
            received += connection.recv(65536)
    answers = [part.split(b"\r\n\r\n", 1)[1] for part in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert [json.loads(answer) for answer in answers] == [{"predictions": [x]} for x in (3.5, 4.0, 4.5)]


def test_a_request_that_takes_too_long_is_answered_in_time(start_server: Start, models: Path) -> None:
    server = start_server("--model_name=slow", f"--model_base_path={models / 'slow'}", "--rest_api_timeout_in_ms=30")
    status, answer = server.rest("/v1/models/slow:predict", {"instances": [1.0]})
    assert status == 504, answer
    with server.channel() as channel, pytest.raises(grpc.RpcError) as late:
        call(
            channel,
            "PredictionService/Predict",
            predict_request("slow", [1.0]),
            protos.PredictResponse,
            timeout=0.03,
        )
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_more_grpc_calls_than_threads_are_refused(start_server: Start, models: Path) -> None:
    server = start_server("--model_name=slow", f"--model_base_path={models / 'slow'}", "--grpc_max_threads=2")
    codes: list[Any] = []

    def ask(channel: grpc.Channel) -> None:
        try:
            call(channel, "PredictionService/Predict", predict_request("slow", [1.0]), protos.PredictResponse)
            codes.append("OK")
        except grpc.RpcError as error:
            codes.append(error.code().name)

    with server.channel() as channel:
        threads = [threading.Thread(target=ask, args=(channel,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"} and codes.count("OK") >= 2


def test_a_failure_in_the_graph_is_told_and_forgotten(start_server: Start, models: Path) -> None:
    server = start_server("--model_name=checked", f"--model_base_path={models / 'checked'}")
    status, answer = server.rest("/v1/models/checked:predict", b'{"instances": [NaN]}')
    assert status == 400 and "Tensor had NaN values" in answer["error"]
    assert server.rest("/v1/models/checked:predict", {"instances": [1.0]}) == (200, {"predictions": [1.0]})


def test_the_server_finishes_what_is_in_flight_before_it_stops(start_server: Start, models: Path) -> None:
    server = start_server("--model_name=slow", f"--model_base_path={models / 'slow'}", "--rest_api_num_threads=1")
    answers: list[Any] = []
    rest = [
        threading.Thread(target=lambda: answers.append(server.rest("/v1/models/slow:predict", {"instances": [1.0]})[0]))
        for _ in range(3)
    ]

    def ask_by_grpc() -> None:
        with server.channel() as channel:
            request = predict_request("slow", [1.0])
            response = call(channel, "PredictionService/Predict", request, protos.PredictResponse)
            answers.append(list(response.outputs["y"].float_val))

    asking = [*rest, threading.Thread(target=ask_by_grpc)]
    for thread in asking:
        thread.start()
    time.sleep(0.1)
    assert server.stop() == 0
    for thread in asking:
        thread.join()
    assert sorted(map(str, answers)) == ["200", "200", "200", "[1.0]"]


def test_a_port_that_is_taken_fails_the_start_at_once(start_server: Start, models: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = start_server(
            "--model_name=m", f"--model_base_path={models / 'scale'}", f"--rest_api_port={port}", wait=False
        )
        assert server.process.wait(20) == 3
    assert f"127.0.0.1:{port}: Address already in use" in server.log()
    assert "Traceback" not in server.log()


@pytest.mark.parametrize(
    ("flags", "code", "complaint"),
    [
        (["--enable_batch=true"], 2, "unknown flag --enable_batch: did you mean --enable_batching?"),
        (["--rest_api_num_threads=many"], 2, "expected a whole number"),
        (["--model_config_file=/nowhere/models.config"], 2, "cannot read /nowhere/models.config"),
        ([], 2, "--model_base_path or --model_config_file is required"),
    ],
)
def test_wrong_flags_fail_the_start_with_a_plain_message(
    start_server: Start, flags: list[str], code: int, complaint: str
) -> None:
    server = start_server(*flags, wait=False)
    assert server.process.wait(20) == code
    assert complaint in server.log()
    assert "Traceback" not in server.log()


def test_a_model_that_cannot_be_loaded_fails_the_start(start_server: Start, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"nonsense")
    server = start_server("--model_name=m", f"--model_base_path={tmp_path}", "--max_num_load_retries=0", wait=False)
    assert server.process.wait(20) == 3
    log = server.log()
    assert "Error: UNKNOWN: 1 servable(s) did not become available: {{{name: m version: 1} due to error: " in log
    assert log.rstrip().endswith("}, }")


def test_the_ports_stay_closed_until_there_is_a_model(start_server: Start, models: Path, tmp_path: Path) -> None:
    base = tmp_path / "later"
    server = start_server("--model_name=m", f"--model_base_path={base}", wait=False)
    wait_for(lambda: "cannot read the base path" in server.log())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.rest_port), 1)
    base.symlink_to(models / "scale")
    wait_for(lambda: "REST API at" in server.log())
    assert server.rest("/v1/models/m:predict", {"instances": [1.0]})[0] == 200


def _records(requests: list[Any]) -> bytes:
    """A TFRecord file."""
    return b"".join(
        framed(request if isinstance(request, bytes) else request.SerializeToString()) for request in requests
    )


def _warm_model(models: Path, folder: Path, name: str, records: bytes) -> Path:
    import shutil

    shutil.copytree(models / name / "1", folder / name / "1")
    (folder / name / "1" / "assets.extra").mkdir()
    (folder / name / "1" / "assets.extra" / "tf_serving_warmup_requests").write_bytes(records)
    return folder / name


def test_warmup_requests_are_replayed_before_a_version_serves(
    start_server: Start, models: Path, tmp_path: Path
) -> None:
    log = protos.PredictionLog()
    log.predict_log.request.CopyFrom(predict_request("checked", [1.0, 2.0]))
    base = _warm_model(models, tmp_path, "checked", _records([log] * 3))
    server = start_server("--model_name=checked", f"--model_base_path={base}")
    assert "model checked version 1 warmed up with 3 requests" in server.log()


@pytest.mark.parametrize("kind", ["failing", "garbled", "cut off", "no message", "too many", "a folder"])
def test_a_bad_warmup_record_fails_the_load(start_server: Start, models: Path, tmp_path: Path, kind: str) -> None:
    log = protos.PredictionLog()
    log.predict_log.request.CopyFrom(predict_request("checked", [float("nan")] if kind == "failing" else [1.0]))
    records = _records([b"\xff\xff\xff"] if kind == "no message" else [log] * (1002 if kind == "too many" else 2))
    if kind == "garbled":
        records = records[:20] + b"?" + records[21:]
    if kind == "cut off":
        records = records[:-3]
    base = _warm_model(models, tmp_path, "checked", records)
    if kind == "a folder":
        file = base / "1" / "assets.extra" / "tf_serving_warmup_requests"
        file.unlink()
        file.mkdir()
    server = start_server("--model_name=checked", f"--model_base_path={base}", "--max_num_load_retries=0", wait=False)
    assert server.process.wait(30) == 3, server.log()
    assert "did not become available" in server.log()


def test_flags_may_be_followed_by_their_value(start_server: Start, models: Path) -> None:
    port = free_port()
    server = start_server(
        "--model_name", "m", "--model_base_path", str(models / "scale"), "--rest_api_port", str(port), wait=False
    )
    server.rest_port = port
    wait_for(lambda: "gRPC API at" in server.log())
    assert server.rest("/v1/models/m:predict", {"instances": [1.0]})[0] == 200


def test_answers_carry_cors_headers_where_that_is_enabled(start_server: Start, models: Path) -> None:
    server = start_server("--model_name=m", f"--model_base_path={models / 'scale'}", "--rest_api_enable_cors_support")
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port)
    connection.request("GET", "/v1/models/m")
    response = connection.getresponse()
    assert response.headers["Access-Control-Allow-Origin"] == "*"


def test_grpc_outputs_come_as_tensor_content_where_that_is_enabled(start_server: Start, models: Path) -> None:
    server = start_server(
        "--model_name=m", f"--model_base_path={models / 'scale'}", "--enable_serialization_as_tensor_content"
    )
    with server.channel() as channel:
        response = call(channel, "PredictionService/Predict", predict_request("m", [1.0]), protos.PredictResponse)
    assert response.outputs["y"].tensor_content == struct.pack("<f", 3.0)
    assert not response.outputs["y"].float_val


def test_large_messages_pass_in_both_directions_by_grpc(probe: Server) -> None:
    values = [0.5] * 2_000_000
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{probe.grpc_port}", options) as channel:
        response = call(channel, "PredictionService/Predict", predict_request("probe", values), protos.PredictResponse)
        assert list(response.outputs["y"].float_val) == [3.25] * len(values)
        with pytest.raises(grpc.RpcError) as refused:
            request = predict_request("probe", values * 3)
            call(channel, "PredictionService/Predict", request, protos.PredictResponse)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_compressed_grpc_messages_are_understood(probe: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{probe.grpc_port}", compression=grpc.Compression.Gzip) as channel:
        request = predict_request("probe", [1.0] * 1000)
        response = call(channel, "PredictionService/Predict", request, protos.PredictResponse)
    assert list(response.outputs["y"].float_val) == [3.5] * 1000


def test_an_unknown_grpc_method_is_unimplemented(probe: Server) -> None:
    with probe.channel() as channel, pytest.raises(grpc.RpcError) as unknown:
        channel.unary_unary("/tensorflow.serving.PredictionService/Guess")(b"", timeout=5)
    assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED
