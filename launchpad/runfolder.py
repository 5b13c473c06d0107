"""The files of a run folder, `loadtests/results/<run>/`, and how they are read.

`history.csv`: a row for each second and line of traffic. `errors.csv`: failures by second, line and kind.
`latency.hlog`: an HdrHistogram log (format 1.2) with an interval histogram for each second, line and kind of latency;
`kind/line`, percent-encoded, is the tag; values are in µs. Kinds: `response`, from when a request was due; in an open
loop also `service`, from when it was sent, and `lag`, from due to sent; `failed`, of requests without a right answer.
`server.json`: what the server said of itself: `began` (UTC time of second 0), metrics over the run, and `use`: [second,
cores, MiB, share of the busiest GPU's time, MiB of GPUs], None where there is none.
Files that were cut short are read up to their last whole row.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hdrh.histogram import HdrHistogram

SUMMARY = "summary.json"
HISTORY = "history.csv"
ERRORS = "errors.csv"
HISTOGRAMS = "latency.hlog"
TOTALS = "totals.csv"
SERVER = "server.json"
CAPACITY = "capacity.json"
"""A folder with it holds a search for capacity, and no run."""

HISTORY_COLUMNS = ("second", "line", "requests", "failures", "p50_ms", "p95_ms", "p99_ms", "max_ms")
ERROR_COLUMNS = ("second", "line", "kind", "count", "example")

RESPONSE, SERVICE, LAG, FAILED = "response", "service", "lag", "failed"

LOWEST_US = 1
HIGHEST_US = 600_000_000
SIGNIFICANT_DIGITS = 3


def histogram() -> HdrHistogram:
    """Return an empty histogram of latencies: 1 µs to 10 min, three significant digits."""
    return HdrHistogram(LOWEST_US, HIGHEST_US, SIGNIFICANT_DIGITS)


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of `history.csv`; a last row that was cut short is left out."""
    rows = [row for row in _read_csv(folder / HISTORY) if row["max_ms"] is not None]
    counts = ("second", "requests", "failures")
    return [{**row, **{name: int(row[name]) for name in counts}} for row in rows]


def read_errors(folder: Path) -> list[dict[str, Any]]:
    """Return [{line, kind, count, example}], the counts added up over the run, the most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    for row in read_failures(folder):
        counts[row["line"], row["kind"]] += row["count"]
        examples.setdefault((row["line"], row["kind"]), row["example"])
    return [
        {"line": line, "kind": kind, "count": count, "example": examples[line, kind]}
        for (line, kind), count in counts.most_common()
    ]


def read_failures(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of `errors.csv`, by second; a last row that was cut short is left out."""
    for row in _read_csv(folder / ERRORS):
        if row["example"] is not None:
            yield {**row, "second": int(row["second"]), "count": int(row["count"])}


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows that are there now: the file may grow meanwhile."""
    with path.open(newline="", encoding="utf-8") as file:
        return csv.DictReader(file.read().splitlines(keepends=True))


def read_histograms(folder: Path, kind: str = RESPONSE) -> Iterator[tuple[str, float, HdrHistogram]]:
    """Yield (line, second, histogram in µs) for each interval of a kind of latency that is whole in `latency.hlog`."""
    with (folder / HISTOGRAMS).open(encoding="utf-8") as file:
        for text in file:
            if text.startswith("Tag=") and text.endswith("\n"):
                tag, start, _, _, payload = text.rstrip("\n").split(",")
                its_kind, _, line = unquote(tag.removeprefix("Tag=")).partition("/")
                if its_kind == kind:
                    yield line, float(start), HdrHistogram.decode(payload)
