"""The capacity search against servers whose capacity is known by construction."""

from __future__ import annotations

import numpy as np
import pytest

from launchpad.loadtest.capacity import ALLOWED_MISSES, RESOLUTION, Misses, Probe, search


def probe_of(capacity_rps: float, limited_above: float = float("inf")):
    """A probe of a server that holds every rate up to its capacity and none above."""

    def probe(rate: float) -> Probe:
        share = 0.0 if rate <= capacity_rps else 1.0
        limited = "the generator was late" if rate > limited_above else ""
        return Probe(rate, 4.0, 1000, share, share, share, 1.0, 2.0, limited)

    return probe


@pytest.mark.parametrize("capacity", [3.0, 57.0, 200.0, 1234.5, 98765.0])
def test_the_search_encloses_the_capacity_as_closely_as_it_says(capacity):
    found = search(probe_of(capacity), start_rps=200)

    assert found.low_rps is not None and found.high_rps is not None
    assert found.low_rps <= capacity < found.high_rps
    assert found.high_rps / found.low_rps <= RESOLUTION
    assert len(found.probes) < 30 and not found.limited


@pytest.mark.parametrize("capacity", [3.0, 950.0, 1100.0, 98765.0])
def test_a_search_that_begins_near_the_capacity_finds_the_same_sooner(capacity):
    near = search(probe_of(capacity), start_rps=1000, step=1.1)

    assert near.low_rps is not None and near.high_rps is not None
    assert near.low_rps <= capacity < near.high_rps
    if 900 < capacity < 1200:
        assert len(near.probes) <= 7


def test_a_stall_that_makes_a_rate_fail_once_does_not_bound_the_capacity():
    steady, stalls = probe_of(1234.5), iter([800.0, 1040.0])
    next_stall = next(stalls)

    def probe(rate: float) -> Probe:
        nonlocal next_stall
        if rate >= next_stall and rate <= 1234.5:
            next_stall = next(stalls, float("inf"))
            return Probe(rate, 4.0, 1000, 0.04, 0.02, 0.06, 1.0, 120.0)
        return steady(rate)

    found = search(probe, start_rps=200)
    assert next_stall == float("inf")
    assert found.low_rps is not None and found.high_rps is not None
    assert found.low_rps <= 1234.5 < found.high_rps and found.high_rps / found.low_rps <= RESOLUTION
    assert [probed.holds for probed in found.probes if probed.rate_rps == found.high_rps] == [False, False]


def test_a_rate_at_which_more_fail_than_may_does_not_hold():
    """Few enough to leave p99 alone, from 300 requests/s on."""

    def probe(rate: float) -> Probe:
        failed = 0.004 if rate > 300 else 0.0
        return Probe(rate, 4.0, 1000, failed, failed, failed, 1.0, 2.0, failed=failed, tolerated=0.001)

    found = search(probe, start_rps=1000)
    assert found.low_rps is not None and found.high_rps is not None
    assert found.low_rps <= 300 < found.high_rps


def test_a_server_that_holds_no_rate_has_no_capacity():
    found = search(probe_of(0.0), start_rps=200)

    assert found.low_rps is None
    assert found.probes[-1].rate_rps < 2


def test_a_generator_that_was_in_the_way_is_said():
    assert search(probe_of(1000, limited_above=900), start_rps=200).limited == "the generator was late"


def test_a_rate_is_clear_only_when_its_interval_is():
    few = Misses([(100, 0), (100, 0), (100, 0)])
    assert few.clear is None  # nothing missed, but of too few to be sure
    assert Misses([(1000, 0)] * 3).clear is True
    assert Misses([(1000, 100)] * 3).clear is False
    assert Misses([(1000, 10)] * 3).clear is None  # at the limit


def test_nothing_is_clear_in_the_first_seconds():
    assert Misses([(100_000, 0)]).clear is None


def test_requests_that_miss_together_say_less_than_as_many_that_miss_alone():
    alone = Misses([(1000, 20)] * 10)
    together = Misses([(1000, 200)] + [(1000, 0)] * 9)

    assert alone.share == together.share
    assert together.design_effect > alone.design_effect == 1
    assert together.interval()[1] > alone.interval()[1]


def test_the_interval_covers_the_true_share_as_often_as_it_promises():
    chance = np.random.default_rng(1)
    covered = 0
    for _ in range(500):
        misses = Misses([(500, int(missed)) for missed in chance.binomial(500, ALLOWED_MISSES, 6)])
        low, high = misses.interval()
        covered += low <= ALLOWED_MISSES <= high
    assert covered / 500 > 0.92
