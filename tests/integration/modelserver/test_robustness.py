"""Hostile clients: no crash, no hang, no blame on the server for what a client did, and the next good request is
answered. MODELSERVER_HOSTILE_REQUESTS sets how many are sent."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import time
from collections.abc import Callable

import pytest

from launchpad.modelserver import protos
from launchpad.modelserver.http2 import frame

from .conftest import Server, Start, predict_request

COUNT = int(os.environ.get("MODELSERVER_HOSTILE_REQUESTS", "4000"))
GOOD = b'{"instances": [1.0, 2.0]}'
Mutation = Callable[[random.Random], bytes]


def _random_bytes(dice: random.Random) -> bytes:
    return dice.randbytes(dice.randrange(200))


def _truncated(dice: random.Random) -> bytes:
    return GOOD[: dice.randrange(len(GOOD))]


def _nested(dice: random.Random) -> bytes:
    depth = dice.choice([2, 40, 999, 1000, 1030, 5000, 100_000])
    return b'{"instances": ' + b"[" * depth + b"1" + b"]" * dice.choice([depth, 0]) + b"}"


def _huge_number(dice: random.Random) -> bytes:
    number = dice.choice(["1e309", "-1e400", "9" * 400, "1" + "0" * 30, "1e39", "-0", "1e-400", "00", "+1", "0x10"])
    return f'{{"instances": [{number}]}}'.encode()


def _wrong_shape(dice: random.Random) -> bytes:
    values = [[dice.random()] * dice.randrange(4) for _ in range(dice.randrange(4))]
    return json.dumps({dice.choice(["instances", "inputs"]): values}).encode()


def _wrong_type(dice: random.Random) -> bytes:
    value = dice.choice([None, True, "x", {}, {"x": {}}, {"b64": "!"}, {"b64": 1}, [[]], {"x": [1], "y": 2}, "é" * 9])
    return json.dumps({dice.choice(["instances", "inputs"]): dice.choice([value, [value], [[value]]])}).encode()


def _bad_utf8(dice: random.Random) -> bytes:
    return b'{"instances": ["' + dice.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80"]) + b'"]}'


def _mutated(dice: random.Random) -> bytes:
    body = bytearray(GOOD)
    for _ in range(dice.randrange(1, 4)):
        body[dice.randrange(len(body))] = dice.randrange(256)
    return bytes(body)


def _wrong_signature(dice: random.Random) -> bytes:
    name = dice.choice(
        ["two_io", "strings", "classify", "scalar_and_matrix", "nope", "", 5, None, "__saved_model_init_op"]
    )
    return json.dumps({"signature_name": name, "instances": [1.0]}).encode()


def _lone_surrogate(dice: random.Random) -> bytes:
    return (
        b'{"signature_name": "strings", "instances": ["'
        + dice.choice([b"\\ud800", b"\\udfff\\ud800", b"\\u0000"])
        + b'"]}'
    )


MUTATIONS: list[Mutation] = [
    _random_bytes,
    _truncated,
    _nested,
    _huge_number,
    _wrong_shape,
    _wrong_type,
    _bad_utf8,
    _mutated,
    _wrong_signature,
    _lone_surrogate,
]
_TOO_LARGE = "/v1/models/probe/versions/99999999999999999999:predict"
PATHS = [
    "/v1/models/probe:predict",
    "/v1/models/probe/versions/1:predict",
    "/v1/models/probe:classify",
    "/v1/models/probe:regress",
    "/v1/models/probe/labels/stable:predict",
    "/v1/models/%ff:predict",
    _TOO_LARGE,
]


def _assert_well(server: Server) -> None:
    assert server.process.poll() is None, server.log()
    assert server.rest("/v1/models/probe:predict", GOOD) == (200, {"predictions": [3.5, 4.0]})
    assert "Traceback" not in server.log(), server.log()[-3000:]


def _post(path: str, body: bytes) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body


def _read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """The status and the body of the next answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        assert part, "the server hung up"
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split()[1]), body


def test_hostile_bodies_are_the_clients_fault(probe: Server) -> None:
    dice = random.Random(7)
    connection = socket.create_connection(("127.0.0.1", probe.rest_port), 20)
    for _ in range(COUNT):
        body = dice.choice(MUTATIONS)(dice)
        path = dice.choice(PATHS)
        connection.sendall(_post(path, body))
        status, answer = _read_answer(connection)
        assert status in (200, 400, 404, 501), (status, path, body[:300], answer[:300])
        if path == _TOO_LARGE:
            assert (status, answer) == (400, b"")
        elif status != 200:
            json.loads(answer.decode("utf-8", "replace"))
    connection.close()
    _assert_well(probe)


