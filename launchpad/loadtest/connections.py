"""Keep-alive connections for load generation under gevent: one request at a time each, bodies made beforehand.

They speak as much of HTTP/1.1 and of gRPC over HTTP/2 as a model server's answers need, so that the client takes
little of the machine that it measures. Nothing here knows of models.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import gevent
import grpc
import hpack
import httptools
from gevent.hub import get_hub

NUMERIC = re.compile(r"\d+\.\d+\.\d+\.\d+")
RECEIVE_BYTES = 64 * 1024
IDLE_S = 1.0
"""Pause between two calls after which a connection is looked at before it is used: the server may have closed it."""


class NoAnswer(Exception):
    """The connection broke, was refused, or no answer came in time; `kind` names which."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True)
class Answer:
    """What a server said. `kind` is empty for a good answer, else `HTTP 503`, `UNAVAILABLE` or the like."""

    kind: str
    body: bytes


class Connection(ABC):
    """A connection to a server, opened when it is first needed and again after it broke."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._address = (host, port)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._used_s = 0.0

    def call(self, request: bytes) -> Answer:
        """Send a request made by this kind of connection's `request` function and wait for its answer.

        Raises NoAnswer; the next call opens a new connection.
        """
        try:
            with gevent.Timeout(self._timeout_s, NoAnswer("timeout")):
                if self._socket is not None and time.monotonic() - self._used_s > IDLE_S:
                    self._catch_up()
                if self._socket is None:
                    self._open()
                answer = self._exchange(request)
                self._used_s = time.monotonic()
                return answer
        except OSError as error:
            self.close()
            raise NoAnswer(type(error).__name__) from None
        except BaseException:
            self.close()
            raise

    def open(self) -> None:
        """Open the connection ahead of the first call. Raises NoAnswer; the call tries again."""
        try:
            with gevent.Timeout(self._timeout_s, NoAnswer("timeout")):
                self._open()
            self._used_s = time.monotonic()
        except (OSError, NoAnswer) as error:
            self.close()
            raise NoAnswer(type(error).__name__) from None

    def close(self) -> None:
        """Close the connection; harmless when it is not open."""
        if self._socket is not None:
            self._watcher.stop()
            self._watcher.close()
            self._socket.close()
            self._socket = None

    def _open(self) -> None:
        opened = self._connected()
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = opened
        # gevent's socket tries to receive before it waits; here the answer is never there yet, so waiting comes first.
        self._raw = opened._sock  # type: ignore[attr-defined]
        hub = get_hub()
        self._watcher = hub.loop.io(opened.fileno(), 1)
        self._wait = hub.wait
        self._greet()

    def _connected(self) -> socket.socket:
        """Return a connected socket. A numeric address is not looked up: that takes a thread, and milliseconds."""
        if not NUMERIC.fullmatch(self._address[0]):
            return socket.create_connection(self._address)
        opened = socket.socket()
        try:
            opened.connect(self._address)
        except BaseException:
            opened.close()
            raise
        return opened

    def _catch_up(self) -> None:
        """Act on what came since the last call; close the connection if the server has no more use for it."""
        try:
            data = self._raw.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or not self._unasked(data):
            self.close()

    def _send(self, data: bytes) -> None:
        try:
            sent = self._raw.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._socket.sendall(memoryview(data)[sent:])  # type: ignore[union-attr]

    def _receive(self) -> bytes:
        self._wait(self._watcher)
        data = self._raw.recv(RECEIVE_BYTES)
        if not data:
            raise NoAnswer("connection closed")
        return data

    @abstractmethod
    def _greet(self) -> None:
        """Do what the protocol wants of a new connection."""

    @abstractmethod
    def _unasked(self, data: bytes) -> bool:
        """Take what came between two calls; tell whether the connection can still be used."""

    @abstractmethod
    def _exchange(self, request: bytes) -> Answer:
        """Send a request and receive its answer."""


class RestConnection(Connection):
    """HTTP/1.1, parsed incrementally by llhttp."""

    @staticmethod
    def request(host: str, path: str, body: bytes) -> bytes:
        """Return the bytes of a POST of a JSON body."""
        head = [
            f"POST {path} HTTP/1.1",
            f"Host: {host}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "\r\n",
        ]
        return "\r\n".join(head).encode() + body

    def _greet(self) -> None:
        self._parser = httptools.HttpResponseParser(self)

    def _unasked(self, data: bytes) -> bool:
        return False  # HTTP/1.1 has nothing to say without a request

    def _exchange(self, request: bytes) -> Answer:
        self._parts: list[bytes] = []
        self._complete = False
        self._send(request)
        while not self._complete:
            try:
                self._parser.feed_data(self._receive())
            except httptools.HttpParserError as error:
                raise NoAnswer("no HTTP") from error
        status = self._parser.get_status_code()
        if not self._keep_alive:
            self.close()
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        return Answer("" if status == 200 else f"HTTP {status}", body)

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        self._complete = True
        self._keep_alive = self._parser.should_keep_alive()  # known only while the message ends


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
MAX_FRAME = 16384
WINDOW = (1 << 31) - 1
HALF_WINDOW = 1 << 30
MAX_BLOCKS = 16

_FRAME_HEAD = struct.Struct(">HBBBI")  # the length has three bytes

GRPC_CODES = [code.name for code in grpc.StatusCode]
"""Names by number."""


class GrpcConnection(Connection):
    """Unary gRPC calls over HTTP/2 (RFC 9113, gRPC's protocol-http2 document), one stream after the other."""

    @staticmethod
    def request(host: str, path: str, message: bytes) -> bytes:
        """Return the frames of a unary call but for the stream id, which `_exchange` puts in.

        The head is the header block alone, in literals that need no compression state; behind it the message with
        gRPC's five-byte prefix.
        """
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", host),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        block = b"".join(
            b"\x00" + bytes([len(name)]) + name.encode() + _short(len(value)) + value.encode()
            for name, value in headers
        )
        return struct.pack(">I", len(block)) + block + struct.pack(">BI", 0, len(message)) + message

    def _greet(self) -> None:
        self._decoder = hpack.Decoder()
        self._blocks: dict[bytes, dict[str, str]] = {}
        self._stream = -1
        self._buffer = b""
        self._received = 0
        self._peer_window = 65535
        self._peer_initial = 65535
        self._leaving = False
        settings = struct.pack(">HI", 4, WINDOW) + struct.pack(">HI", 1, 0)
        self._send(
            PREFACE + _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW - 65535))
        )

    def _exchange(self, request: bytes) -> Answer:
        size = struct.unpack_from(">I", request)[0]
        self._stream += 2
        self._trailers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._ended = False
        self._stream_window = self._peer_initial
        head = _frame(HEADERS, END_HEADERS, self._stream, request[4 : 4 + size])
        message = memoryview(request)[4 + size :]
        self._send_message(head, message)
        while not self._ended:
            self._take(self._receive())
        if self._leaving:
            self.close()
        code = self._trailers.get("grpc-status", "")
        if code == "0":
            return Answer("", b"".join(self._body)[5:])
        name = GRPC_CODES[int(code)] if code.isdigit() and int(code) < len(GRPC_CODES) else "no grpc-status"
        return Answer(name, unquote_to_bytes(self._trailers.get("grpc-message", "")))

    def _unasked(self, data: bytes) -> bool:
        try:
            self._take(data)
        except NoAnswer:
            return False
        return not self._leaving

    def _send_message(self, head: bytes, message: memoryview) -> None:
        """Send a message in frames, as far as the peer's flow-control windows reach; wait where they end."""
        out: list[bytes | memoryview] = [head]
        start = 0
        while start < len(message) and not self._ended:
            room = min(self._peer_window, self._stream_window, MAX_FRAME)
            if room <= 0:
                self._send(b"".join(out))
                out = []
                self._take(self._receive())
                continue
            part = message[start : start + room]
            start += len(part)
            self._peer_window -= len(part)
            self._stream_window -= len(part)
            out.append(_frame_head(len(part), DATA, END_STREAM if start == len(message) else 0, self._stream))
            out.append(part)
        self._send(b"".join(out))

    def _take(self, data: bytes) -> None:
        """Act on the whole frames among what has been received."""
        data = self._buffer + data if self._buffer else data
        start = 0
        while len(data) - start >= 9:
            size = int.from_bytes(data[start : start + 3], "big")
            if size > MAX_FRAME:
                raise NoAnswer("no HTTP/2")
            if len(data) - start - 9 < size:
                break
            kind, flags = data[start + 3], data[start + 4]
            stream = int.from_bytes(data[start + 5 : start + 9], "big") & WINDOW
            try:
                self._on_frame(kind, flags, stream, data[start + 9 : start + 9 + size])
            except (hpack.HPACKError, struct.error, IndexError) as error:
                raise NoAnswer("no HTTP/2") from error
            start += 9 + size
        self._buffer = data[start:]

    def _on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._on_data(flags, stream, payload)
        elif kind == HEADERS:
            self._on_headers(flags, stream, payload)
        elif kind == SETTINGS and not flags & ACK:
            self._on_settings(payload)
        elif kind == WINDOW_UPDATE:
            grown = int.from_bytes(payload, "big") & WINDOW
            if stream == 0:
                self._peer_window += grown
            elif stream == self._stream:
                self._stream_window += grown
        elif kind == PING and not flags & ACK:
            self._send(_frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM and stream == self._stream:
            if not self._ended:  # behind a whole answer it says that the rest of the request is not needed
                raise NoAnswer("stream reset")
        elif kind == GOAWAY:
            self._leaving = True
            if int.from_bytes(payload[:4], "big") & WINDOW < self._stream:
                raise NoAnswer("server is going away")
        elif kind == CONTINUATION:
            raise NoAnswer("header block in parts")

    def _on_data(self, flags: int, stream: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received >= HALF_WINDOW:
            self._send(_frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
            self._received = 0
        if stream == self._stream:
            self._body.append(payload[1 : len(payload) - payload[0]] if flags & PADDED else payload)
            self._ended = bool(flags & END_STREAM)

    def _on_headers(self, flags: int, stream: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if flags & PRIORITY:
            payload = payload[5:]
        if not flags & END_HEADERS:
            raise NoAnswer("header block in parts")
        headers = self._decoded(payload)
        if stream == self._stream:
            self._trailers.update(headers)
            self._ended = bool(flags & END_STREAM)

    def _decoded(self, block: bytes) -> dict[str, str]:
        """Return the headers of a block. Blocks without compression state, as most are, are decoded once."""
        table = self._decoder.header_table
        stateless = not table.dynamic_entries
        if stateless and block in self._blocks:
            return self._blocks[block]
        headers = {str(name): str(value) for name, value in self._decoder.decode(block)}
        if stateless and not table.dynamic_entries and len(self._blocks) < MAX_BLOCKS:
            self._blocks[block] = headers
        return headers

    def _on_settings(self, payload: bytes) -> None:
        for start in range(0, len(payload) - 5, 6):
            name, value = struct.unpack_from(">HI", payload, start)
            if name == 4:
                self._stream_window = getattr(self, "_stream_window", value) + value - self._peer_initial
                self._peer_initial = value
        self._send(_frame(SETTINGS, ACK, 0, b""))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _frame_head(len(payload), kind, flags, stream) + payload


def _frame_head(length: int, kind: int, flags: int, stream: int) -> bytes:
    return _FRAME_HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream)


def _short(length: int) -> bytes:
    """Return an HPACK string length in seven bits, with continuation where it takes more."""
    if length < 127:
        return bytes([length])
    rest = length - 127
    out = bytearray([127])
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    out.append(rest)
    return bytes(out)
