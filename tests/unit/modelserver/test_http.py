"""The wire, byte by byte: HTTP/1.1 and HTTP/2, without a network."""

from __future__ import annotations

import asyncio
import gzip
import struct
from collections.abc import Callable
from time import monotonic
from types import ModuleType
from typing import Any

import hpack
import pytest

from launchpad.modelserver import http, http2
from launchpad.modelserver.http import BadRequest, GatheredWriter, HttpConnection, HttpServer, Response, parse_head
from launchpad.modelserver.http2 import ConnectionFault, HeaderDecoder, Http2Server, frame


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    abort = write_eof = pause_reading = resume_reading = close


def _http(pieces: list[bytes], limit: int = 1000) -> tuple[list[tuple[str, str, bytes]], bytes]:
    """The requests that a connection finds in these pieces, and what it writes when each is answered."""
    requests: list[tuple[str, str, bytes]] = []

    def handler(method: str, path: str, body: bytes, respond: Callable[[Response], None]) -> None:
        requests.append((method, path, body))
        respond(Response(200, b"ok", "text/plain"))

    async def run() -> bytes:
        transport = Transport()
        connection = HttpServer(handler, limit, GatheredWriter()).connection()
        connection.connection_made(transport)
        for piece in pieces:
            connection.data_received(piece)
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        return bytes(transport.written)

    return requests, asyncio.run(run())


_REQUEST = b"POST /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
_CHUNKED = b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: 1\r\n\r\n"


def test_requests_are_found_however_they_are_cut() -> None:
    stream = _REQUEST + _CHUNKED + _REQUEST
    expected = [("POST", "/a?b=c", b"abc"), ("POST", "/c", b"abcde"), ("POST", "/a?b=c", b"abc")]
    assert _http([stream])[0] == expected
    assert _http([stream[i : i + 1] for i in range(len(stream))])[0] == expected
    assert _http([stream])[1].count(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok") == 3


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", b"413"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"501"),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n", b"413"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", b"400"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20000, b"431"),
    ],
)
def test_what_is_no_request_ends_the_connection_with_an_error(data: bytes, status: bytes) -> None:
    requests, written = _http([data])
    assert requests == []
    assert written.startswith(b"HTTP/1.1 " + status) and b"Connection: close" in written


def test_an_expectation_is_answered_before_the_body_comes() -> None:
    head = b"POST / HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    assert _http([head, b"abc"])[1].startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


def test_a_wish_for_another_protocol_is_ignored() -> None:
    """As Java's client has it: Upgrade, and the body all the same."""
    head = b"POST /a HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\n"
    requests, written = _http([head + b"abc", _REQUEST])
    assert requests == [("POST", "/a", b"abc"), ("POST", "/a?b=c", b"abc")] and written.count(b"200 OK") == 2


def _late(pieces: list[bytes]) -> Transport:
    """A connection whose client has closed its side before any answer, when all that can be is answered."""
    answers: list[Callable[[Response], None]] = []

    async def run() -> Transport:
        transport = Transport()
        connection = HttpServer(lambda *request: answers.append(request[-1]), 1000, GatheredWriter()).connection()
        connection.connection_made(transport)
        for piece in pieces:
            connection.data_received(piece)
        if not connection.eof_received():
            transport.close()
        while answers:
            answers.pop()(Response(200, b"ok", "text/plain"))
            await asyncio.sleep(0.01)
        return transport

    return asyncio.run(run())


@pytest.mark.parametrize(("stream", "answered"), [(1, 1), (2, 2), (1.5, 1), (0.5, 0)])
def test_a_connection_ends_with_the_last_answer_to_a_client_that_sends_nothing_more(stream, answered) -> None:
    whole, part = divmod(stream, 1)
    transport = _late([_REQUEST * int(whole) + _REQUEST[: int(part * len(_REQUEST))]])
    assert transport.written.count(b"200 OK") == answered and transport.closed


def test_what_is_held_back_for_a_client_that_left_keeps_no_answer_from_others() -> None:
    class Gone(Transport):
        def write(self, data: bytes) -> None:
            raise RuntimeError("the handler is closed")

    async def run() -> bytes:
        writer, gone, there = GatheredWriter(), Gone(), Transport()
        gone.close()
        for transport in (gone, there):
            writer.write(transport, b"answer")
        writer.flush()
        return bytes(there.written)

    assert asyncio.run(run()) == b"answer"


