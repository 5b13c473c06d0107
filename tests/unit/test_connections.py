"""Connections against small real servers: answers as they are meant, and every fault told as what it is."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import gevent.socket
import grpc
import pytest

from launchpad.loadtest import connections
from launchpad.loadtest.connections import Answer, GrpcConnection, NoAnswer, RestConnection

TIMEOUT_S = 5.0
HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def sockets_of_gevent(monkeypatch):
    """Locust patches the whole process; here the module under test alone, so that the servers' threads stay real."""
    monkeypatch.setattr(connections, "socket", gevent.socket)


Serve = Callable[[socket.socket, int], None]
"""Serves a connection, the nth."""


@contextmanager
def server(serve: Serve) -> Iterator[int]:
    """A TCP server that serves one connection after the other; yields its port."""
    listener = socket.create_server((HOST, 0))

    def accept() -> None:
        for number in itertools.count():
            try:
                accepted, _ = listener.accept()
            except OSError:
                return  # the test is over
            with accepted:
                serve(accepted, number)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def read_request(peer: socket.socket) -> bytes | None:
    """Return the body of an HTTP request, None at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = peer.recv(65536)
        if not part:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    (length,) = [int(line.split(b":")[1]) for line in head.splitlines() if line.startswith(b"Content-Length")]
    while len(body) < length:
        body += peer.recv(65536)
    return body


def response(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def answering(*answers: bytes, then_close: bool = False) -> Serve:
    """Serve each request with the next answer; an answer may come in several packets."""
    turns = itertools.cycle(answers)

    def serve(peer: socket.socket, _: int) -> None:
        while read_request(peer) is not None:
            peer.sendall(next(turns))
            if then_close:
                return

    return serve


@contextmanager
def rest(serve: Serve, timeout_s: float = TIMEOUT_S) -> Iterator[RestConnection]:
    with server(serve) as port:
        made = RestConnection(HOST, port, timeout_s)
        try:
            yield made
        finally:
            made.close()


def ask(connection: RestConnection, body: bytes = b"{}") -> Answer:
    return connection.call(RestConnection.request("host", "/v1/models/m:predict", body))


# --- HTTP -------------------------------------------------------------------------------------------------------


def test_the_request_arrives_as_it_was_made():
    heard = []

    def serve(peer: socket.socket, _: int) -> None:
        heard.append(peer.recv(65536))
        peer.sendall(response(b""))

    with rest(serve) as connection:
        ask(connection, b'{"instances": [1]}')
    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"POST /v1/models/m:predict HTTP/1.1"
    assert {b"Host: host", b"Content-Type: application/json", b"Content-Length: 18"} <= set(head.splitlines())
    assert body == b'{"instances": [1]}'


def test_a_connection_is_kept_between_calls():
    numbers = []

    def serve(peer: socket.socket, number: int) -> None:
        while read_request(peer) is not None:
            numbers.append(number)
            peer.sendall(response(b"%d" % len(numbers)))

    with rest(serve) as connection:
        assert [ask(connection).body for _ in range(3)] == [b"1", b"2", b"3"]
    assert numbers == [0, 0, 0]


def test_a_chunked_answer_is_put_together():
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    with rest(answering(chunked, response(b"next"))) as connection:
        assert ask(connection) == Answer("", b"hello world")
        assert ask(connection) == Answer("", b"next")


def test_an_answer_may_come_byte_by_byte():
    def serve(peer: socket.socket, _: int) -> None:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while read_request(peer) is not None:
            for byte in response(b"slow"):
                peer.sendall(bytes([byte]))

    with rest(serve) as connection:
        assert ask(connection) == Answer("", b"slow")
        assert ask(connection) == Answer("", b"slow")


def test_several_megabytes_go_either_way():
    def serve(peer: socket.socket, _: int) -> None:
        while (body := read_request(peer)) is not None:
            peer.sendall(response(body[::-1]))

    body = bytes(range(256)) * 20_000
    with rest(serve, timeout_s=30) as connection:
        assert ask(connection, body).body == body[::-1]


@pytest.mark.parametrize("status", ["503 Service Unavailable", "429 Too Many Requests", "400 Bad Request", "201 Made"])
def test_any_other_status_than_200_is_told_with_its_body(status):
    with rest(answering(response(b'{"error": "no"}', status), response(b"ok"))) as connection:
        assert ask(connection) == Answer(f"HTTP {status[:3]}", b'{"error": "no"}')
        assert ask(connection) == Answer("", b"ok")


def test_when_the_server_says_close_the_next_call_opens_a_new_connection():
    with rest(answering(response(b"x", headers="Connection: close\r\n"), then_close=True)) as connection:
        assert [ask(connection).kind for _ in range(3)] == ["", "", ""]


def test_http_1_0_closes_unless_it_says_otherwise():
    answer = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    with rest(answering(answer, then_close=True)) as connection:
        assert [ask(connection).body for _ in range(2)] == [b"hi", b"hi"]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP"),
        (b"\x00\xff" * 50, "no HTTP"),
        (b"", "connection closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "connection closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "connection closed"),
    ],
)
def test_a_server_that_answers_badly_is_told_and_the_next_call_starts_afresh(answer, kind):
    def serve(peer: socket.socket, number: int) -> None:
        while read_request(peer) is not None:
            peer.sendall(answer if number == 0 else response(b"well"))
            if number == 0:
                return

    with rest(serve) as connection:
        with pytest.raises(NoAnswer) as raised:
            ask(connection)
        assert raised.value.kind == kind
        assert ask(connection) == Answer("", b"well")


def test_a_server_that_resets_is_told():
    def serve(peer: socket.socket, _: int) -> None:
        read_request(peer)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with rest(serve) as connection, pytest.raises(NoAnswer) as raised:
        ask(connection)
    assert raised.value.kind == "ConnectionResetError"


def test_a_server_that_never_answers_times_out_and_its_late_answer_is_not_taken_for_the_next():
    asked_again = threading.Event()

    def serve(peer: socket.socket, number: int) -> None:
        read_request(peer)
        if number == 0:
            asked_again.wait(TIMEOUT_S)
        peer.sendall(response(b"%d" % number))

    with rest(serve, timeout_s=0.05) as connection:
        with pytest.raises(NoAnswer) as raised:
            ask(connection)
        assert raised.value.kind == "timeout"
        asked_again.set()
        connection._timeout_s = TIMEOUT_S
        assert ask(connection).body == b"1"


def test_a_port_that_nobody_listens_on_refuses():
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(NoAnswer) as raised:
        ask(RestConnection(HOST, port, TIMEOUT_S))
    assert raised.value.kind == "ConnectionRefusedError"


def test_a_server_may_be_named():
    with server(answering(response(b"x"))) as port:
        connection = RestConnection("localhost", port, TIMEOUT_S)
        assert ask(connection).body == b"x"
        connection.close()


def test_an_idle_connection_that_the_server_has_closed_is_opened_again_without_a_failure(monkeypatch):
    """As servers do after their idle time; the close is known before the next request is sent."""
    monkeypatch.setattr(connections, "IDLE_S", 0.0)
    closed = threading.Event()

    def serve(peer: socket.socket, number: int) -> None:
        read_request(peer)
        peer.sendall(response(b"%d" % number))
        peer.shutdown(socket.SHUT_WR)
        closed.set()
        peer.recv(1)

    with rest(serve) as connection:
        assert ask(connection).body == b"0"
        assert closed.wait(TIMEOUT_S)
        assert ask(connection).body == b"1"


def test_a_connection_closed_while_its_request_is_under_way_is_a_failure_even_if_it_served_before():
    def serve(peer: socket.socket, _: int) -> None:
        read_request(peer)
        peer.sendall(response(b"once"))
        read_request(peer)

    with rest(serve) as connection:
        assert ask(connection).body == b"once"
        with pytest.raises(NoAnswer) as raised:
            ask(connection)
        assert raised.value.kind == "connection closed"


# --- gRPC -------------------------------------------------------------------------------------------------------

Handler = Callable[[bytes, grpc.ServicerContext], bytes]


@contextmanager
def grpc_server(handler: Handler, **options: int) -> Iterator[GrpcConnection]:
    """A grpcio server whose every method takes and returns bytes; yields a connection to it."""

    class Everything(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(handler)

    unlimited = {"grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1, "grpc.so_reuseport": 0}
    made = grpc.server(ThreadPoolExecutor(2), [Everything()], options=list((unlimited | options).items()))
    port = made.add_insecure_port(f"{HOST}:0")
    made.start()
    connection = GrpcConnection(HOST, port, 30)
    try:
        yield connection
    finally:
        connection.close()
        made.stop(None).wait()


def call(connection: GrpcConnection, message: bytes, path: str = "/service/Method") -> Answer:
    return connection.call(GrpcConnection.request("host:1", path, message))


def test_a_call_carries_its_path_headers_and_message():
    seen = {}

    def handler(message: bytes, context: grpc.ServicerContext) -> bytes:
        seen.update(context.invocation_metadata())
        return message.upper()

    with grpc_server(handler) as connection:
        assert call(connection, b"abc", "/tensorflow.serving.PredictionService/" + "P" * 300) == Answer("", b"ABC")
    assert "user-agent" not in seen


def test_many_calls_follow_each_other_on_one_connection():
    peers = set()

    def handler(message: bytes, context: grpc.ServicerContext) -> bytes:
        peers.add(context.peer())
        return message

    with grpc_server(handler) as connection:
        messages = [b"%d" % number * (number + 1) for number in range(300)]
        assert [call(connection, message).body for message in messages] == messages
    assert len(peers) == 1


def test_an_empty_message_is_an_answer():
    with grpc_server(lambda message, _: message) as connection:
        assert call(connection, b"") == Answer("", b"")


@pytest.mark.parametrize(("sent", "received"), [(5_000_000, 10), (10, 5_000_000), (9_000_000, 9_000_000)])
def test_messages_larger_than_any_flow_control_window_go_either_way(sent, received):
    def handler(message: bytes, _: grpc.ServicerContext) -> bytes:
        assert message == b"s" * sent
        return b"r" * received

    with grpc_server(handler) as connection:
        for _ in range(3):
            assert call(connection, b"s" * sent) == Answer("", b"r" * received)


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT]
)
def test_an_error_is_told_by_its_code_with_its_details_and_the_connection_goes_on(code):
    details = "die Warteschlange ist voll: 100 % — später"

    def handler(message: bytes, context: grpc.ServicerContext) -> bytes:
        if message == b"fail":
            context.abort(code, details)
        return message

    with grpc_server(handler) as connection:
        assert call(connection, b"fail") == Answer(code.name, details.encode())
        assert call(connection, b"well") == Answer("", b"well")


def test_a_message_larger_than_the_server_takes_is_told_as_the_server_says():
    with grpc_server(lambda message, _: message, **{"grpc.max_receive_message_length": 1000}) as connection:
        for size in (2000, 3_000_000):
            assert call(connection, b"x" * size).kind == "RESOURCE_EXHAUSTED"
        assert call(connection, b"small").kind == ""


def test_a_method_that_is_not_there_is_unimplemented():
    made = grpc.server(ThreadPoolExecutor(1))
    port = made.add_insecure_port(f"{HOST}:0")
    made.start()
    connection = GrpcConnection(HOST, port, TIMEOUT_S)
    assert call(connection, b"x").kind == "UNIMPLEMENTED"
    connection.close()
    made.stop(None).wait()


# A server that speaks frame by frame, for what grpcio does not do on demand.

HEADERS, DATA, RST_STREAM, PING, GOAWAY = 1, 0, 3, 6, 7
OK_HEADERS = b"\x88\x0f\x10\x10application/grpc"  # :status 200, content-type by static index
TRAILERS = b"\x00\x0bgrpc-status\x010"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def good_answer(stream: int, body: bytes) -> bytes:
    message = struct.pack(">BI", 0, len(body)) + body
    return frame(HEADERS, 4, stream, OK_HEADERS) + frame(DATA, 0, stream, message) + frame(HEADERS, 5, stream, TRAILERS)


def frames(peer: socket.socket) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (kind, flags, stream, payload) of what a client sends, after its preface."""
    file = peer.makefile("rb")
    file.read(24)
    while head := file.read(9):
        yield head[3], head[4], int.from_bytes(head[5:9], "big"), file.read(int.from_bytes(head[:3], "big"))


