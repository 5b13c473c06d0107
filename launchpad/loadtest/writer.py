"""Writes a run folder while the run goes on: the seconds of all generator processes, merged exactly.

A second is written when every process can have handed it over, so that what was measured survives whatever ends the
run. That is done in pieces of less than a millisecond: where server and load generator have all processors, the server
waits for a piece, and not for all of them. `runfolder` knows the files.
"""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hdrh.histogram import HdrHistogram

from launchpad.loadtest.latencies import add_to, unpacked, values_at
from launchpad.runfolder import ERROR_COLUMNS, ERRORS, HISTOGRAMS, HISTORY, HISTORY_COLUMNS, RESPONSE, histogram

PERCENTILES = (50, 95, 99, 100)
LATENESS_S = 2
"""How long after its end a second is still waited for."""
PAUSE_S = 0.003
"""Between two pieces of work."""


@dataclass
class _Cell:
    """One line of traffic in one second, over all processes."""

    answered: int = 0
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    latencies: dict[str, HdrHistogram] = field(default_factory=dict)


class RunWriter:
    """Takes what recorders hand over, in any order of processes, and appends it to the files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._pending: dict[int, dict[str, _Cell]] = {}
        self._history = (folder / HISTORY).open("w", newline="", encoding="utf-8")
        self._errors = (folder / ERRORS).open("w", newline="", encoding="utf-8")
        self._log = (folder / HISTOGRAMS).open("w", encoding="utf-8")
        csv.writer(self._history).writerow(HISTORY_COLUMNS)
        csv.writer(self._errors).writerow(ERROR_COLUMNS)
        self._log.write("#[Histogram log format version 1.2]\n")
        self._log.write('"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n')

    def add(self, second: int, lines: dict[str, Any]) -> None:
        """Add what a process recorded in a second of the run; all processes begin together."""
        cells = self._pending.setdefault(second, {})
        for name, part in lines.items():
            cell = cells.setdefault(name, _Cell())
            cell.answered += part["answered"]
            for kind, example, many in part["failures"]:
                cell.failures[kind, example] += many
            for kind, latencies in part["latencies"].items():
                add_to(cell.latencies.setdefault(kind, histogram()), unpacked(latencies))
                time.sleep(PAUSE_S)
        newest = max(self._pending)
        self._write(second for second in sorted(self._pending) if second <= newest - LATENESS_S)

    def close(self) -> None:
        """Write what is left."""
        self._write(sorted(self._pending))
        for file in (self._history, self._errors, self._log):
            file.close()

    def _write(self, seconds: Iterable[int]) -> None:
        for second in list(seconds):
            for name, cell in self._pending.pop(second).items():
                self._write_cell(second, name, cell)
        for file in (self._history, self._errors, self._log):
            file.flush()

    def _write_cell(self, second: int, line: str, cell: _Cell) -> None:
        response, failures = cell.latencies.get(RESPONSE), cell.failures.total()
        percentiles = [f"{value / 1000:.3f}" for value in values_at(response, PERCENTILES)] if response else [""] * 4
        csv.writer(self._history).writerow((second, line, cell.answered + failures, failures, *percentiles))
        for (kind, example), many in cell.failures.items():
            csv.writer(self._errors).writerow((second, line, kind, many, example))
        for kind, latencies in cell.latencies.items():
            tag = quote(f"{kind}/{line}", safe="")  # the format allows no comma, space or line break in a tag
            highest = latencies.get_max_value() / 1000
            self._log.write(f"Tag={tag},{second:.3f},1.000,{highest:.3f},{latencies.encode().decode()}\n")
            time.sleep(PAUSE_S)
