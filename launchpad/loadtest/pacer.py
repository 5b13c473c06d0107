"""Waiting for a moment under gevent, to some tens of microseconds: a timerfd, since libev's own timers count in ms."""

from __future__ import annotations

import ctypes
import os
import time

from gevent.hub import get_hub

CLOCK_MONOTONIC = 1
TFD_NONBLOCK = os.O_NONBLOCK
TFD_TIMER_ABSTIME = 1
SECOND_NS = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_ = [("interval", _Timespec), ("value", _Timespec)]


class Pacer:
    """Waits until points in time of `time.perf_counter_ns`, which on Linux is the monotonic clock."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        hub = get_hub()
        self._watcher = hub.loop.io(self._descriptor, 1)
        self._wait = hub.wait

    def wait_until(self, moment_ns: int) -> None:
        """Let other greenlets run until the moment; return at once if it has passed."""
        if moment_ns <= time.perf_counter_ns():
            return
        when = _Itimerspec(value=_Timespec(*divmod(moment_ns, SECOND_NS)))
        self._libc.timerfd_settime(self._descriptor, TFD_TIMER_ABSTIME, ctypes.byref(when), None)
        self._wait(self._watcher)
        os.read(self._descriptor, 8)

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        os.close(self._descriptor)
