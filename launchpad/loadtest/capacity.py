"""The capacity search: the highest Poisson rate at which p99 and the error rate hold. Pure: `probe` does the measuring.

A rate holds when at most 1 % of its requests miss the latency objective or fail, and no more fail than the error rate
allows. Doubling finds a rate that does not hold, bisection narrows the interval in between. A probe is over as soon as
the confidence interval of that share is clear of 1 % on either side. Requests that queue together miss together, so the
interval is widened by the design effect of seconds as clusters (Kish, Survey Sampling, 1965, section 5.4); without it,
it is Wilson's (1927).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

ALLOWED_MISSES = 0.01
"""p99 is held when no more than this share is above it."""
CONFIDENCE_Z = 1.96
FEWEST_SECONDS = 3
RESOLUTION = 1.05
"""Ratio of the interval's ends at which the search is over."""
LOWEST_RPS = 1.0
HIGHEST_RPS = 1_000_000.0


@dataclass
class Misses:
    """Requests of a probe by second: (sent, missed), where missed means too late or without a right answer."""

    seconds: list[tuple[int, int]] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return sum(sent for sent, _ in self.seconds)

    @property
    def share(self) -> float:
        return sum(missed for _, missed in self.seconds) / self.sent if self.sent else 0.0

    def interval(self) -> tuple[float, float]:
        """Return the confidence interval of the share of misses."""
        effective = self.sent / self.design_effect
        if not effective:
            return 0.0, 1.0
        z2 = CONFIDENCE_Z**2
        middle = (self.share + z2 / (2 * effective)) / (1 + z2 / effective)
        spread = self.share * (1 - self.share) / effective + z2 / (4 * effective**2)
        half = CONFIDENCE_Z * math.sqrt(spread) / (1 + z2 / effective)
        return max(0.0, middle - half), min(1.0, middle + half)

    @property
    def design_effect(self) -> float:
        """How many times the variance of the share is that of independent requests; at least 1."""
        share, clusters = self.share, len(self.seconds)
        if clusters < FEWEST_SECONDS or not 0 < share < 1:
            return 1.0
        residuals = [(missed - share * sent) ** 2 for sent, missed in self.seconds]
        variance = clusters / (clusters - 1) * sum(residuals) / self.sent**2
        return max(1.0, variance / (share * (1 - share) / self.sent))

    @property
    def clear(self) -> bool | None:
        """True or False once the rate clearly holds or clearly does not; None while it is open."""
        if len(self.seconds) < FEWEST_SECONDS:
            return None
        low, high = self.interval()
        if high < ALLOWED_MISSES:
            return True
        return False if low > ALLOWED_MISSES else None


@dataclass(frozen=True)
class Probe:
    """One rate, measured. `limited`: why the load generator itself was in the way; empty when it was not.

    share: of requests that missed, failed ones among them; low, high: its confidence interval. failed: share of
    requests without a right answer; tolerated: how many may be.
    server_cores: processor time that the server used, in cores; None where that is not known.
    """

    rate_rps: float
    measured_s: float
    sent: int
    share: float
    low: float
    high: float
    p50_ms: float | None
    p99_ms: float | None
    limited: str = ""
    mean_ms: float | None = None
    server_cores: float | None = None
    failed: float = 0.0
    tolerated: float = ALLOWED_MISSES

    @property
    def holds(self) -> bool:
        return self.sent > 0 and self.share <= ALLOWED_MISSES and self.failed <= self.tolerated


@dataclass(frozen=True)
class Capacity:
    """What a search found. `low_rps` holds, `high_rps` does not; None where no such rate was met.

    limited: how the generator was in the way at `high_rps`, so that the server may hold more than `low_rps`.
    """

    low_rps: float | None
    high_rps: float | None
    probes: list[Probe]
    limited: str = ""


DOUBLING = 2.0
NEARBY = 1.1
"""Factor of the rate with which the search goes on above one that holds after all."""


def search(probe: Callable[[float], Probe], start_rps: float, step: float = DOUBLING) -> Capacity:
    """Find the highest rate that holds, by doubling (or halving) from a first guess and bisection.

    step: the first factor by which the rate changes; from a good guess a small one, which grows up to doubling.

    The upper end of the interval is asked twice: a machine that stalls makes a rate fail that holds, while nothing
    makes one hold that does not. If it holds the second time, the search goes on above it.

    A probe in which the generator was in the way may fail for that alone. It counts as failed, which can only make the
    result too low, and the result says so.
    """
    probes: list[Probe] = []
    low: float | None = None
    high: float | None = None
    rate, limited = start_rps, ""
    while LOWEST_RPS <= rate <= HIGHEST_RPS:
        result = probe(rate)
        probes.append(result)
        if result.holds:
            if rate == high:
                high, limited, step = None, "", NEARBY
            low = rate
        else:
            again = rate == high
            high, limited = rate, result.limited
            if again:
                break
        if low and high:
            rate = math.sqrt(low * high) if high / low > RESOLUTION else high
        else:
            rate = rate * step if low else rate / step
            step = min(step**2, DOUBLING)
    return Capacity(low, high, probes, limited)
