"""What a fleet of replicas does behind a balancer: computed, with a replica that behaves as the measured one did. Pure.

A replica is a station (`Replica`): a few equal places that serve in order of arrival, a time on the way that does not
queue, and service times that vary. Its parameters are those at which a computed replica with Poisson arrivals met the
same p50 and p99 at the same rates as the capacity search measured. Or it is a server of the batching simulator
(`simulated`). docs/kubernetes.md has the assumptions.

Balancers, for arrivals that are Poisson as a whole:
- random: a replica's arrivals are Poisson too (thinning), so that one replica stands for all.
- round robin: a replica gets each n-th arrival, so its gaps are Erlang-n; one replica stands for all.
- least loaded: replicas depend on each other. A group of at most GROUP is computed; more of them can only be better.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numba import njit

Balancer = Literal["random", "round robin", "least loaded"]
BALANCERS: tuple[Balancer, ...] = ("random", "round robin", "least loaded")
GROUP = 20
"""Replicas of a group under least-loaded balancing: beyond some ten, more change the wait by less than the noise."""
REQUESTS = 300_000
SIMULATED_REQUESTS = 100_000
"""Of a replica that is more than a station, which takes longer to compute."""
FIT_ROUNDS = ((5_000, 40), (40_000, 1))
"""Requests that candidates are computed with, and how many of the nearest are kept; round by round."""
WARMUP_SHARE = 0.1
PLACES = (1, 2, 4, 8, 16)
SPREADS = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Coefficients of variation of the service time that are tried."""
SLACKS = (1.01, 1.03, 1.06, 1.1, 1.2, 1.35, 1.6, 2.0)
"""Saturation rates that are tried, as factors of the highest rate that was held."""
RESOLUTION = 0.005
MOST_BUSY = 0.95
"""Of saturation, beyond which nothing is promised: what was measured says too little of it."""


SHOWN = 4
"""Replicas of a group whose requests are simulated, where a replica is more than a station."""


class Server(Protocol):
    """A server as a fleet has it, by itself."""

    @property
    def title(self) -> str:
        """What computes it."""

    @property
    def saturation_rps(self) -> float:
        """Rate beyond which what waits only grows."""

    @property
    def idle_s(self) -> float:
        """What a request takes where nobody else is."""

    @property
    def station(self) -> Replica:
        """What stands for it where a balancer looks at how many requests each server has."""

    def serve(self, times_s: np.ndarray, seed: int) -> np.ndarray:
        """Return the latencies of requests that come at these times; infinite for those that are refused."""