def test_answers_that_are_held_back_go_out_before_idle_connections_are_closed() -> None:
    async def run() -> Transport:
        transport = Transport()
        server = HttpServer(lambda *request: request[-1](Response(200, b"ok", "text/plain")), 1000, GatheredWriter())
        connection = server.connection()
        connection.connection_made(transport)
        connection.data_received(_REQUEST)
        assert not transport.written
        server.close_idle()
        return transport

    transport = asyncio.run(run())
    assert transport.closed and transport.written.endswith(b"ok")


class Rest:
    """An HTTP/1.1 server, whose requests are answered with their own body."""

    def __init__(self, limit: int = 1000) -> None:
        self.server = HttpServer(self._echo, limit, GatheredWriter())

    def _echo(self, method: str, path: str, body: bytes, respond: Callable[[Response], None]) -> None:
        respond(Response(200, body, "text/plain"))

    def connect(self, data: bytes = b"") -> tuple[HttpConnection, Transport]:
        transport = Transport()
        connection = self.server.connection()
        connection.connection_made(transport)
        connection.data_received(data)
        return connection, transport


_CHUNKED_900 = b"POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n384\r\n" + bytes(900)
_PLAIN_900 = b"POST /c HTTP/1.1\r\nContent-Length: 901\r\n\r\n" + bytes(900)


@pytest.mark.parametrize("begun", [_CHUNKED_900, _PLAIN_900])
def test_bodies_under_way_are_limited_together_whichever_way_they_come(begun: bytes) -> None:
    async def run() -> None:
        rest = Rest()
        connections = [rest.connect(begun)[0] for _ in range(4)]
        assert rest.server.buffered_bytes == 3600
        _, refused = rest.connect(begun)
        assert refused.written.startswith(b"HTTP/1.1 503 ")
        connections[0].data_received(b"\r\n0\r\n\r\n" if begun is _CHUNKED_900 else b"x")
        for connection in connections:
            connection.connection_lost(None)
        assert rest.server.buffered_bytes == 0
        rest.server.writer.flush()

    asyncio.run(run())


def test_a_request_that_is_partly_here_when_the_server_ends_comes_to_its_end() -> None:
    async def run() -> None:
        rest = Rest()
        _, idle = rest.connect()
        connection, transport = rest.connect(_REQUEST[:-1])
        rest.server.close_idle()
        assert idle.closed and not transport.closed
        connection.data_received(_REQUEST[-1:])
        assert transport.closed and b"Connection: close" in transport.written and transport.written.endswith(b"abc")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("sent", "dropped"), [(b"", False), (_REQUEST, False), (_REQUEST[:9], True), (_CHUNKED_900, True)]
)
def test_a_connection_is_dropped_when_a_request_is_stalled(monkeypatch, sent: bytes, dropped: bool) -> None:
    async def run() -> Transport:
        rest = Rest()
        _, transport = rest.connect(sent)
        _let_a_minute_pass(monkeypatch, http)
        rest.server.drop_stalled()
        rest.server.writer.flush()
        return transport

    assert asyncio.run(run()).closed == dropped


def _let_a_minute_pass(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    later = monotonic() + http.STALL_LIMIT_S + 1
    monkeypatch.setattr(module, "monotonic", lambda: later)


def test_a_head_is_parsed() -> None:
    head = parse_head(b"GET /x HTTP/1.0\r\nContent-Encoding: gzip\r\n\r\n")
    assert (head.method, head.path, head.keep_alive, head.length, head.gzip) == ("GET", "/x", False, 0, True)
    with pytest.raises(BadRequest):
        parse_head(b"\x00\x01\r\n\r\n")


@pytest.mark.parametrize(
    ("target", "path"),
    [("/a", "/a"), ("/a?", "/a?"), ("/a?b=/c?d", "/a?b=/c?d"), ("/a#b?c", "/a#b?c"), ("http://x/a?b", "/a?b")],
)
def test_what_follows_the_path_belongs_to_what_is_asked_for(target: str, path: str) -> None:
    assert parse_head(f"GET {target} HTTP/1.1\r\n\r\n".encode()).path == path


def _gzipped(body: bytes, coding: bytes = b"gzip") -> bytes:
    return b"POST / HTTP/1.1\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n" % (coding, len(body)) + body


_GZIP = gzip.compress(b"plain", mtime=0)


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (_gzipped(_GZIP), b"plain"),
        (_gzipped(_GZIP, b"x-gzip, identity"), b"plain"),
        (_gzipped(_GZIP, b"br"), _GZIP),
        (_gzipped(_GZIP[:-1]), b""),
        (_gzipped(b"no gzip"), b""),
        (_gzipped(b""), b""),
    ],
)
def test_a_body_is_uncompressed_and_empty_where_it_cannot_be(request_: bytes, body: bytes) -> None:
    requests, written = _http([request_ + _REQUEST])
    assert [asked[2] for asked in requests] == [body, b"abc"]
    assert written.count(b"200 OK") == 2


