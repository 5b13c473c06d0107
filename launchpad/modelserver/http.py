"""HTTP/1.1 connections: requests in, answers out, one after the other on each connection.

A client tends to send the same head again and again, so parsed heads are kept and found by their bytes. Bodies are
limited in size, and all bodies under way together in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from time import monotonic
from typing import Any

import httptools

_MAX_HEAD_BYTES = 64 * 1024
_MAX_KEPT_HEADS = 1024
_AFTER_PATH = re.compile(rb"[?#].*")
STALL_LIMIT_S = 60.0
"""How long a request may make no progress while it is being sent."""

_DISCARD_S = 5.0
"""How long a connection that was refused goes on reading."""

_MAX_GUNZIPPED_BYTES = 100 * 1024 * 1024
"""What the original uncompresses at most, whatever the limit here."""

BODIES_LIMIT_FACTOR = 4
"""All bodies that a port is receiving may take this many times the largest body allowed."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request, as far as it matters here; `path` is all that the client asks for, its query included."""

    method: str
    path: str
    keep_alive: bool
    length: int
    chunked: bool
    gzip: bool
    expect_continue: bool


@dataclass(slots=True)
class Response:
    """An answer; `headers` are whole lines. Treat it as immutable."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: tuple[str, ...] = ()


Respond = Callable[[Response], None]
Handler = Callable[[str, str, bytes, Respond], None]
"""Handles a request, given its method, path and body; must answer exactly once, at once or later."""


class BadRequest(Exception):
    """A request that is not HTTP as spoken here; the connection ends with this answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.response = Response(status, f"{message}\n".encode(), "text/plain")


