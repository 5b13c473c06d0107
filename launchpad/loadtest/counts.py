"""Latencies counted while a load runs: cheap to record, exact to merge.

Values are rounded down to 11 significant bits, which is how an HdrHistogram with three significant digits and a lowest
value of 1 files them (2048 sub-buckets); adding the counts to such a histogram loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hdrh.histogram import HdrHistogram

from launchpad.runfolder import HIGHEST_US, LOWEST_US

SIGNIFICANT_BITS = 11

Counts = dict[int, int]
"""{latency in µs, rounded: how many}"""


def count(counts: Counts, latency_ns: int) -> None:
    """Add one latency."""
    value = latency_ns // 1000
    excess = value.bit_length() - SIGNIFICANT_BITS
    if excess > 0:
        value = value >> excess << excess
    counts[value] = counts.get(value, 0) + 1


def add_to(histogram: HdrHistogram, counts: Mapping[int, int] | Iterable[tuple[int, int]]) -> None:
    """Add counts to a histogram of µs; what lies outside its range counts as its ends."""
    for value, many in counts.items() if isinstance(counts, Mapping) else counts:
        histogram.record_value(min(max(value, LOWEST_US), HIGHEST_US), many)
