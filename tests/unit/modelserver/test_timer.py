"""The event loop's timer: exact, and idle while it waits."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest
import uvloop

from launchpad.modelserver import timer
from launchpad.modelserver.timer import Timer

both_kinds = pytest.mark.parametrize("library", [timer._libc, object()], ids=["timerfd", "event loop"])
"""On a system without `timerfd_create` both are the event loop's."""


@both_kinds
def test_calls_when_the_time_has_come_and_not_before(library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer, "_libc", library)

    async def wait() -> float:
        expired = asyncio.Event()
        one = Timer(asyncio.get_running_loop(), expired.set)
        at = monotonic() + 0.01
        one.wake_at(at)
        await asyncio.wait_for(expired.wait(), 5)
        one.close()
        return monotonic() - at

    assert asyncio.run(wait()) >= 0


@both_kinds
def test_what_comes_first_counts_whatever_was_asked_for_before_or_after(
    library: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timer, "_libc", library)

    async def wait() -> tuple[int, float]:
        calls: list[float] = []
        one = Timer(asyncio.get_running_loop(), lambda: calls.append(monotonic()))
        began = monotonic()
        for after in (60, 0.01, 30):
            one.wake_at(began + after)
        while not calls:
            await asyncio.sleep(0.001)
        one.wake_at(monotonic() + 0.01)
        while len(calls) < 2 and monotonic() < began + 5:
            await asyncio.sleep(0.001)
        one.close()
        return len(calls), calls[0] - began

    calls, first = asyncio.run(wait())
    assert calls == 2
    assert first < 30


@both_kinds
def test_a_time_that_has_passed_is_now(library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer, "_libc", library)

    async def wait() -> None:
        expired = asyncio.Event()
        one = Timer(asyncio.get_running_loop(), expired.set)
        one.wake_at(0.0)
        await asyncio.wait_for(expired.wait(), 5)
        one.close()

    asyncio.run(wait())


@both_kinds
def test_calls_no_more_once_it_is_closed(library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timer, "_libc", library)

    async def wait() -> list[int]:
        calls: list[int] = []
        one = Timer(asyncio.get_running_loop(), lambda: calls.append(1))
        one.wake_at(monotonic() + 0.005)
        one.close()
        one.wake_at(monotonic() + 0.005)
        one.close()
        await asyncio.sleep(0.03)
        return calls

    assert asyncio.run(wait()) == []


@pytest.mark.skipif(not hasattr(timer._libc, "timerfd_create"), reason="what the kernel's timer is for")
def test_the_loop_is_idle_while_less_than_half_a_ms_is_waited() -> None:
    """uvloop's own timers make it go round and round until then."""

    async def wait() -> int:
        expired, at, turns = asyncio.Event(), 0.0, 0

        def look() -> None:
            nonlocal turns
            turns += 1
            if monotonic() < at:
                one.wake_at(at)
            else:
                expired.set()

        one = Timer(asyncio.get_running_loop(), look)
        for _ in range(20):
            at = monotonic() + 0.0004
            expired.clear()
            look()
            await expired.wait()
        one.close()
        return turns

    assert uvloop.run(wait()) <= 4 * 20
