"""Latencies counted while a load runs: cheap to record, exact to merge.

Values are rounded down to 11 significant bits, which is how an HdrHistogram with three significant digits and a lowest
value of 1 files them (2048 sub-buckets); adding the counts to such a histogram loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
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
    """Add counts to a histogram of µs; what lies outside its range counts as its ends.

    All at once, for it happens beside the load, once a second, and takes from the processor what the load needs. A
    value's cell is that of the format: its bucket, which halves the resolution each time, and its place in it.
    """
    pairs = np.array([*(counts.items() if isinstance(counts, Mapping) else counts)], np.int64).reshape(-1, 2)
    if not len(pairs):
        return
    values, many = pairs[:, 0].clip(LOWEST_US, HIGHEST_US), pairs[:, 1]
    bucket = np.maximum(np.frexp(values)[1] - SIGNIFICANT_BITS, 0)
    cells = (bucket << SIGNIFICANT_BITS - 1) + (values >> bucket)
    np.add.at(np.frombuffer(histogram.counts, np.uint64), cells, many.astype(np.uint64))
    histogram.total_count += int(many.sum())
    histogram.min_value = min(histogram.min_value, int(values.min()))
    histogram.max_value = max(histogram.max_value, int(values.max()))


def values_at(histogram: HdrHistogram, percentiles: Sequence[float]) -> list[int]:
    """Return the values in µs that `get_value_at_percentile` has for each percentile over 0, all at once as well."""
    totals = np.cumsum(np.frombuffer(histogram.counts, np.uint64))
    ranks = np.maximum(1, (np.asarray(percentiles) * float(totals[-1]) / 100 + 0.5).astype(np.int64))
    cells = np.searchsorted(totals, ranks.astype(np.uint64))
    return [histogram.get_highest_equivalent_value(histogram.get_value_from_index(int(cell))) for cell in cells]