def test_a_body_that_is_large_uncompressed_is_empty_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MAX_GUNZIPPED_BYTES", 900)
    fits, large, too_large = (_gzipped(gzip.compress(bytes(size))) for size in (900, 901, 1001))
    assert [body for _, _, body in _http([fits + large])[0]] == [bytes(900), b""]
    monkeypatch.setattr(http, "_MAX_GUNZIPPED_BYTES", 2000)
    requests, written = _http([too_large])
    assert requests == [] and written.startswith(b"HTTP/1.1 413")


def test_a_header_block_is_decoded_anew_when_the_compression_state_has_changed() -> None:
    encoder, decoder = hpack.Encoder(), HeaderDecoder()
    for number in range(40):
        headers = [(b":path", b"/p"), (b"x-%d" % (number % 3), b"v%d" % (number // 5)), (b"same", b"same")]
        for _ in range(2):
            assert decoder.decode(encoder.encode(headers)) == dict(headers)
    with pytest.raises(ConnectionFault):
        decoder.decode(b"\xff\xff\xff\xff\xff\xff")


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Peer:
    """A client of an HTTP/2 connection, frame by frame; requests are answered with their own body."""

    def __init__(self, **server: Any) -> None:
        self.transport = Transport()
        self.server = Http2Server(self._echo, **{"max_body_bytes": 1 << 20, **server})
        self.connection = self.server.connection()
        self.connection.connection_made(self.transport)
        self.encoder = hpack.Encoder()
        self.requests: list[bytes] = []

    def _echo(self, stream: http2.Stream) -> None:
        self.requests.append(bytes(stream.body))
        stream.respond(b"\x88", bytes(stream.body), b"\x88")

    def send(self, data: bytes, step: int = 1 << 30) -> list[tuple[int, int, int, bytes]]:
        """The frames written in return."""
        self.transport.written.clear()
        for start in range(0, len(data), step):
            self.connection.data_received(data[start : start + step])
        return list(_frames(bytes(self.transport.written)))

    def headers(self, stream: int, flags: int = 4) -> bytes:
        return frame(1, flags, stream, self.encoder.encode([(b":path", b"/p")]))


def _frames(data: bytes) -> Any:
    while data:
        high, low, kind, flags, stream = struct.unpack_from(">HBBBI", data)
        size = high << 8 | low
        yield kind, flags, stream, data[9 : 9 + size]
        data = data[9 + size :]


def _body(frames: list[tuple[int, int, int, bytes]], stream: int) -> bytes:
    return b"".join(payload for kind, _, number, payload in frames if kind == 0 and number == stream)


@pytest.mark.parametrize("step", [1, 7, 1 << 30])
def test_calls_are_answered_however_their_frames_are_cut(step: int) -> None:
    peer = Peer()
    data = _PREFACE + frame(4, 0, 0, b"") + peer.headers(1) + peer.headers(3)
    data += frame(0, 0, 1, b"ab") + frame(0, 8 | 1, 3, b"\x02cdxx") + frame(6, 0, 0, b"pingpong") + frame(0, 1, 1, b"c")
    frames = peer.send(data, step)
    assert _body(frames, 1) == b"abc" and _body(frames, 3) == b"cd"
    assert (6, 1, 0, b"pingpong") in frames and (4, 1, 0, b"") in frames


def test_an_answer_waits_for_the_clients_windows() -> None:
    peer = Peer()
    small = struct.pack(">HI", 4, 10)
    body = bytes(range(256)) * 300
    data = _PREFACE + frame(4, 0, 0, small) + peer.headers(1)
    for start in range(0, len(body), 16000):
        data += frame(0, 0, 1, body[start : start + 16000])
    frames = peer.send(data + frame(0, 1, 1, b""))
    assert _body(frames, 1) == body[:10]
    frames = peer.send(frame(8, 0, 1, struct.pack(">I", 1 << 20)))
    assert len(_body(frames, 1)) == 65535 - 10
    rest = peer.send(frame(8, 0, 0, struct.pack(">I", 1 << 20)))
    assert body[:10] + _body(frames, 1) + _body(rest, 1) == body
    assert rest[-1][:3] == (1, 5, 1)


def test_a_call_that_is_reset_is_forgotten_and_the_rest_go_on() -> None:
    peer = Peer()
    peer.send(_PREFACE + peer.headers(1) + frame(3, 0, 1, bytes(4)))
    frames = peer.send(frame(0, 1, 1, b"late") + peer.headers(3, 5))
    assert _body(frames, 1) == b"" and [f[2] for f in frames if f[0] == 1] == [3, 3]


def test_bodies_of_calls_are_limited_together_and_who_asks_too_much_is_told() -> None:
    peer = Peer(max_body_bytes=1000)
    peer.send(_PREFACE + b"".join(peer.headers(stream) + frame(0, 0, stream, bytes(900)) for stream in (1, 3, 5, 7)))
    too_much = struct.pack(">I", 11)
    assert peer.send(peer.headers(9) + frame(0, 0, 9, bytes(900))) == [(3, 0, 9, too_much)]
    assert _body(peer.send(frame(0, 1, 1, b"")), 1) == bytes(900)
    assert peer.send(peer.headers(11) + frame(0, 0, 11, bytes(900))) == []
    peer.send(frame(3, 0, 3, bytes(4)))
    assert peer.server.buffered_bytes == 2700
    peer.connection.connection_lost(None)
    assert peer.server.buffered_bytes == 0


def test_a_connection_is_dropped_when_all_its_calls_are_stalled(monkeypatch) -> None:
    idle, stalled, answering = Peer(), Peer(), Peer()
    held: list[http2.Stream] = []
    answering.server.handler = held.append
    idle.send(_PREFACE + idle.headers(1, 5))
    stalled.send(_PREFACE + stalled.headers(1) + frame(0, 0, 1, b"x"))
    answering.send(_PREFACE + answering.headers(1, 5) + answering.headers(3))
    _let_a_minute_pass(monkeypatch, http2)
    for peer in (idle, stalled, answering):
        peer.server.drop_stalled()
    assert [peer.transport.closed for peer in (idle, stalled, answering)] == [False, True, False]


def test_leaving_refuses_new_calls_and_closes_after_the_last() -> None:
    peer = Peer()
    peer.send(_PREFACE + peer.headers(1))
    peer.connection.go_away()
    assert (3, 0, 3, struct.pack(">I", 7)) in peer.send(peer.headers(3, 5))
    assert not peer.transport.closed
    assert _body(peer.send(frame(0, 1, 1, b"x")), 1) == b"x"
    assert peer.transport.closed


def test_what_comes_after_the_end_of_a_call_ends_the_connection() -> None:
    peer = Peer()
    peer.server.handler = lambda stream: None
    assert peer.send(_PREFACE + peer.headers(1, 5) + frame(0, 0, 1, b"more"))[-1][0] == 7
    assert peer.transport.closed and peer.server.buffered_bytes == 0


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        _PREFACE + frame(1, 4, 2, b"\x88"),
        _PREFACE + frame(1, 4, 1, b"\xff" * 9),
        _PREFACE + frame(0, 0, 5, b"x"),
        _PREFACE + frame(9, 4, 1, b"x"),
        _PREFACE + frame(1, 0, 1, b"\x88") + frame(6, 0, 0, bytes(8)),
        _PREFACE + frame(6, 0, 0, b"short"),
        _PREFACE + frame(4, 0, 0, b"12345"),
        _PREFACE + frame(4, 0, 0, struct.pack(">HI", 4, 1 << 31)),
        _PREFACE + frame(8, 0, 0, struct.pack(">I", (1 << 31) - 1)),
        _PREFACE + b"\xff\xff\xff\x00\x00\x00\x00\x00\x00",
        _PREFACE + frame(1, 12, 1, b"\xff\x88"),
        _PREFACE + frame(5, 0, 1, b""),
    ],
)
def test_a_peer_that_breaks_the_protocol_is_told_and_left(data: bytes) -> None:
    peer = Peer()
    assert peer.send(data)[-1][0] == 7
    assert peer.transport.closed
