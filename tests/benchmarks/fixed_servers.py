"""Servers of which everything is known beforehand: one fixed answer, and when it comes.

    python -m tests.benchmarks.fixed_servers grpc PORT               # at once, over gRPC
    python -m tests.benchmarks.fixed_servers delay PORT 0.005        # 5 ms after the request, over HTTP
    python -m tests.benchmarks.fixed_servers stall PORT 10 0.5       # at once, but for 0.5 s in every 10 s at their end
    python -m tests.benchmarks.fixed_servers queue PORT 0.002        # one server that takes 2 ms for each, first come

Event loops count in whole ms: answers are timed by a timerfd and polled for at the end. GET /lateness tells how much
later than promised they were written all the same, at p50, p99 and p99.9 in ms: by that the truth is off.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import itertools
import os
import struct
import sys
import time
from collections.abc import Callable

import httptools
import numpy as np
import orjson
import uvloop

from launchpad.loadtest.pacer import CLOCK_MONOTONIC, SECOND_NS, TFD_NONBLOCK, TFD_TIMER_ABSTIME, _Itimerspec, _Timespec
from tests.benchmarks.loadgen_setting import REST_ANSWER, grpc_answer

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
HTTP_ANSWER = HEAD % len(REST_ANSWER) + REST_ANSWER

LATENESS = b"/lateness"
POLL_NS = 300_000

When = Callable[[int], int]
"""Returns when a request is answered that came at a time, both in ns of the monotonic clock."""


def delay(seconds: str) -> When:
    length = int(float(seconds) * SECOND_NS)
    return lambda now: now + length


def stall(period_s: str, length_s: str) -> When:
    period, length = int(float(period_s) * SECOND_NS), int(float(length_s) * SECOND_NS)

    def when(now: int) -> int:
        left = period - now % period
        return now + left if left <= length else now

    return when


def queue(service_s: str) -> When:
    service, free = int(float(service_s) * SECOND_NS), 0

    def when(now: int) -> int:
        nonlocal free
        free = max(now, free) + service
        return free

    return when


class Clock:
    """Calls functions at times of the monotonic clock, to a few µs: a timer shortly before, then polling."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._libc = ctypes.CDLL(None)
        self._descriptor = self._libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self.late_ns: list[int] = []
        self._order = itertools.count()
        self._loop = loop
        self._polls = False
        loop.add_reader(self._descriptor, self._timer)

    def at(self, moment: int, call: Callable[[], None]) -> None:
        entry = moment, next(self._order), call
        heapq.heappush(self._due, entry)
        if self._due[0] is entry and not self._polls:
            self._wait()

    def _wait(self) -> None:
        """Have the next one called: by polling when it is near, between what else the loop has to do."""
        early = self._due[0][0] - POLL_NS
        self._polls = early <= time.monotonic_ns()
        if self._polls:
            self._loop.call_soon(self._run)
            return
        when = _Itimerspec(value=_Timespec(*divmod(early, SECOND_NS)))
        self._libc.timerfd_settime(self._descriptor, TFD_TIMER_ABSTIME, ctypes.byref(when), None)

    def _timer(self) -> None:
        os.read(self._descriptor, 8)
        if self._due and not self._polls:
            self._wait()

    def _run(self) -> None:
        self._polls = False
        while self._due and self._due[0][0] <= time.monotonic_ns():
            moment, _, call = heapq.heappop(self._due)
            call()
            self.late_ns.append(time.monotonic_ns() - moment)
        if self._due:
            self._wait()


class Http(asyncio.Protocol):
    """One request at a time on each connection."""

    def __init__(self, when: When, clock: Clock) -> None:
        self._when = when
        self._clock = clock
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_message_complete(self) -> None:
        now = time.monotonic_ns()
        if self._url == LATENESS:
            late = np.percentile(self._clock.late_ns or [0], (50, 99, 99.9)) / 1e6
            body = orjson.dumps(late.round(3).tolist())
            self._transport.write(HEAD % len(body) + body)  # type: ignore[attr-defined]
            return
        moment = self._when(now)
        if moment <= now:
            self._answer()
        else:
            self._clock.at(moment, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(HTTP_ANSWER)  # type: ignore[attr-defined]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


class Grpc(asyncio.Protocol):
    """Answers every call with the same message as soon as its last frame has come."""

    def __init__(self, answer: bytes) -> None:
        self._buffer = b""
        self._greeted = False
        message = struct.pack(">BI", 0, len(answer)) + answer
        self._parts = (
            (1, 4, b"\x88\x0f\x10\x10application/grpc"),
            (0, 0, message),
            (1, 5, b"\x00\x0bgrpc-status\x010"),
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        window = struct.pack(">I", (1 << 31) - 1 - 65535)
        settings = struct.pack(">HI", 4, (1 << 31) - 1) + struct.pack(">HI", 1, 0)
        transport.write(_frame(4, 0, 0, settings) + _frame(8, 0, 0, window))  # type: ignore[attr-defined]
        self._taken = 0

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        start = 0
        if not self._greeted:
            if len(data) < 24:
                self._buffer = data
                return
            start, self._greeted = 24, True
        out = []
        while len(data) - start >= 9:
            size = int.from_bytes(data[start : start + 3], "big")
            if len(data) - start - 9 < size:
                break
            kind, flags = data[start + 3], data[start + 4]
            if kind == 0:
                self._taken += size
                if flags & 1:
                    stream = int.from_bytes(data[start + 5 : start + 9], "big")
                    out += [_frame(kind, flags, stream, payload) for kind, flags, payload in self._parts]
            elif kind == 4 and not flags & 1:
                out.append(_frame(4, 1, 0, b""))
            elif kind == 6 and not flags & 1:
                out.append(_frame(6, 1, 0, data[start + 9 : start + 17]))
            start += 9 + size
        self._buffer = data[start:]
        if self._taken > 1 << 29:
            out.append(_frame(8, 0, 0, struct.pack(">I", self._taken)))
            self._taken = 0
        if out:
            self._transport.write(b"".join(out))  # type: ignore[attr-defined]


async def serve(kind: str, port: int, words: list[str]) -> None:
    loop = asyncio.get_running_loop()
    if kind == "grpc":
        answer = grpc_answer()
        server = await loop.create_server(lambda: Grpc(answer), "127.0.0.1", port)
    else:
        when, clock = {"delay": delay, "stall": stall, "queue": queue}[kind](*words), Clock(loop)
        server = await loop.create_server(lambda: Http(when, clock), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
