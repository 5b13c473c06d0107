"""What the simulator expects of configurations: capacity, latency at a rate, and which are worth measuring. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from launchpad.spec import BatchQueue
from launchpad.tune.profile import INTRA_OP, Profile
from launchpad.tune.simulate import Host, Queue, Result, ServiceTimes, poisson_arrivals, simulate

MISSES = 0.01
"""A rate holds when no more than this share of requests is late or refused: p99 is held."""
REQUESTS = 12_000
FINE_REQUESTS = 60_000
LONGEST = 4
"""A simulation is at most so many times as long as asked for, however long the latency to hold."""
RESOLUTION = 1.02
DOUBT = 0.1
"""Share by which a measured cost may be off, either way: neighbours on the machine move costs by as much."""


@dataclass(frozen=True)
class Configuration:
    """What is chosen: the queue's parameters (None: no batching), batch threads, request threads, and threads that an
    operation may use (0: as declared, or else as the server likes)."""

    queue: BatchQueue | None
    threads: int
    request_threads: int
    operation_threads: int = 0

    @property
    def title(self) -> str:
        """How tables name it, such as `16, 500 µs, 2 threads, 64 enqueued`."""
        many = self.operation_threads
        operations = f", {many} thread{'' if many == 1 else 's'} an operation" if many else ""
        if self.queue is None:
            return "off" + operations
        queue = self.queue
        title = f"{queue.max_batch_size}, {queue.batch_timeout_micros} µs, {self.threads} thread"
        title += f"{'' if self.threads == 1 else 's'}, {queue.max_enqueued_batches} enqueued"
        sizes = f", sizes {' '.join(map(str, queue.allowed_batch_sizes))}" if queue.allowed_batch_sizes else ""
        return title + sizes + operations

    @property
    def plainness(self) -> tuple[int, ...]:
        """Orders configurations: the one with less of everything first."""
        if self.queue is None:
            return (0, self.operation_threads)
        queue = self.queue
        return (
            *(1, self.operation_threads, self.threads, queue.max_batch_size, queue.batch_timeout_micros),
            len(queue.allowed_batch_sizes),
        )

    @property
    def flags(self) -> dict[str, int]:
        """The server's flags that make it so."""
        flags = {"rest_api_num_threads": self.request_threads, "grpc_max_threads": self.request_threads}
        return flags | ({INTRA_OP: self.operation_threads} if self.operation_threads else {})


@dataclass(frozen=True)
class Model:
    """What is simulated: service times and host, of a profile or of one that differs from it. otherwise: the same for
    another number of threads for an operation, by that number."""

    times: ServiceTimes
    host: Host
    otherwise: Mapping[int, tuple[ServiceTimes, Host]] = field(default_factory=dict)

    @classmethod
    def of(cls, profile: Profile) -> Model:
        times, host = profile.times(), profile.host(1 << 20)
        other = profile.otherwise
        return cls(times, host, {other.threads: profile.with_other_threads(times, host)} if other else {})

    def costlier(self, factor: float) -> Model:
        """Return the model with every cost of the server multiplied."""
        return Model(
            *_costlier(self.times, self.host, factor),
            {threads: _costlier(*then, factor) for threads, then in self.otherwise.items()},
        )

    def at(
        self, chosen: Configuration, rate_rps: float, requests: int = REQUESTS, rows: int = 1, seed: int = 1
    ) -> Result:
        """Simulate Poisson arrivals of requests of so many rows."""
        times, host = self.otherwise.get(chosen.operation_threads, (self.times, self.host))
        host = replace(host, request_threads=chosen.request_threads)
        arrivals = poisson_arrivals(rate_rps, requests, seed, rows)
        return simulate([Queue(chosen.queue, times)], chosen.threads, host, arrivals, seed)


def _costlier(times: ServiceTimes, host: Host, factor: float) -> tuple[ServiceTimes, Host]:
    return times.costlier(factor), host.costlier(factor)


