"""A timer of an event loop, to the µs: uvloop's own wait whole ms, and do not wait at all for less than half of one.

Of Linux, `timerfd_create(2)`, which Python's `os` has from 3.13 on; elsewhere the event loop's own timers.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from time import monotonic

_libc = ctypes.CDLL(None, use_errno=True)
_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1


class _Itimerspec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("interval_s", "interval_ns", "at_s", "at_ns")]


class Timer:
    """Calls `expired` on the event loop, once, when a time has come; that may be some time that was asked for before.

    Times are those of `time.monotonic`, not under 0. Raises OSError if the process has no file descriptor left.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[], None]) -> None:
        self._loop = loop
        self._expired = expired
        self._at = float("inf")
        self._handle: asyncio.TimerHandle | None = None
        self._fd = -1
        if hasattr(_libc, "timerfd_create"):
            self._fd = _checked(_libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
            loop.add_reader(self._fd, self._read)

    def wake_at(self, at: float) -> None:
        """Call `expired` at the latest when it is `at`; a time that was asked for before and comes first stays."""
        if at >= self._at:
            return
        self._at = at
        if self._fd < 0:
            if self._handle:
                self._handle.cancel()
            self._handle = self._loop.call_later(max(0.0, at - monotonic()), self._fire)
            return
        seconds = int(at)
        value = _Itimerspec(0, 0, seconds, max(1, int((at - seconds) * 1e9)))
        _checked(_libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(value), None))

    def _read(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # set anew after it had expired
            return
        self._fire()

    def _fire(self) -> None:
        self._at = float("inf")
        self._expired()

    def close(self) -> None:
        """Call no more."""
        self._at = 0.0
        if self._handle:
            self._handle.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def _checked(result: int) -> int:
    """Return what a function of the C library has returned. Raises OSError if it has failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
