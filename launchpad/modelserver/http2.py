"""HTTP/2 connections as gRPC needs them: many requests at a time, each with one body, answered with trailers.

Framing and flow control of RFC 9113, server side, without push and priorities. Header compression is the hpack
library's; since a client sends the same header block again and again, decoded blocks are kept as long as the
compression state stays as it is.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import hpack
from hpack.table import HeaderTable

from .http import BODIES_LIMIT_FACTOR, STALL_LIMIT_S

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME = struct.Struct(">HBBBI")
_FRAME_SIZE = 9
_MAX_FRAME = 16384
_DEFAULT_WINDOW = 65535
_MAX_WINDOW = (1 << 31) - 1
_STREAM_WINDOW = 8 << 20
_CONNECTION_WINDOW = 64 << 20
_MAX_HEADER_BLOCK = 64 * 1024
_MAX_KEPT_BLOCKS = 256

_DATA, _HEADERS, _PRIORITY, _RESET, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW, _CONTINUATION = range(10)
_END_STREAM = 0x1
_ACK = 0x1
_END_HEADERS = 0x4
_PADDED = 0x8
_HAS_PRIORITY = 0x20

_NO_ERROR, _PROTOCOL_ERROR, _INTERNAL_ERROR, _FLOW_CONTROL_ERROR = 0, 1, 2, 3
_STREAM_CLOSED, _FRAME_SIZE_ERROR, _REFUSED_STREAM, _COMPRESSION_ERROR = 5, 6, 7, 9
_ENHANCE_YOUR_CALM = 11

_HEADER_TABLE_SIZE, _MAX_STREAMS_SETTING, _INITIAL_WINDOW_SETTING, _MAX_FRAME_SETTING = 1, 3, 4, 5

Headers = Mapping[bytes, bytes]


class ConnectionFault(Exception):
    """The peer broke the protocol; the connection ends with this error code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """A frame, ready to be sent."""
    size = len(payload)
    return _FRAME.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


class _WatchedTable(HeaderTable):  # type: ignore[misc]
    """A header table that tells when its content changes."""

    changes = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.changes += 1
        super().add(name, value)

    def _shrink(self) -> None:
        self.changes += 1
        super()._shrink()


class HeaderDecoder:
    """Decodes the header blocks of one connection."""

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=_MAX_HEADER_BLOCK)
        self._table = self._decoder.header_table = _WatchedTable()
        self._table.changes = 0
        self._kept: dict[bytes, Headers] = {}
        self._kept_at = 0

    def decode(self, block: bytes) -> Headers:
        """The headers in a block; of equal names the last counts. Raises ConnectionFault."""
        if self._table.changes == self._kept_at:
            headers = self._kept.get(block)
            if headers is not None:
                return headers
        try:
            headers = {bytes(name): bytes(value) for name, value in self._decoder.decode(block, raw=True)}
        except (hpack.HPACKError, IndexError, ValueError, UnicodeDecodeError):
            raise ConnectionFault(_COMPRESSION_ERROR, "malformed header block") from None
        if self._table.changes != self._kept_at or len(self._kept) >= _MAX_KEPT_BLOCKS:
            self._kept.clear()
            if self._table.changes != self._kept_at:
                self._kept_at = self._table.changes
                return headers
        self._kept[block] = headers
        return headers


class Stream:
    """One request and its answer."""

    __slots__ = ("_connection", "body", "closed", "ended", "headers", "id", "sending", "unacknowledged", "window")

    def __init__(self, connection: Http2Connection, stream_id: int, headers: Headers, window: int) -> None:
        self._connection = connection
        self.id = stream_id
        self.headers = headers
        self.body = bytearray()
        self.unacknowledged = 0
        self.window = window
        self.sending: deque[bytes] | None = None
        self.ended = False
        self.closed = False

    def begin(self, head: bytes, body: bytes) -> None:
        """Send the first part of an answer that goes on; `respond` with an empty `head` ends it."""
        if not self.closed:
            self._connection.begin(self, head, body)

    def respond(self, head: bytes, body: bytes, trailers: bytes) -> None:
        """Answer with header blocks that use no compression state; `body` may be empty. Does nothing if the
        client has gone."""
        if not self.closed:
            self._connection.send(self, head, body, trailers)


Handler = Callable[[Stream], None]
"""Handles a complete request; must respond to the stream once, at once or later."""