@dataclass(frozen=True)
class Limits:
    """What is to hold: p99 in s, share of failed requests."""

    p99_s: float
    error_rate: float = MISSES

    def hold(self, result: Result) -> bool:
        return result.missed_share(self.p99_s) <= MISSES and result.refused_share <= self.error_rate


def capacity(
    model: Model, chosen: Configuration, limits: Limits, guess_rps: float, requests: int = REQUESTS, rows: int = 1
) -> float:
    """Return the highest rate in requests/s that holds in simulation, to RESOLUTION; 0 if not one a second does."""

    def holds(rate: float) -> bool:
        return limits.hold(model.at(chosen, rate, _enough(requests, limits, rate), rows))

    low, high, step = None, None, 1.1
    rate = max(1.0, guess_rps)
    while low is None or high is None or high / low > RESOLUTION:
        if rate < 1 or rate > 1e7:
            return low or 0.0
        if holds(rate):
            low = rate
        else:
            high = rate
        rate = math.sqrt(low * high) if low and high else rate * step if low else rate / step
        step **= 1.5
    return low


def _enough(requests: int, limits: Limits, rate_rps: float) -> int:
    """Return how many requests to simulate: for twenty times the latency to hold, so that a queue that only grows
    shows, but not for longer than a search through many configurations can bear."""
    return min(max(requests, math.ceil(20 * limits.p99_s * rate_rps)), LONGEST * requests)


MOST_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
TIMEOUTS_US = (0, 200, 500, 1000, 2000, 5000)
ENQUEUED = (16, 64, 1024)


def grid(
    cores: int,
    request_threads: Sequence[int],
    rows: int = 1,
    most_rows: int = MOST_ROWS[-1],
    operation_threads: Sequence[int] = (0,),
) -> list[Configuration]:
    """Return every configuration that is considered: off, and max_batch_size × timeout × threads × bound × sizes, each
    with each number of request threads and of threads for an operation."""
    threads = sorted({1, 2, cores, 2 * cores, 4 * cores})
    around = list(itertools.product(request_threads, operation_threads))
    found = [Configuration(None, 1, *numbers) for numbers in around]
    for size, timeout, many, bound, numbers in itertools.product(MOST_ROWS, TIMEOUTS_US, threads, ENQUEUED, around):
        if not rows <= size <= most_rows or (size == 1 and timeout):
            continue
        for allowed in _allowed(size):
            queue = BatchQueue(
                max_batch_size=size,
                batch_timeout_micros=timeout,
                max_enqueued_batches=bound,
                allowed_batch_sizes=allowed,
            )
            found.append(Configuration(queue, many, *numbers))
    return found


def _allowed(size: int) -> Iterable[tuple[int, ...]]:
    yield ()
    if size >= 4:
        yield tuple(1 << power for power in range(size.bit_length()) if 1 << power <= size)


@dataclass(frozen=True)
class Goal:
    """What is best: `rate`, highest rate that holds; `latency`, lowest p99 at `rate_rps`; `resource`, least processor
    time of the server at `rate_rps` with the limits held."""

    kind: str
    limits: Limits
    rate_rps: float = 0.0

    @property
    def higher_is_better(self) -> bool:
        return self.kind == "rate"

    @property
    def unit(self) -> str:
        return {"rate": "requests/s", "latency": "ms", "resource": "% of the cores"}[self.kind]


@dataclass(frozen=True)
class Expected:
    """What is expected of a configuration: the goal's value with the interval that the costs' doubt gives, nan where
    the limits do not hold. Where they hold but not at higher costs, the worse end of the interval is nan."""

    chosen: Configuration
    value: float
    low: float
    high: float


def value(model: Model, chosen: Configuration, goal: Goal, guess_rps: float, requests: int, rows: int = 1) -> float:
    """Return the goal's value for a configuration in simulation; nan where the limits do not hold."""
    if goal.kind == "rate":
        return capacity(model, chosen, goal.limits, guess_rps, requests, rows) or math.nan
    result = model.at(chosen, goal.rate_rps, _enough(requests, goal.limits, goal.rate_rps), rows)
    if goal.kind == "latency":
        return result.percentile_ms(99) if result.refused_share <= goal.limits.error_rate else math.nan
    return result.processor_use * 100 if goal.limits.hold(result) else math.nan


