"""What ends a process from outside: like Ctrl-C, and not in the middle of what must not be left half done."""

from __future__ import annotations

import signal

import pytest

from launchpad import interrupts


@pytest.fixture(autouse=True)
def heeded():
    """Under `nohup` tests are started deaf to the end of the terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", interrupts.ENDING)
def test_the_end_of_a_time_limit_or_of_a_terminal_is_like_ctrl_c(number):
    with pytest.raises(KeyboardInterrupt) as raised, interrupts.alike():
        signal.raise_signal(number)
    assert raised.value.args == (number,)
    assert signal.getsignal(number) == signal.SIG_DFL


def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interrupts.alike():
        signal.raise_signal(signal.SIGHUP)
        with interrupts.deferred():
            signal.raise_signal(signal.SIGHUP)


@pytest.mark.parametrize("number", [signal.SIGINT, *interrupts.ENDING])
def test_an_interrupt_waits_for_the_end_of_the_block(number):
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        signal.raise_signal(number)
        done.append("all")
    assert done == ["all"]


def test_who_insists_is_obeyed_at_once():
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the second interrupt was ignored")
