"""Ctrl-C, which the end of a terminal or of a time limit is like, and what must not be left half done by it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""What a time limit or a supervisor sends, and a terminal that is closed."""


@contextmanager
def alike() -> Iterator[None]:
    """Have the signals that would end this process interrupt the block as Ctrl-C does, so that it can tidy up.

    KeyboardInterrupt then has the signal's number as its argument. One that is ignored (`nohup`) or has a handler stays
    as it is; so do all outside the main thread.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    ours = threading.current_thread() is threading.main_thread()
    changed = [number for number in ENDING if ours and signal.getsignal(number) == signal.SIG_DFL]
    for number in changed:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def deferred() -> Iterator[None]:
    """Have an interrupt take effect at the end of the block; a second one does at once. For the main thread."""
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, remember)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt(came[0])
