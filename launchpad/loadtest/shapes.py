"""How load changes over a run, as curves over time: for arrivals directly, for users as a Locust LoadTestShape."""

from __future__ import annotations

import math

from launchpad.loadtest.arrivals import RateCurve
from launchpad.spec import LoadShape

WAVE_POINTS = 48


def curve(shape: LoadShape | None, peak: float, duration_s: float) -> RateCurve:
    """Return the curve of a shape whose factor 1 is `peak`."""
    points = _points(shape) if shape else [(0.0, 1.0), (1.0, 1.0)]
    return RateCurve(tuple(x * duration_s for x, _ in points), tuple(factor * peak for _, factor in points))


def _points(shape: LoadShape) -> list[tuple[float, float]]:
    """Return (share of the duration, factor), with a jump as two points a millionth apart."""
    low, high = shape.low, shape.high
    if shape.kind in ("constant", "soak"):
        return [(0.0, high), (1.0, high)]
    if shape.kind == "ramp":
        return [(0.0, low), (1.0, high)]
    if shape.kind == "spike":
        return _plateaus([(0.45, low), (0.55, high), (1.0, low)])
    if shape.kind == "steps":
        last = shape.steps - 1
        return _plateaus([((n + 1) / shape.steps, low + (high - low) * n / last) for n in range(shape.steps)])
    middle, swing = (low + high) / 2, (high - low) / 2
    return [(n / WAVE_POINTS, middle - swing * math.cos(2 * math.pi * n / WAVE_POINTS)) for n in range(WAVE_POINTS + 1)]


def _plateaus(ends: list[tuple[float, float]]) -> list[tuple[float, float]]:
    points, start = [], 0.0
    for end, level in ends:
        points += [(start, level), (end, level)]
        start = end + 1e-6
    return points
