"""Two runs side by side: which percentile moved, by how much, and whether that is noise.

Intervals are bootstrap intervals over seconds: whole seconds are drawn with replacement, so that requests that waited
in the same queue stay together (block bootstrap; Künsch, Annals of Statistics 17, 1989). A difference is noise when the
interval of the difference has zero in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launchpad import runfolder
from launchpad.layout import Layout
from launchpad.spec import Traffic

PERCENTILES = (50.0, 95.0, 99.0, 99.9)
RESAMPLES = 1000
CONFIDENCE = 0.95
SEED = 20261122
LOAD = ("loop", "users", "think_time_ms", "rate_rps", "arrivals", "shape")
"""Keys of a profile that make the load of a run."""


@dataclass(frozen=True)
class Difference:
    """A percentile in two runs, in ms; low and high bound the difference `after - before` at CONFIDENCE."""

    scope: str
    percentile: float
    before_ms: float
    after_ms: float
    low_ms: float
    high_ms: float

    @property
    def verdict(self) -> str:
        if self.low_ms <= 0 <= self.high_ms:
            return "noise"
        return "slower" if self.low_ms > 0 else "faster"


@dataclass(frozen=True)
class Seconds:
    """Latencies by second: values [v] in µs, increasing, and counts [seconds, v]."""

    values: np.ndarray
    counts: np.ndarray

    def percentiles(self, weights: np.ndarray) -> np.ndarray:
        """Return PERCENTILES in ms of each weighting [n, seconds] of the seconds: [n, percentiles]."""
        cumulative = np.cumsum(weights @ self.counts, axis=1)
        ranks = np.ceil(cumulative[:, -1:] * np.asarray(PERCENTILES) / 100)
        places = np.stack([np.searchsorted(row, rank) for row, rank in zip(cumulative, ranks, strict=True)])
        return self.values[places.clip(max=len(self.values) - 1)] / 1000


def read(folder: Path, lines: Sequence[str]) -> Seconds | None:
    """Return the response times of some lines of a run; None where nothing was answered."""
    rows: dict[int, np.ndarray] = {}
    for line, second, histogram in runfolder.read_histograms(folder):
        if line in lines:
            counts = np.asarray(histogram.counts, dtype=float)
            rows[int(second)] = rows.get(int(second), 0) + counts
    if not rows:
        return None
    table = np.stack([rows[second] for second in sorted(rows)])
    seen = np.flatnonzero(table.any(axis=0))
    values = [histogram.get_highest_equivalent_value(histogram.get_value_from_index(int(index))) for index in seen]
    return Seconds(np.asarray(values, dtype=float), table[:, seen])


def compare(scope: str, before: Seconds, after: Seconds) -> list[Difference]:
    """Return the difference of each of PERCENTILES between two runs."""
    chance = np.random.default_rng(SEED)
    point, drawn = [], []
    for run in (before, after):
        seconds = len(run.counts)
        point.append(run.percentiles(np.ones((1, seconds)))[0])
        drawn.append(run.percentiles(chance.multinomial(seconds, np.full(seconds, 1 / seconds), RESAMPLES)))
    tails = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn[1] - drawn[0], [tails, 100 - tails], axis=0)
    return [
        Difference(scope, p, float(point[0][i]), float(point[1][i]), float(low[i]), float(high[i]))
        for i, p in enumerate(PERCENTILES)
    ]


def differences(layout: Layout, runs: dict[str, dict[str, Any]]) -> list[Difference]:
    """Return the differences between two runs, given as {run: summary}, for each model that both asked."""
    rows: list[Difference] = []
    (first, before), (second, after) = runs.items()
    for model in before["models"]:
        sides = [
            read(
                layout.results(run),
                [line.line for line in map(Traffic.model_validate, summary["traffic"]) if line.model == model],
            )
            for run, summary in ((first, before), (second, after))
        ]
        if sides[0] and sides[1]:
            rows += compare(model, sides[0], sides[1])
    return rows


def unlike(before: dict[str, Any], after: dict[str, Any], keys: Sequence[str]) -> str:
    """Say in which of `keys` (profile, traffic, machine, backend) two summaries differ; empty when in none."""

    def setting(summary: dict[str, Any]) -> dict[str, Any]:
        profile = {key: summary["profile"].get(key) for key in LOAD}
        backend = summary.get("server", {}).get("backend")
        return {"profile": profile, "backend": backend, **{key: summary.get(key) for key in ("traffic", "machine")}}

    was, now = setting(before), setting(after)
    return ", ".join(key for key in keys if was[key] != now[key])