class Http2Server:
    """What the connections of one port share."""

    def __init__(self, handler: Handler, max_body_bytes: int, max_streams: int | None = None) -> None:
        self.handler = handler
        self.max_body_bytes = max_body_bytes
        self.max_streams = max_streams
        self.buffered_bytes = 0
        self.connections: set[Http2Connection] = set()

    @property
    def full(self) -> bool:
        """Whether the bodies that are being received take as much memory as they may."""
        return self.buffered_bytes > BODIES_LIMIT_FACTOR * self.max_body_bytes

    def connection(self) -> Http2Connection:
        """A protocol for a new connection."""
        return Http2Connection(self)

    def drop_stalled(self) -> None:
        """Close the connections on which nothing comes any more, in the middle of a request."""
        limit = monotonic() - STALL_LIMIT_S
        for connection in list(self.connections):
            connection.drop_if_stalled(limit)

    def announce_leave(self) -> None:
        """Ask the clients to open other connections; what they still send on these is answered."""
        for connection in list(self.connections):
            connection.announce_leave()

    def close_idle(self) -> None:
        """Take no new requests; close each connection when its last one is answered."""
        for connection in list(self.connections):
            connection.go_away()


class Http2Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Http2Server) -> None:
        self._server = server
        self._transport: Any = None
        self._buffer = bytearray()
        self._preface_seen = False
        self._decoder = HeaderDecoder()
        self._streams: dict[int, Stream] = {}
        self._last_stream = 0
        self._header_block: tuple[int, int, bytearray] | None = None
        self._window = _DEFAULT_WINDOW
        self._initial_window = _DEFAULT_WINDOW
        self._max_frame = _MAX_FRAME
        self._unacknowledged = 0
        self._blocked: dict[int, Stream] = {}
        self._out = bytearray()
        self._receiving = False
        self._leaving = False
        self._progress = monotonic()
        self._handlers = {
            _DATA: self._on_data,
            _HEADERS: self._on_headers,
            _PRIORITY: self._on_nothing,
            _RESET: self._on_reset,
            _SETTINGS: self._on_settings,
            _PUSH: self._on_push,
            _PING: self._on_ping,
            _GOAWAY: self._on_nothing,
            _WINDOW: self._on_window,
            _CONTINUATION: self._on_continuation,
        }

    # --- the transport ---

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._server.connections.add(self)
        settings = struct.pack(">HI", _INITIAL_WINDOW_SETTING, _STREAM_WINDOW)
        if self._server.max_streams is not None:
            settings += struct.pack(">HI", _MAX_STREAMS_SETTING, self._server.max_streams)
        growth = struct.pack(">I", _CONNECTION_WINDOW - _DEFAULT_WINDOW)
        transport.write(frame(_SETTINGS, 0, 0, settings) + frame(_WINDOW, 0, 0, growth))

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        for stream_id in list(self._streams):
            self._drop(stream_id)
        self._buffer = bytearray()

    def pause_writing(self) -> None:
        """Take nothing more from a client that does not read its answers."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        if self._transport is not None:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._progress = monotonic()
        self._receiving = True
        try:
            if self._preface_seen or self._take_preface():
                self._take_frames()
        except ConnectionFault as fault:
            self._fail(fault)
        finally:
            self._receiving = False
            self._flush()

    def _take_preface(self) -> bool:
        if not _PREFACE.startswith(bytes(self._buffer[: len(_PREFACE)])):
            raise ConnectionFault(_PROTOCOL_ERROR, "not HTTP/2")
        if len(self._buffer) < len(_PREFACE):
            return False
        del self._buffer[: len(_PREFACE)]
        self._preface_seen = True
        return True

    def _take_frames(self) -> None:
        buffer, start = self._buffer, 0
        try:
            while len(buffer) - start >= _FRAME_SIZE and self._transport is not None:
                high, low, kind, flags, stream_id = _FRAME.unpack_from(buffer, start)
                size = high << 8 | low
                if size > _MAX_FRAME:
                    raise ConnectionFault(_FRAME_SIZE_ERROR, "frame too large")
                end = start + _FRAME_SIZE + size
                if end > len(buffer):
                    break
                if self._header_block is not None and kind != _CONTINUATION:
                    raise ConnectionFault(_PROTOCOL_ERROR, "header block interrupted")
                handle = self._handlers.get(kind)
                if handle is not None:
                    handle(flags, stream_id & _MAX_WINDOW, bytes(memoryview(buffer)[start + _FRAME_SIZE : end]))
                start = end
        finally:
            del buffer[:start]

    def _write(self, data: bytes) -> None:
        self._out += data
        if not self._receiving:
            self._flush()

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            self._transport.write(bytes(self._out))
        self._out.clear()
        if self._leaving and not self._streams and self._transport is not None:
            self._transport.close()

    def _fail(self, fault: ConnectionFault) -> None:
        if self._transport is None:
            return
        payload = struct.pack(">II", self._last_stream, fault.code) + fault.reason.encode()
        self._out += frame(_GOAWAY, 0, 0, payload)
        self._flush()
        if self._transport is not None:
            self._transport.close()
            self.connection_lost(None)

    def announce_leave(self) -> None:
        """Tell the client to go elsewhere, and go on answering: the first of the two steps of RFC 9113, 6.8."""
        if self._transport is not None and not self._leaving:
            self._write(frame(_GOAWAY, 0, 0, struct.pack(">II", _MAX_WINDOW, _NO_ERROR)))

    def go_away(self) -> None:
        """Take no new requests; close when the last one is answered."""
        if self._transport is not None and not self._leaving:
            self._leaving = True
            self._write(frame(_GOAWAY, 0, 0, struct.pack(">II", self._last_stream, _NO_ERROR)))

    def drop_if_stalled(self, limit: float) -> None:
        """Close if nothing has come since `limit` though a frame or request is only partly here, and none is whole."""
        partial = not self._preface_seen or self._buffer or self._header_block or self._streams
        whole = any(stream.ended for stream in self._streams.values())
        if partial and not whole and self._progress < limit and self._transport is not None:
            self._transport.abort()

    # --- frames ---

    def _on_nothing(self, flags: int, stream_id: int, payload: bytes) -> None:
        pass

    def _on_push(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise ConnectionFault(_PROTOCOL_ERROR, "clients do not push")

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & (_PADDED | _HAS_PRIORITY):
            payload = _unpad(payload, flags)
            if flags & _HAS_PRIORITY:
                payload = payload[5:]
        if stream_id in self._streams and flags & _END_STREAM:
            self._last_stream = max(self._last_stream, stream_id)
        elif stream_id % 2 == 0 or stream_id <= self._last_stream:
            raise ConnectionFault(_PROTOCOL_ERROR, "bad stream identifier")
        self._last_stream = max(self._last_stream, stream_id)
        if flags & _END_HEADERS:
            self._begin(stream_id, flags, payload)
        else:
            self._header_block = stream_id, flags, bytearray(payload)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._header_block is None or self._header_block[0] != stream_id:
            raise ConnectionFault(_PROTOCOL_ERROR, "unexpected continuation")
        _, first_flags, block = self._header_block
        block += payload
        if len(block) > _MAX_HEADER_BLOCK:
            raise ConnectionFault(_ENHANCE_YOUR_CALM, "header block too large")
        if flags & _END_HEADERS:
            self._header_block = None
            self._begin(stream_id, first_flags, bytes(block))

    def _begin(self, stream_id: int, flags: int, block: bytes) -> None:
        headers = self._decoder.decode(block)
        stream = self._streams.get(stream_id)
        if stream is None:
            limit = self._server.max_streams
            if self._leaving or (limit is not None and len(self._streams) >= limit):
                self._reset(stream_id, _REFUSED_STREAM)
                return
            stream = self._streams[stream_id] = Stream(self, stream_id, headers, self._initial_window)
        if flags & _END_STREAM:
            self._end(stream)

    def _end(self, stream: Stream) -> None:
        if stream.ended:
            raise ConnectionFault(_STREAM_CLOSED, "a request was ended twice")
        stream.ended = True
        self._server.buffered_bytes -= len(stream.body)
        self._server.handler(stream)

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._unacknowledged += size
        if self._unacknowledged > _CONNECTION_WINDOW // 2:
            self._out += frame(_WINDOW, 0, 0, struct.pack(">I", self._unacknowledged))
            self._unacknowledged = 0
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id > self._last_stream or not stream_id:
                raise ConnectionFault(_PROTOCOL_ERROR, "data for a stream that was never opened")
            return
        if stream.ended:
            raise ConnectionFault(_STREAM_CLOSED, "data after the end of a request")
        content = _unpad(payload, flags) if flags & _PADDED else payload
        stream.body += content
        self._server.buffered_bytes += len(content)
        if len(stream.body) > self._server.max_body_bytes + 5:
            flags |= _END_STREAM
        if flags & _END_STREAM:
            self._end(stream)
            return
        if self._server.full:
            self._drop(stream_id)
            self._reset(stream_id, _ENHANCE_YOUR_CALM)  # to a gRPC client RESOURCE_EXHAUSTED
            return
        stream.unacknowledged += size
        if stream.unacknowledged > _STREAM_WINDOW // 2:
            self._out += frame(_WINDOW, 0, stream_id, struct.pack(">I", stream.unacknowledged))
            stream.unacknowledged = 0

    def _on_reset(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(_FRAME_SIZE_ERROR, "bad RST_STREAM")
        self._drop(stream_id)

    def _drop(self, stream_id: int) -> None:
        """Let go of a request that gets no answer, or none any more."""
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return
        stream.closed = True
        self._blocked.pop(stream_id, None)
        if not stream.ended:
            self._server.buffered_bytes -= len(stream.body)

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & _ACK:
            return
        if len(payload) % 6 or stream_id:
            raise ConnectionFault(_FRAME_SIZE_ERROR, "bad SETTINGS")
        for name, value in struct.iter_unpack(">HI", payload):
            self._set(name, value)
        self._out += frame(_SETTINGS, _ACK, 0, b"")
        self._unblock()

    def _set(self, name: int, value: int) -> None:
        if name == _INITIAL_WINDOW_SETTING:
            if value > _MAX_WINDOW:
                raise ConnectionFault(_FLOW_CONTROL_ERROR, "window too large")
            for stream in self._streams.values():
                stream.window += value - self._initial_window
            self._initial_window = value
        elif name == _MAX_FRAME_SETTING:
            if not _MAX_FRAME <= value < 1 << 24:
                raise ConnectionFault(_PROTOCOL_ERROR, "bad frame size")
            self._max_frame = value

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise ConnectionFault(_FRAME_SIZE_ERROR, "bad PING")
        if not flags & _ACK:
            self._out += frame(_PING, _ACK, 0, payload)

    def _on_window(self, flags: int, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(_FRAME_SIZE_ERROR, "bad WINDOW_UPDATE")
        growth = int.from_bytes(payload, "big") & _MAX_WINDOW
        if not stream_id:
            self._window += growth
            if self._window > _MAX_WINDOW:
                raise ConnectionFault(_FLOW_CONTROL_ERROR, "window too large")
        elif stream_id in self._streams:
            self._streams[stream_id].window += growth
        if self._blocked:
            self._unblock()

    # --- sending ---

    def begin(self, stream: Stream, head: bytes, body: bytes) -> None:
        """Send a part, which must be small: a client whose windows have no room for it is refused."""
        size = len(body)
        if size > self._window or size > stream.window:
            self._finish(stream, frame(_RESET, 0, stream.id, struct.pack(">I", _REFUSED_STREAM)))
            return
        self._window -= size
        stream.window -= size
        self._write(frame(_HEADERS, _END_HEADERS, stream.id, head) + frame(_DATA, 0, stream.id, body))

    def send(self, stream: Stream, head: bytes, body: bytes, trailers: bytes) -> None:
        """Send an answer, as far as the client's windows let it out, the rest when they grow."""
        end = frame(_HEADERS, _END_STREAM | _END_HEADERS, stream.id, trailers)
        size = len(body)
        begin = frame(_HEADERS, _END_HEADERS, stream.id, head) if head else b""
        if size <= self._max_frame and size <= self._window and size <= stream.window:
            self._window -= size
            data = frame(_DATA, 0, stream.id, body) if size else b""
            self._finish(stream, begin + data + end)
            return
        self._out += begin
        stream.sending = deque(body[i : i + self._max_frame] for i in range(0, size, self._max_frame))
        stream.sending.append(end)
        self._blocked[stream.id] = stream
        self._unblock()
        if not self._receiving:
            self._flush()

    def _unblock(self) -> None:
        """Send what the windows allow."""
        for stream in list(self._blocked.values()):
            pieces = stream.sending
            assert pieces is not None
            while len(pieces) > 1:
                room = min(self._window, stream.window)
                if room <= 0:
                    break
                piece = pieces.popleft()
                if len(piece) > room:
                    pieces.appendleft(piece[room:])
                    piece = piece[:room]
                self._window -= len(piece)
                stream.window -= len(piece)
                self._out += frame(_DATA, 0, stream.id, piece)
            if len(pieces) == 1:
                del self._blocked[stream.id]
                self._finish(stream, pieces.popleft())

    def _finish(self, stream: Stream, last: bytes) -> None:
        stream.closed = True
        self._streams.pop(stream.id, None)
        self._write(last)

    def _reset(self, stream_id: int, code: int) -> None:
        self._write(frame(_RESET, 0, stream_id, struct.pack(">I", code)))


def _unpad(payload: bytes, flags: int) -> bytes:
    """The payload without the padding that the flag tells of."""
    if not flags & _PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(_PROTOCOL_ERROR, "bad padding")
    return payload[1 : len(payload) - payload[0]]