def test_bytes_that_are_no_http_end_only_their_own_connection(probe: Server) -> None:
    dice = random.Random(8)
    for _ in range(COUNT // 20):
        with socket.create_connection(("127.0.0.1", probe.rest_port), 20) as connection:
            data = bytearray(_post("/v1/models/probe:predict", GOOD)[: dice.randrange(1, 120)])
            for _ in range(dice.randrange(4)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            connection.sendall(dice.choice([bytes(data), dice.randbytes(100) + b"\r\n\r\n"]))
    _assert_well(probe)


def test_clients_that_hang_up_or_stall_hold_up_nobody(probe: Server) -> None:
    whole = _post("/v1/models/probe:predict", GOOD)
    stalled = []
    for index in range(200):
        connection = socket.create_connection(("127.0.0.1", probe.rest_port), 20)
        connection.sendall(whole[: index % len(whole)] if index % 2 else whole)
        if index % 4 < 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        else:
            stalled.append(connection)
    started = time.monotonic()
    _assert_well(probe)
    assert time.monotonic() - started < 5
    for connection in stalled:
        connection.close()


def test_a_client_that_does_not_read_does_not_make_the_server_hoard(probe: Server) -> None:
    body = json.dumps({"instances": [0.5] * 100_000}).encode()
    connection = socket.create_connection(("127.0.0.1", probe.rest_port), 20)
    connection.settimeout(2)
    before = probe.rss_mb()
    try:
        for _ in range(2000):
            connection.sendall(_post("/v1/models/probe:predict", body))
    except TimeoutError:
        pass
    _assert_well(probe)
    assert probe.rss_mb() < before + 150
    connection.close()


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _call(stream: int, message: bytes, method: bytes = b"Predict") -> bytes:
    headers = b"\x83\x86" + _literal(b":path", b"/tensorflow.serving.PredictionService/" + method)
    headers += _literal(b"content-type", b"application/grpc") + _literal(b"te", b"trailers")
    body = struct.pack(">BI", 0, len(message)) + message
    return frame(1, 4, stream, headers) + frame(0, 1, stream, body)


def _grpc_status(data: bytes) -> int | None:
    _, found, rest = data.rpartition(b"grpc-status")
    return int(rest[1 : 1 + rest[0]]) if found else None


def test_hostile_protobufs_are_the_clients_fault(probe: Server) -> None:
    dice = random.Random(9)
    good = predict_request("probe", [1.0, 2.0]).SerializeToString()
    connection = socket.create_connection(("127.0.0.1", probe.grpc_port), 20)
    connection.sendall(_PREFACE)
    for number in range(COUNT // 2):
        message = bytearray(good)
        for _ in range(dice.randrange(1, 5)):
            message[dice.randrange(len(message))] = dice.randrange(256)
        data = bytes(message) if dice.random() < 0.8 else dice.randbytes(dice.randrange(60))
        method = dice.choice([b"Predict"] * 5 + [b"Classify", b"Regress", b"MultiInference", b"GetModelMetadata"])
        stream = 2 * number + 1
        connection.sendall(_call(stream, data, method))
        answer = b""
        while _grpc_status(answer) is None:
            part = connection.recv(65536)
            assert part, "the server hung up"
            answer += part
        assert _grpc_status(answer) in (0, 3, 5, 9, 12, 13), (data, answer)
    connection.close()
    _assert_well(probe)


@pytest.mark.parametrize("flavour", ["random", "mutated frames"])
def test_bytes_that_are_no_http2_end_only_their_own_connection(probe: Server, flavour: str) -> None:
    dice = random.Random(10)
    good = predict_request("probe", [1.0]).SerializeToString()
    for _ in range(COUNT // 20):
        with socket.create_connection(("127.0.0.1", probe.grpc_port), 20) as connection:
            data = bytearray(_PREFACE + _call(1, good) + _call(3, good))
            if flavour == "random":
                data[24:] = dice.randbytes(200)
            else:
                for _ in range(3):
                    data[dice.randrange(24, len(data))] = dice.randrange(256)
            connection.sendall(data)
    with probe.channel() as channel:
        from .conftest import call

        response = call(channel, "PredictionService/Predict", predict_request("probe", [1.0]), protos.PredictResponse)
    assert list(response.outputs["y"].float_val) == [3.5]
    _assert_well(probe)


def test_overload_is_refused_and_memory_stays_bounded(start_server: Start, models, tmp_path) -> None:  # type: ignore[no-untyped-def]
    server = start_server(
        "--model_name=slow",
        f"--model_base_path={models / 'slow'}",
        "--rest_api_num_threads=1",
        "--max_request_bytes=100000",
    )
    body = b'{"instances": [' + b", ".join([b"0.5"] * 10_000) + b"]}"
    before = server.rss_mb()
    connections = []
    for _ in range(300):
        connection = socket.create_connection(("127.0.0.1", server.rest_port), 20)
        connection.sendall(_post("/v1/models/slow:predict", body))
        connections.append(connection)
    time.sleep(1)
    assert server.rss_mb() < before + 100
    for connection in connections:
        connection.close()
    assert server.rest("/v1/models/slow")[0] == 200