def framed(answer: Callable[[int, int], bytes | None]) -> Serve:
    """Serve a call with `answer(connection's number, stream)`; None closes the connection."""

    def serve(peer: socket.socket, number: int) -> None:
        peer.sendall(frame(4, 0, 0, b""))
        for kind, flags, stream, _ in frames(peer):
            if kind == DATA and flags & 1:
                answered = answer(number, stream)
                if answered is None:
                    peer.shutdown(socket.SHUT_WR)  # closed with something unread, it would be reset
                else:
                    peer.sendall(answered)

    return serve


@contextmanager
def spoken(serve: Serve) -> Iterator[GrpcConnection]:
    with server(serve) as port:
        connection = GrpcConnection(HOST, port, TIMEOUT_S)
        try:
            yield connection
        finally:
            connection.close()


def test_the_answers_of_a_server_that_speaks_frame_by_frame_are_understood():
    with spoken(framed(lambda _, stream: good_answer(stream, b"hi"))) as connection:
        assert [call(connection, b"x").body for _ in range(2)] == [b"hi", b"hi"]


def test_padding_priority_and_frames_of_no_concern_are_skipped():
    def answer(_: int, stream: int) -> bytes:
        head = frame(HEADERS, 4 | 0x8 | 0x20, stream, b"\x03" + bytes(5) + OK_HEADERS + bytes(3))
        padded = frame(DATA, 0x8, stream, b"\x02" + struct.pack(">BI", 0, 2) + b"hi" + bytes(2))
        return head + frame(0xEE, 0, stream, b"unknown") + padded + frame(HEADERS, 5, stream, TRAILERS)

    with spoken(framed(answer)) as connection:
        assert call(connection, b"x") == Answer("", b"hi")


