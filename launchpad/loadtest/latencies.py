"""Latencies on their way from the process that measures them to an HdrHistogram: cheap to keep and to hand over.

What a generator process does once a second beside sending holds up the requests of that moment, and their latency is
the second's p99. So it appends whole µs to an array, and hands over the array's bytes as text that JSON carries; who
takes them counts. Each value is filed in its cell of the histogram, so that merging loses nothing.
"""

from __future__ import annotations

import binascii
from array import array
from collections.abc import Sequence

import numpy as np
from hdrh.histogram import HdrHistogram

from launchpad.runfolder import HIGHEST_US, LOWEST_US

SIGNIFICANT_BITS = 11
"""Of a value, that three significant digits and a lowest value of 1 keep: 2048 sub-buckets."""


def empty() -> array[int]:
    """Return an array of int32, to which latencies in µs are appended."""
    return array("i")


def append(latencies: array[int], latency_ns: int) -> None:
    """Keep a latency in whole µs; what is longer than a histogram counts as its end."""
    latencies.append(min(latency_ns // 1000, HIGHEST_US))


def packed(latencies: array[int]) -> str:
    """Return latencies as text: base64 of int32, the least significant byte first."""
    return binascii.b2a_base64(latencies, newline=False).decode()


def unpacked(text: str) -> np.ndarray:
    """Return the latencies [n] in µs of such a text. Raises ValueError if it is none."""
    return np.frombuffer(binascii.a2b_base64(text), "<i4")


def add_to(histogram: HdrHistogram, latencies_us: np.ndarray) -> None:
    """Add latencies [n] to a histogram of µs; what lies outside its range counts as its ends.

    All at once, for it happens beside the load, once a second, and takes from the processor what the load needs. A
    value's cell is that of the format: its bucket, which halves the resolution each time, and its place in it.
    """
    if not len(latencies_us):
        return
    values = np.asarray(latencies_us, np.int64).clip(LOWEST_US, HIGHEST_US)
    bucket = np.maximum(np.frexp(values)[1] - SIGNIFICANT_BITS, 0)
    cells = (bucket << SIGNIFICANT_BITS - 1) + (values >> bucket)
    np.add.at(np.frombuffer(histogram.counts, np.uint64), cells, np.uint64(1))
    histogram.total_count += len(values)
    histogram.min_value = min(histogram.min_value, int(values.min()))
    histogram.max_value = max(histogram.max_value, int(values.max()))


def values_at(histogram: HdrHistogram, percentiles: Sequence[float]) -> list[int]:
    """Return the values in µs that `get_value_at_percentile` has for each percentile over 0, all at once as well."""
    totals = np.cumsum(np.frombuffer(histogram.counts, np.uint64))
    ranks = np.maximum(1, (np.asarray(percentiles) * float(totals[-1]) / 100 + 0.5).astype(np.int64))
    cells = np.searchsorted(totals, ranks.astype(np.uint64))
    return [histogram.get_highest_equivalent_value(histogram.get_value_from_index(int(cell))) for cell in cells]
