"""Arrival schedules of open-loop load: when each request is due, fixed before the first is sent. Pure and seeded.

A rate curve is piecewise linear: times in seconds and the rate in requests/s at each. Poisson arrivals for a curve come
from unit-rate arrivals through the inverse of its integral (time rescaling; Çınlar, Introduction to Stochastic
Processes, 1975, section 4.7); constant arrivals take equal steps of the same integral.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launchpad.errors import DeclarationError, Problem

RESOLUTION_S = 0.01
"""Step at which the integral of a rate curve is tabulated."""


@dataclass(frozen=True)
class RateCurve:
    """Requests a second over time, linear between the points. times_s: increasing, from 0; rates_rps: not negative."""

    times_s: tuple[float, ...]
    rates_rps: tuple[float, ...]

    @property
    def duration_s(self) -> float:
        return self.times_s[-1]

    def scaled(self, factor: float) -> RateCurve:
        """Return the curve with every rate times `factor`, such as one process's share."""
        return RateCurve(self.times_s, tuple(rate * factor for rate in self.rates_rps))

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (times [n] in s, arrivals expected until then [n])."""
        times = np.arange(0.0, self.duration_s + RESOLUTION_S, RESOLUTION_S).clip(max=self.duration_s)
        times = np.unique(np.concatenate([times, self.times_s]))
        rates = np.interp(times, self.times_s, self.rates_rps)
        steps = np.diff(times) * (rates[1:] + rates[:-1]) / 2
        return times, np.concatenate([[0.0], np.cumsum(steps)])


def constant_rate(rate_rps: float, duration_s: float) -> RateCurve:
    """Return the curve of one rate all along."""
    return RateCurve((0.0, duration_s), (rate_rps, rate_rps))


def poisson(curve: RateCurve, seed: int) -> np.ndarray:
    """Return the due times of a Poisson process with the curve as its rate: float64 [n] in seconds, increasing."""
    times, expected = curve.expected()
    chance = np.random.default_rng(seed)
    total = expected[-1]
    count = chance.poisson(total)
    return np.interp(np.sort(chance.uniform(0.0, total, count)), expected, times)


def evenly(curve: RateCurve) -> np.ndarray:
    """Return due times that follow the curve without chance: float64 [n] in seconds, increasing."""
    times, expected = curve.expected()
    return np.interp(np.arange(0.5, expected[-1]), expected, times)


def replay(path: Path) -> np.ndarray:
    """Return the due times of a trace: one timestamp in seconds a line, `#` starts a comment; the first becomes 0.

    Raises DeclarationError that names every line which is no number or goes back in time.
    """
    problems: list[Problem] = []
    times: list[float] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DeclarationError(f"the trace cannot be read: {error}", str(path)) from None
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            value = float(text)
        except ValueError:
            problems.append(Problem(f"{text!r} is no time in seconds", f"{path.name}:{number}"))
            continue
        if not np.isfinite(value):
            problems.append(Problem(f"{text!r} is no time in seconds", f"{path.name}:{number}"))
        elif times and value < times[-1]:
            problems.append(Problem(f"{text} is before the line above", f"{path.name}:{number}", "sort the trace"))
        else:
            times.append(value)
    if not times and not problems:
        problems.append(Problem("the trace is empty", path.name))
    if problems:
        raise DeclarationError(problems)
    return np.asarray(times) - times[0]
