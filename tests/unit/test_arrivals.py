"""Arrival schedules are fixed by their seed, follow their rate, and are as random as they claim to be."""

from __future__ import annotations

import math

import numpy as np
import pytest

from launchpad.errors import DeclarationError
from launchpad.loadtest.arrivals import RateCurve, constant_rate, evenly, poisson, replay

CRITICAL_KS = 1.63
"""Critical value of Kolmogorov's statistic times √n at a level of 1 %."""


def ks(values: np.ndarray, cumulative) -> float:
    """Return the Kolmogorov-Smirnov statistic times √n of values against a distribution function."""
    values = np.sort(values)
    n = len(values)
    expected = cumulative(values)
    steps = np.arange(n + 1) / n
    return math.sqrt(n) * max(np.max(steps[1:] - expected), np.max(expected - steps[:-1]))


def test_poisson_gaps_are_exponential():
    """Over many seeds the test rejects about as seldom as its level says: 1 in 100."""
    schedules = [poisson(constant_rate(500, 8), seed) for seed in range(300)]
    rejected = [ks(np.diff(due), lambda x: 1 - np.exp(-500 * x)) > CRITICAL_KS for due in schedules]
    assert sum(rejected) <= 9


def test_the_test_itself_tells_even_gaps_from_exponential_ones():
    assert ks(np.diff(evenly(constant_rate(500, 40))), lambda x: 1 - np.exp(-500 * x)) > 10 * CRITICAL_KS


def test_poisson_counts_by_second_vary_as_much_as_their_mean():
    due = poisson(constant_rate(200, 200), seed=11)
    counts = np.histogram(due, bins=200, range=(0, 200))[0]
    assert counts.mean() == pytest.approx(200, rel=0.02)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.3)


def test_a_seed_fixes_the_schedule_and_another_gives_another():
    curve = constant_rate(100, 10)
    assert np.array_equal(poisson(curve, seed=5), poisson(curve, seed=5))
    assert not np.array_equal(poisson(curve, seed=5)[:50], poisson(curve, seed=6)[:50])


def test_schedules_increase_and_stay_within_the_run():
    for due in (poisson(constant_rate(300, 7), seed=1), evenly(constant_rate(300, 7))):
        assert (np.diff(due) >= 0).all() and due[0] >= 0 and due[-1] <= 7


def test_shares_of_a_poisson_process_add_up_to_one():
    """As processes split a rate: the union of four quarters has exponential gaps at the whole rate."""
    quarters = [poisson(constant_rate(400, 50).scaled(1 / 4), seed=seed) for seed in range(4)]
    whole = np.sort(np.concatenate(quarters))
    assert len(whole) == pytest.approx(20_000, rel=0.03)
    assert ks(np.diff(whole), lambda x: 1 - np.exp(-400 * x)) < CRITICAL_KS


def test_constant_arrivals_are_equally_far_apart():
    due = evenly(constant_rate(250, 4))
    assert len(due) == 1000
    assert np.allclose(np.diff(due), 1 / 250)


@pytest.mark.parametrize("schedule", [evenly, lambda curve: poisson(curve, seed=2)])
def test_arrivals_follow_a_curve(schedule):
    """Rates 0 → 1000 in 10 s, then 1000 for 10 s, then nothing: 5000, 10 000 and 0 arrivals."""
    curve = RateCurve((0.0, 10.0, 20.0, 20.000001, 30.0), (0.0, 1000.0, 1000.0, 0.0, 0.0))
    counts = np.histogram(schedule(curve), bins=[0, 10, 20, 30])[0]
    assert counts[0] == pytest.approx(5000, rel=0.04)
    assert counts[1] == pytest.approx(10_000, rel=0.03)
    assert counts[2] <= 1
    rising = schedule(curve)
    rising = rising[rising < 10]
    assert ks(rising, lambda x: (x / 10) ** 2) < CRITICAL_KS


def test_a_very_low_rate_may_have_no_arrival_at_all():
    assert len(poisson(constant_rate(1e-6, 1), seed=0)) == 0


def test_a_trace_is_replayed_from_its_first_timestamp(tmp_path):
    trace = tmp_path / "trace.txt"
    trace.write_text("# from the balancer\n100.5\n100.5  # twice at once\n\n101\n  103.25\n")
    assert replay(trace).tolist() == [0.0, 0.0, 0.5, 2.75]


def test_every_bad_line_of_a_trace_is_named(tmp_path):
    trace = tmp_path / "trace.txt"
    trace.write_text("1.0\nsoon\n2.0\n1.5\n\nnan\n3,5\ninf\n4\n")
    with pytest.raises(DeclarationError) as raised:
        replay(trace)
    problems = raised.value.problems
    assert [problem.where for problem in problems] == [f"trace.txt:{line}" for line in (2, 4, 6, 7, 8)]
    assert "'soon' is no time in seconds" in problems[0].what
    assert "before the line above" in problems[1].what and problems[1].fix == "sort the trace"


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n"])
def test_an_empty_trace_is_refused(tmp_path, content):
    trace = tmp_path / "trace.txt"
    trace.write_bytes(content)
    with pytest.raises(DeclarationError, match="empty"):
        replay(trace)


def test_a_trace_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("binary", "absent"):
        with pytest.raises(DeclarationError, match="cannot be read"):
            replay(tmp_path / name)
