"""Nothing is lost on the way: a histogram fed with packed latencies is the one fed with every value."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from launchpad import runfolder
from launchpad.loadtest.latencies import add_to, append, empty, packed, unpacked, values_at

PERCENTILES = (0, 25, 50, 90, 99, 99.9, 100)
IN_RANGE_US = st.one_of(
    st.integers(runfolder.LOWEST_US, 5000),
    st.integers(runfolder.LOWEST_US, runfolder.HIGHEST_US),
    st.integers(0, 29).flatmap(lambda bits: st.integers(max(1, (1 << bits) - 2), min((1 << bits) + 2, 600_000_000))),
)


def handed_over(values_us: list[int]) -> np.ndarray:
    """Return latencies as they arrive behind a pipe."""
    kept = empty()
    for value in values_us:
        append(kept, value * 1000 + 999)  # what is below a µs is cut off
    return unpacked(json.loads(json.dumps(packed(kept))))


def seen(histogram) -> tuple:
    percentiles = [histogram.get_value_at_percentile(p) for p in PERCENTILES]
    ends = histogram.get_min_value(), histogram.get_max_value(), histogram.get_mean_value()
    return histogram.get_total_count(), *ends, *percentiles


@settings(max_examples=10, deadline=None)
@given(st.lists(IN_RANGE_US, max_size=60))
def test_a_histogram_fed_with_what_was_handed_over_is_the_one_fed_with_every_value(values_us):
    direct, through = runfolder.histogram(), runfolder.histogram()
    for value in values_us:
        direct.record_value(value)
    add_to(through, handed_over(values_us))
    assert seen(through) == seen(direct)


@settings(max_examples=40, deadline=None)
@given(st.lists(IN_RANGE_US, min_size=1, max_size=60))
def test_values_at_percentiles_are_those_that_the_histogram_itself_has(values_us):
    histogram = runfolder.histogram()
    add_to(histogram, handed_over(values_us))
    wanted = PERCENTILES[1:]
    assert values_at(histogram, wanted) == [histogram.get_value_at_percentile(p) for p in wanted]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.lists(IN_RANGE_US, max_size=20), max_size=5))
def test_latencies_of_several_processes_merge_into_the_histogram_of_all(parts):
    direct, merged = runfolder.histogram(), runfolder.histogram()
    for part in parts:
        add_to(merged, handed_over(part))
        for value in part:
            direct.record_value(value)
    assert seen(merged) == seen(direct)


def test_what_lies_outside_the_histogram_counts_at_its_ends():
    histogram = runfolder.histogram()
    add_to(histogram, handed_over([0, 10**12]))
    assert histogram.get_total_count() == 2
    assert histogram.get_min_value() == runfolder.LOWEST_US
    assert histogram.get_max_value() >= runfolder.HIGHEST_US
