"""Records every request of a load test in HDR histograms, a row and a histogram for each line of traffic and second.

The files of `runfolder` are appended to once a second, so that what was measured survives whatever ends the run.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from hdrh.histogram import HdrHistogram

from launchpad.runfolder import (
    ERROR_COLUMNS,
    ERRORS,
    HIGHEST_US,
    HISTOGRAMS,
    HISTORY,
    HISTORY_COLUMNS,
    LOWEST_US,
    histogram,
)


@dataclass
class _Interval:
    """What one line of traffic did since the last flush. Only answered requests have a latency."""

    latency: HdrHistogram = field(default_factory=histogram)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)


class Recorder:
    """Counts requests as they end; `flush` puts a second's worth on disk."""

    def __init__(self, folder: Path, lines: list[str]) -> None:
        self._intervals = {line: _Interval() for line in lines}
        self._second = 0
        self._history = (folder / HISTORY).open("w", newline="", encoding="utf-8")
        self._errors = (folder / ERRORS).open("w", newline="", encoding="utf-8")
        self._log = (folder / HISTOGRAMS).open("w", encoding="utf-8")
        csv.writer(self._history).writerow(HISTORY_COLUMNS)
        csv.writer(self._errors).writerow(ERROR_COLUMNS)
        self._log.write("#[Histogram log format version 1.2]\n")
        self._log.write('"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n')

    def answered(self, line: str, latency_us: float) -> None:
        """Count a right answer."""
        self._intervals[line].latency.record_value(min(max(int(latency_us), LOWEST_US), HIGHEST_US))

    def failed(self, line: str, kind: str, example: str) -> None:
        """Count a failure of a kind (`HTTP 503`, `wrong answer`, ...), with an example of what came back."""
        self._intervals[line].failures[kind, example[:200]] += 1

    def flush(self) -> dict[str, int]:
        """Write what came since the last flush as the next second; return its totals."""
        second, answered, failures = self._second, 0, 0
        self._second += 1
        for line, interval in self._intervals.items():
            self._write(second, line, interval)
            answered += interval.latency.get_total_count()
            failures += interval.failures.total()
            interval.latency.reset()
            interval.failures.clear()
        for file in (self._history, self._errors, self._log):
            file.flush()
        return {"second": second, "requests": answered + failures, "failures": failures}

    def close(self) -> None:
        for file in (self._history, self._errors, self._log):
            file.close()

    def _write(self, second: int, line: str, interval: _Interval) -> None:
        latency = interval.latency
        answered, failures = latency.get_total_count(), interval.failures.total()
        percentiles = [
            f"{latency.get_value_at_percentile(p) / 1000:.3f}" if answered else "" for p in (50, 95, 99, 100)
        ]
        csv.writer(self._history).writerow((second, line, answered + failures, failures, *percentiles))
        for (kind, example), count in interval.failures.items():
            csv.writer(self._errors).writerow((second, line, kind, count, example))
        if answered:
            payload = latency.encode().decode()
            tag = quote(line, safe="")  # the format allows no comma, space or line break
            self._log.write(f"Tag={tag},{second:.3f},1.000,{latency.get_max_value() / 1000:.3f},{payload}\n")