def test_a_ping_is_answered():
    heard = []

    def serve(peer: socket.socket, _: int) -> None:
        peer.sendall(frame(4, 0, 0, b""))
        for kind, flags, stream, payload in frames(peer):
            if kind == DATA:
                peer.sendall(frame(PING, 0, 0, b"12345678"))
            if kind == PING:
                heard.append((flags, payload))
                peer.sendall(good_answer(1, b"") if stream == 0 else b"")

    with spoken(serve) as connection:
        assert call(connection, b"x").kind == ""
    assert heard == [(1, b"12345678")]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda stream: frame(RST_STREAM, 0, stream, struct.pack(">I", 2)), "stream reset"),
        (lambda stream: frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0)), "server is going away"),
        (lambda stream: frame(HEADERS, 0, stream, OK_HEADERS), "header block in parts"),
        (lambda stream: frame(HEADERS, 4, stream, b"\xff\xff\xff\xff\xff\xff\xff"), "no HTTP/2"),
        (lambda stream: frame(4, 0, 0, b"") + frame(HEADERS, 4, stream, b"\x80"), "no HTTP/2"),
        (lambda stream: None, "connection closed"),
    ],
)
def test_a_server_that_breaks_off_is_told_and_the_next_call_starts_afresh(answer, kind):
    with spoken(
        framed(lambda number, stream: good_answer(stream, b"well") if number else answer(stream))
    ) as connection:
        with pytest.raises(NoAnswer) as raised:
            call(connection, b"x")
        assert raised.value.kind == kind
        assert call(connection, b"x") == Answer("", b"well")