def rank(
    model: Model,
    configurations: Sequence[Configuration],
    goal: Goal,
    advance: Callable[[float, float], None],
    rows: int = 1,
    workers: int = 2,
    finer: int = 24,
) -> list[Expected]:
    """Return what is expected of all configurations, the best first; the best `finer` of them simulated at length, with
    intervals. Configurations that do not hold come last."""
    guess = _guess(model, rows)

    def coarse(chosen: Configuration) -> float:
        return value(model, chosen, goal, guess, REQUESTS, rows)

    values = []
    with ThreadPoolExecutor(workers) as pool:
        for done, found in enumerate(pool.map(coarse, configurations), 1):
            values.append(found)
            advance(done, len(configurations) + finer)
        order = sorted(range(len(values)), key=lambda index: _worth(values[index], goal, configurations[index]))

        def fine(index: int) -> Expected:
            return expected(model, configurations[index], goal, values[index], rows)

        best = []
        for done, one in enumerate(pool.map(fine, order[:finer]), 1):
            best.append(one)
            advance(len(configurations) + done, len(configurations) + finer)
    best.sort(key=lambda one: _worth(one.value, goal, one.chosen))
    rest = [Expected(configurations[index], *[values[index]] * 3) for index in order[finer:]]
    return best + rest


def expected(model: Model, chosen: Configuration, goal: Goal, near: float = math.nan, rows: int = 1) -> Expected:
    """Return what is expected of one configuration, with the interval that costs DOUBT higher or lower give."""
    guess = near if goal.kind == "rate" and near > 0 else _guess(model, rows)
    middle, worse, better = (
        value(model.costlier(factor), chosen, goal, guess, FINE_REQUESTS, rows)
        for factor in (1.0, 1 + DOUBT, 1 - DOUBT)
    )
    nothing = -math.inf if goal.higher_is_better else math.inf
    return Expected(chosen, middle, *sorted((worse, better), key=lambda x: nothing if math.isnan(x) else x))


def _worth(found: float, goal: Goal, chosen: Configuration) -> tuple[float, tuple[int, ...]]:
    """Sort key: best first, those within a hundredth of each other by plainness, those that do not hold last."""
    if math.isnan(found) or found <= 0:
        return math.inf, chosen.plainness
    step = round(math.log(found) / math.log(1.01))
    return (-step if goal.higher_is_better else step), chosen.plainness


def _guess(model: Model, rows: int) -> float:
    """Return the rate in requests/s at which one worker does nothing else."""
    times = model.times
    return 1 / (times.read_s + times.answer_s + times.run_s(rows) + 1e-9)


def worth_measuring(ranked: Sequence[Expected], goal: Goal, most: int) -> list[Configuration]:
    """Return the configurations that could be best: whose interval reaches the best one's value, at most so many.

    Of those that differ in nothing but the queue's bound or the request threads only the first is taken: at a rate that
    holds they hardly matter, and a measurement of each says the same.
    """
    best = ranked[0]
    found: list[Configuration] = []
    seen: set[tuple[object, ...]] = set()
    for one in ranked:
        if math.isnan(one.value):
            continue
        reaches = one.high >= best.value if goal.higher_is_better else one.low <= best.value
        queue = one.chosen.queue
        kind = (
            queue and (queue.max_batch_size, queue.batch_timeout_micros, queue.allowed_batch_sizes),
            one.chosen.threads,
            one.chosen.operation_threads,
        )
        if reaches and kind not in seen:
            seen.add(kind)
            found.append(one.chosen)
        if len(found) == most:
            break
    return found


def mean_sizes(result: Result) -> str:
    """Return in words how large the batches were."""
    if not len(result.batch_rows):
        return "no batch ran"
    return f"{result.mean_batch:.1f} rows on average, {int(np.max(result.batch_rows))} at most"
