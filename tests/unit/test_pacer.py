"""The pacer returns at its moment and not before, and lets others run in between."""

from __future__ import annotations

import os
import time

import gevent
import pytest

from launchpad.loadtest.pacer import Pacer

MS = 1_000_000


@pytest.fixture
def pacer():
    made = Pacer()
    yield made
    made.close()


def test_it_never_returns_early(pacer):
    for wait_ns in (1000, 50_000, 300_000, 1_500_000, 700, 2_000_000):
        moment = time.perf_counter_ns() + wait_ns
        pacer.wait_until(moment)
        assert time.perf_counter_ns() >= moment


def test_a_moment_that_has_passed_is_not_waited_for(pacer):
    pacer.wait_until(time.perf_counter_ns() - 5 * MS)
    pacer.wait_until(0)


def test_other_greenlets_run_while_it_waits(pacer):
    ran = []
    gevent.spawn(ran.append, "another")
    pacer.wait_until(time.perf_counter_ns() + 5 * MS)
    assert ran == ["another"]


def test_pacers_do_not_disturb_each_other():
    order = []

    def wait(pacer: Pacer, name: str, moment: int) -> None:
        pacer.wait_until(moment)
        order.append(name)

    now = time.perf_counter_ns()
    pacers = [Pacer() for _ in range(3)]
    moments = {"third": now + 30 * MS, "first": now + 10 * MS, "second": now + 20 * MS}
    waiting = [gevent.spawn(wait, *rest) for rest in zip(pacers, moments, moments.values(), strict=True)]
    gevent.joinall(waiting, raise_error=True)
    for pacer in pacers:
        pacer.close()
    assert order == ["first", "second", "third"]


def test_a_closed_pacer_leaves_nothing_open():
    before = _descriptors()
    for _ in range(20):
        pacer = Pacer()
        pacer.wait_until(time.perf_counter_ns() + 100_000)
        pacer.close()
    assert _descriptors() <= before + 1  # gevent's hub may open one of its own


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