def test_a_call_that_a_leaving_server_still_answers_is_answered_and_the_next_goes_to_a_new_connection():
    """GOAWAY names the last stream that will be served (RFC 9113, section 6.8)."""
    numbers = []

    def answer(number: int, stream: int) -> bytes:
        numbers.append(number)
        return frame(GOAWAY, 0, 0, struct.pack(">II", stream, 0)) + good_answer(stream, b"last")

    with spoken(framed(answer)) as connection:
        assert [call(connection, b"x").body for _ in range(2)] == [b"last", b"last"]
    assert numbers == [0, 1]


def test_a_reset_without_error_behind_a_whole_answer_takes_nothing_from_it():
    """A server that needs no more of the request says so in this way (RFC 9113, section 8.1)."""

    def answer(_: int, stream: int) -> bytes:
        return good_answer(stream, b"hi") + frame(RST_STREAM, 0, stream, struct.pack(">I", 0))

    with spoken(framed(answer)) as connection:
        assert [call(connection, b"x").body for _ in range(2)] == [b"hi", b"hi"]


def test_compressed_headers_that_mean_something_else_each_time_are_decoded_each_time():
    """The first answer's trailers enter the table; the later ones name them by an index that moves."""
    indexed = [b"\x40\x0bgrpc-status\x010", b"\x40\x0bgrpc-status\x0214", b"\xbe", b"\xbf"]

    def answer(_: int, stream: int) -> bytes:
        message = frame(DATA, 0, stream, struct.pack(">BI", 0, 2) + b"hi")
        return frame(HEADERS, 4, stream, OK_HEADERS) + message + frame(HEADERS, 5, stream, indexed[stream // 2])

    with spoken(framed(answer)) as connection:
        assert [call(connection, b"x").kind for _ in indexed] == ["", "UNAVAILABLE", "UNAVAILABLE", ""]


def test_trailers_without_a_status_are_told():
    with spoken(framed(lambda _, stream: frame(HEADERS, 5, stream, OK_HEADERS))) as connection:
        assert call(connection, b"x").kind == "no grpc-status"


def test_a_server_that_speaks_http_1_gives_no_answer():
    def serve(peer: socket.socket, _: int) -> None:
        peer.recv(65536)
        peer.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with spoken(serve) as connection, pytest.raises(NoAnswer):
        call(connection, b"x")