class _HeadReader:
    """Collects what httptools finds in a head."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.keep_alive = True
        self.parser = httptools.HttpRequestParser(self)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.keep_alive = self.parser.should_keep_alive()  # the parser forgets it as a request without a body ends


def parse_head(data: bytes) -> Head:
    """Parse a head that ends with its empty line; raises BadRequest."""
    reader = _HeadReader()
    try:
        with contextlib.suppress(httptools.HttpParserUpgrade):  # which a server may ignore (RFC 9110, section 7.8)
            reader.parser.feed_data(data)
        url = httptools.parse_url(reader.url)
    except httptools.HttpParserError as error:
        raise BadRequest(400, f"Malformed HTTP request: {error}") from None
    headers = reader.headers
    query = _AFTER_PATH.search(reader.url)
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > 18:
        raise BadRequest(400, "Malformed Content-Length")
    coding = headers.get(b"transfer-encoding", b"").lower()
    if coding not in (b"", b"chunked"):
        raise BadRequest(501, "The transfer coding is not supported")
    return Head(
        reader.parser.get_method().decode("latin-1"),
        ((url.path or b"/") + (query[0] if query else b"")).decode("latin-1"),
        reader.keep_alive,
        int(length),
        coding == b"chunked",
        b"gzip" in headers.get(b"content-encoding", b""),
        headers.get(b"expect", b"").lower() == b"100-continue",
    )


class GatheredWriter:
    """Holds answers back until the loop has taken in what lies ready, then writes them one after the other.

    A write wakes the client; were it done at once, a client on the same machine would be woken for every answer
    and find nothing to do in between.
    """

    _LIMIT = 64

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, bytes]] = []

    def write(self, transport: Any, data: bytes) -> None:
        """Write `data` soon."""
        self._waiting.append((transport, data))
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self.flush)
        elif len(self._waiting) >= self._LIMIT:
            self.flush()

    def flush(self) -> None:
        """Write what was held back."""
        waiting, self._waiting = self._waiting, []
        for transport, data in waiting:
            if not transport.is_closing():  # else its client is gone
                transport.write(data)


class HttpServer:
    """What the connections of one port share."""

    def __init__(self, handler: Handler, max_body_bytes: int, writer: GatheredWriter) -> None:
        self.handler = handler
        self.max_body_bytes = max_body_bytes
        self.buffered_bytes = 0
        self.connections: set[HttpConnection] = set()
        self.closing = False
        self.writer = writer
        self._heads: dict[bytes, Head] = {}

    def head(self, data: bytes) -> Head:
        """The head in `data`, parsed if it is a new one; raises BadRequest."""
        head = self._heads.get(data)
        if head is None:
            head = parse_head(data)
            if len(self._heads) >= _MAX_KEPT_HEADS:
                self._heads.clear()
            self._heads[data] = head
        return head

    def admit(self, size: int) -> None:
        """Raises BadRequest if a body that has grown to `size` is too large, or all of them together."""
        if size > self.max_body_bytes:
            raise BadRequest(413, f"The request body exceeds {self.max_body_bytes} bytes")
        if self.buffered_bytes > BODIES_LIMIT_FACTOR * self.max_body_bytes:
            raise BadRequest(503, "Too many request bytes are waiting")

    def connection(self) -> HttpConnection:
        """A protocol for a new connection."""
        return HttpConnection(self)

    def drop_stalled(self) -> None:
        """Close the connections whose request has made no progress for too long."""
        limit = monotonic() - STALL_LIMIT_S
        for connection in list(self.connections):
            connection.drop_if_stalled(limit)

    def announce_leave(self) -> None:
        """From now on close each connection with its next answer, which tells the client so."""
        self.closing = True

    def close_idle(self) -> None:
        """From now on close each connection when it has no request under way."""
        self.closing = True
        self.writer.flush()
        for connection in list(self.connections):
            connection.close_if_idle()


class HttpConnection(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: Any = None
        self._buffer = bytearray()
        self._head: Head | None = None
        self._chunks: _ChunkedBody | None = None
        self._busy = False
        self._paused = False
        self._unread = False
        self._discarding = False
        self._over = False  # the client sends nothing more
        self._progress = monotonic()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._server.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._forget()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        self._buffer += data
        self._server.buffered_bytes += len(data)
        self._progress = monotonic()
        if not self._busy:
            self._advance()
        elif len(self._buffer) > self._server.max_body_bytes and not self._paused:
            self._transport.pause_reading()
            self._paused = True

    def pause_writing(self) -> None:
        """Take nothing more from a client that does not read its answers."""
        self._unread = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._unread = False
        if self._transport is not None:
            self._transport.resume_reading()
            self._advance()

    def eof_received(self) -> bool:
        self._over = True
        return self._busy and not self._discarding

    def _advance(self) -> None:
        """Handle the requests that are complete; end when no more can become so."""
        try:
            while not (self._busy or self._unread or self._discarding) and self._transport is not None:
                if self._head is None and not self._take_head():
                    break
                body = self._take_body()
                if body is None:
                    break
                self._handle(body)
        except BadRequest as error:
            self._refuse(error.response)
        if self._over and not (self._busy or self._unread or self._discarding):
            self._server.writer.flush()
            self._end()

    def _take_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD_BYTES:
                raise BadRequest(431, "The request head is too large")
            return False
        self._head = self._server.head(self._cut(end + 4))
        if self._head.chunked:
            self._chunks = _ChunkedBody()
        else:
            self._server.admit(self._head.length)
        if self._head.expect_continue and not self._buffer:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _take_body(self) -> bytes | None:
        """The body, once it is all there."""
        head = self._head
        assert head is not None
        if self._chunks is not None:
            before = len(self._chunks.body)
            self._cut(self._chunks.feed(self._buffer))
            self._server.buffered_bytes += len(self._chunks.body) - before
            self._server.admit(self._chunks.size)
            if not self._chunks.complete:
                return None
            body = self._take_chunks()
        elif len(self._buffer) < head.length:
            self._server.admit(head.length)
            return None
        else:
            body = self._cut(head.length)
        return _gunzip(body, self._server.max_body_bytes) if head.gzip else body

    def _take_chunks(self) -> bytes:
        """What has come in chunks, which are over; empty where there are none."""
        chunks, self._chunks = self._chunks, None
        if chunks is None:
            return b""
        self._server.buffered_bytes -= len(chunks.body)
        return bytes(chunks.body)

    def _forget(self) -> None:
        """Let go of what has come of a request."""
        self._cut(len(self._buffer))
        self._take_chunks()
        self._head = None

    def _cut(self, size: int) -> bytes:
        data = bytes(memoryview(self._buffer)[:size]) if size < len(self._buffer) else bytes(self._buffer)
        del self._buffer[:size]
        self._server.buffered_bytes -= size
        return data

    def _handle(self, body: bytes) -> None:
        head = self._head
        assert head is not None
        self._head = None
        self._busy = True
        self._server.handler(head.method, head.path, body, lambda response: self._answer(head, response))

    def _answer(self, head: Head, response: Response) -> None:
        self._busy = False
        if self._transport is None:
            return
        more = head.keep_alive and not self._server.closing and (self._buffer or not self._over)
        self._write(response, keep_alive=bool(more), bare=head.method == "HEAD")
        if self._paused and not self._unread and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        if self._buffer and self._transport is not None:
            asyncio.get_running_loop().call_soon(self._advance)

    def _write(self, response: Response, *, keep_alive: bool, bare: bool = False) -> None:
        body = response.body
        head = _response_head(response.status, response.content_type, len(body), response.headers, keep_alive)
        self._server.writer.write(self._transport, head if bare else head + body)
        if not keep_alive:
            self._server.writer.flush()
            self._transport.close()
            self._transport = None

    def _refuse(self, response: Response) -> None:
        """Answer and end, but go on reading for a while: a client still sending would miss the answer."""
        self._discarding = True
        self._forget()
        self._server.writer.flush()
        head = _response_head(response.status, response.content_type, len(response.body), response.headers, False)
        self._transport.write(head + response.body)
        self._transport.write_eof()
        asyncio.get_running_loop().call_later(_DISCARD_S, self._end)

    def _end(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def drop_if_stalled(self, limit: float) -> None:
        """Close if a request is only partly here and nothing has come since `limit`."""
        if self._partial and not self._busy and self._progress < limit and self._transport is not None:
            self._transport.abort()

    def close_if_idle(self) -> None:
        """Close if no request is under way; one that is partly here may still come to its end."""
        if not self._busy and not self._partial and self._transport is not None:
            self._transport.close()

    @property
    def _partial(self) -> bool:
        return self._head is not None or bool(self._buffer)


@lru_cache(maxsize=4096)
def _response_head(status: int, content_type: str, length: int, headers: tuple[str, ...], keep_alive: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}",
        f"Content-Type: {content_type}",
        f"Content-Length: {length}",
        *headers,
    ]
    if not keep_alive:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


_REASONS = {status.value: status.phrase for status in HTTPStatus} | {499: "Client Closed Request"}


def _gunzip(body: bytes, limit: int) -> bytes:
    """The body uncompressed; nothing, as in the original, of one that is no gzip or that is too large for the original.

    Raises BadRequest for one that is larger than `limit`.
    """
    decompressor = zlib.decompressobj(wbits=31)
    try:
        plain = decompressor.decompress(body, min(limit, _MAX_GUNZIPPED_BYTES) + 1)
    except zlib.error:
        return b""
    if len(plain) > limit:
        raise BadRequest(413, f"The request body exceeds {limit} bytes")
    return plain if decompressor.eof and len(plain) <= _MAX_GUNZIPPED_BYTES else b""


class _ChunkedBody:
    """A body that comes in chunks, each with its size in hexadecimal before it."""

    _MAX_LINE = 1024

    def __init__(self) -> None:
        self.body = bytearray()
        self.complete = False
        self._missing = 0
        self._in_chunk = False
        self._in_trailer = False

    @property
    def size(self) -> int:
        """Bytes received or announced so far."""
        return len(self.body) + self._missing

    def feed(self, data: bytearray) -> int:
        """Take what can be taken from the front of `data`; return how much that was. Raises BadRequest."""
        used = 0
        while not self.complete:
            step = self._chunk(data, used) if self._in_chunk else self._line(data, used)
            if not step:
                break
            used += step
        return used

    def _chunk(self, data: bytearray, start: int) -> int:
        if self._missing:
            part = data[start : start + self._missing]
            self.body += part
            self._missing -= len(part)
            return len(part)
        if len(data) < start + 2:
            return 0
        if data[start : start + 2] != b"\r\n":
            raise BadRequest(400, "Malformed chunk")
        self._in_chunk = False
        return 2

    def _line(self, data: bytearray, start: int) -> int:
        end = data.find(b"\r\n", start)
        if end < 0:
            if len(data) - start > self._MAX_LINE:
                raise BadRequest(400, "Malformed chunk")
            return 0
        line = bytes(data[start:end])
        if self._in_trailer:
            self.complete = not line
        else:
            self._begin_chunk(line.partition(b";")[0].strip())
        return end + 2 - start

    def _begin_chunk(self, size: bytes) -> None:
        try:
            if not size.isalnum() or len(size) > 15:
                raise ValueError
            self._missing = int(size, 16)
        except ValueError:
            raise BadRequest(400, "Malformed chunk size") from None
        self._in_trailer = self._missing == 0
        self._in_chunk = not self._in_trailer