@dataclass(frozen=True)
class Replica:
    """A server as a station.

    places: requests that are served at once. service_s: mean time in a place. spread: its coefficient of variation.
    way_s: time before and after, in which nothing queues.
    """

    places: int
    service_s: float
    spread: float
    way_s: float

    @property
    def title(self) -> str:
        return "a station fitted to the probes"

    @property
    def saturation_rps(self) -> float:
        """Rate at which every place is always taken."""
        return self.places / self.service_s

    @property
    def idle_s(self) -> float:
        return self.way_s + self.service_s

    @property
    def station(self) -> Replica:
        return self

    def serve(self, times_s: np.ndarray, seed: int) -> np.ndarray:
        return self.serve_as(times_s, 1, seed)[0]

    def serve_as(self, times_s: np.ndarray, group: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the latencies at a group of such servers under least-loaded balancing, and where each request went."""
        service = self.service_s * _unit(np.random.default_rng([seed, 1]), self.spread, len(times_s))
        waits, went = _serve(times_s, service, group, self.places, seed)
        return waits + self.way_s, went


@dataclass(frozen=True)
class Observed:
    """A rate of Poisson arrivals that one server met, and its latencies."""

    rate_rps: float
    p50_s: float
    p99_s: float


@dataclass(frozen=True)
class Fit:
    """A replica and how well it meets what was observed at the rates that were held.

    p50_off, p99_off: the largest ratio of computed to observed, or its inverse. cost: how far off it is in all.
    """

    replica: Server
    p50_off: float
    p99_off: float
    cost: float


def fit(observed: Sequence[Observed], held_rps: float, seed: int = 1) -> Fit:
    """Return the replica whose computed p50 and p99 are nearest to the observed ones, in logarithms.

    Rates above `held_rps` met a server that could not keep up; they say nothing of a steady state and are left out.
    Raises ValueError where no rate was held.
    """
    chosen = held(observed, held_rps)
    candidates = [
        Replica(places, places / (held_rps * slack), spread, 0.0)
        for places, spread, slack in itertools.product(PLACES, SPREADS, SLACKS)
    ]
    for requests, keep in FIT_ROUNDS:
        placed = [_with_way(candidate, chosen[0], requests, seed) for candidate in candidates]
        possible = [candidate for candidate in placed if candidate is not None]
        candidates = heapq.nsmallest(keep, possible, key=lambda one: judged(one, chosen, requests, seed).cost)
    if not candidates:
        raise ValueError("no replica is as fast as what was observed at the lowest rate")
    best, top = candidates[0], chosen[-1]

    def saturated_at(rate_rps: float) -> Replica:
        return Replica(best.places, best.places / rate_rps, best.spread, best.way_s)

    return judged(anchored(saturated_at, top.rate_rps * 1.0005, top.rate_rps * 4, top, seed), chosen, seed=seed)


def held(observed: Sequence[Observed], held_rps: float) -> list[Observed]:
    """Return what was observed at the rates that were held. Raises ValueError where none was."""
    chosen = [one for one in observed if one.rate_rps <= held_rps * 1.001]
    if not chosen:
        raise ValueError("no rate was held")
    return chosen


def judged(replica: Server, observed: Sequence[Observed], requests: int = REQUESTS, seed: int = 1) -> Fit:
    """Return how far a replica is off: near capacity counts more than far below it, and p99 more than p50."""
    p50, p99 = _errors(replica, observed, requests, seed)
    rates = np.array([one.rate_rps for one in observed])
    cost = float(np.sum(rates / rates.max() * (np.square(p50) + 2 * np.square(p99))))
    return Fit(replica, math.exp(np.abs(p50).max()), math.exp(np.abs(p99).max()), cost)


def _errors(replica: Server, observed: Sequence[Observed], requests: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the logarithms of computed over observed p50 and p99."""
    computed = [latencies(replica, "random", 1, one.rate_rps, requests, seed) for one in observed]
    p50 = [_log_ratio(got, 50, one.p50_s) for got, one in zip(computed, observed, strict=True)]
    p99 = [_log_ratio(got, 99, one.p99_s) for got, one in zip(computed, observed, strict=True)]
    return np.array(p50), np.array(p99)


def anchored(
    at: Callable[[float], Server], slowest: float, fastest: float, observed: Observed, seed: int = 1
) -> Server:
    """Return the slowest replica whose p99 at a rate is no more than the observed one.

    at: makes a replica of a speed, whatever that is; p99 falls as it rises.
    """
    low, high = slowest, fastest
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        if p99_s(at(middle), "random", 1, observed.rate_rps, seed) > observed.p99_s:
            low = middle
        else:
            high = middle
    return at(high)


def _with_way(replica: Replica, slowest: Observed, requests: int, seed: int) -> Replica | None:
    """Return the replica with the time on the way that makes its p50 at the lowest rate right; None where none does."""
    computed = latencies(replica, "random", 1, slowest.rate_rps, requests, seed)
    way = replica.way_s + slowest.p50_s - float(np.percentile(computed, 50))
    if way < -0.1 * slowest.p50_s:
        return None
    return Replica(replica.places, replica.service_s, replica.spread, max(0.0, way))


def _log_ratio(computed: np.ndarray, percentile: float, observed_s: float) -> float:
    return math.log(float(np.percentile(computed, percentile)) / observed_s)


def latencies(
    replica: Server, balancer: Balancer, replicas: int, rate_rps: float, requests: int = REQUESTS, seed: int = 1
) -> np.ndarray:
    """Return latencies in seconds at a fleet, each replica of which gets `rate_rps`; the first requests left out."""
    arriving = np.random.default_rng([seed, 0])
    group = min(replicas, GROUP) if balancer == "least loaded" else 1
    times = np.cumsum(_gaps(arriving, balancer, replicas, rate_rps * group, requests))
    first = int(requests * WARMUP_SHARE)
    if group == 1:
        return replica.serve(times, seed)[first:]
    taken, went = replica.station.serve_as(times, group, seed)
    if replica is not replica.station:
        for one in range(min(SHOWN, group)):
            taken[went == one] = replica.serve(times[went == one], seed)
        return taken[first:][went[first:] < SHOWN]
    return taken[first:]


def p99_s(replica: Server, balancer: Balancer, replicas: int, rate_rps: float, seed: int = 1) -> float:
    """Return the 99th percentile of the latency, in seconds; infinite at saturation and beyond."""
    if rate_rps >= replica.saturation_rps:
        return math.inf
    requests = REQUESTS if replica is replica.station else SIMULATED_REQUESTS
    return float(np.percentile(latencies(replica, balancer, replicas, rate_rps, requests, seed), 99))


def highest_rate(replica: Server, balancer: Balancer, replicas: int, limit_s: float, seed: int = 1) -> float:
    """Return the highest rate of a replica at which p99 is within the limit, in requests/s; 0 where none is."""
    top = MOST_BUSY * replica.saturation_rps
    return _bisect(lambda rate: p99_s(replica, balancer, replicas, rate, seed) <= limit_s, top)


def _bisect(holds: Callable[[float], bool], top: float) -> float:
    low, high = top / 1000, top
    if holds(high):
        return high
    if not holds(low):
        return 0.0
    while high / low > 1 + RESOLUTION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _gaps(chance: np.random.Generator, balancer: Balancer, replicas: int, rate_rps: float, requests: int) -> np.ndarray:
    if balancer == "round robin":
        return chance.gamma(replicas, 1 / (rate_rps * replicas), requests)
    return chance.exponential(1 / rate_rps, requests)


def _unit(chance: np.random.Generator, spread: float, count: int) -> np.ndarray:
    """Service times with mean 1: lognormal, the common form of times that are never negative and sometimes long.

    The same seed gives the same times to every balancer, and their mean is exact, so that balancers are compared on
    the same work.
    """
    if not spread:
        return np.ones(count)
    sigma = math.sqrt(math.log(1 + spread**2))
    drawn = chance.lognormal(0.0, sigma, count)
    return drawn / drawn.mean()


@njit(cache=True)
def _serve(times: np.ndarray, service: np.ndarray, group: int, places: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each request's time in the system and its replica: the one with fewest, one of them by chance."""
    np.random.seed(seed)
    free = np.zeros((group, places))
    present = np.zeros(group, dtype=np.int64)
    leaving = [(0.0, 0)]
    leaving.pop()
    taken = np.empty(len(times))
    went = np.zeros(len(times), dtype=np.int64)
    for index in range(len(times)):
        now = times[index]
        chosen = 0
        if group > 1:
            while leaving and leaving[0][0] <= now:
                present[heapq.heappop(leaving)[1]] -= 1
            fewest, ties = present[0], 0
            for replica in range(group):
                fewest = min(fewest, present[replica])
            for replica in range(group):
                if present[replica] == fewest:
                    ties += 1
                    if np.random.random() * ties < 1.0:
                        chosen = replica
        place = 0
        for other in range(1, places):
            if free[chosen, other] < free[chosen, place]:
                place = other
        begin = max(now, free[chosen, place])
        free[chosen, place] = begin + service[index]
        taken[index], went[index] = free[chosen, place] - now, chosen
        if group > 1:
            present[chosen] += 1
            heapq.heappush(leaving, (free[chosen, place], chosen))
    return taken, went
