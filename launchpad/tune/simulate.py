"""What a model server would do with a stream of requests: TensorFlow Serving's batching, computed. Pure and seeded.

    host = Host(cores=2)
    queue = Queue(BatchQueue(max_batch_size=16), ServiceTimes(batch_s=np.array([0, 1e-3, 1.1e-3])))
    result = simulate([queue], 2, host, poisson_arrivals(800, 100_000))
    result.percentile_ms(99)

Requests come at given times, are read, wait in the queue of their signature, run in a batch, and are answered. The
queue is that of TensorFlow's `shared_batch_scheduler.h` (read at 2.21): a batch runs when it is full, or when its
oldest task has waited its timeout, and a batch thread is free; threads serve the queues in turn. What takes processor
time shares `Host.cores` evenly. A model of a server, not of a network: bytes in flight take no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from launchpad.spec import BatchQueue

NO_NOISE = np.ones(1)


@dataclass(frozen=True)
class ServiceTimes:
    """What one signature of a model costs, in seconds on an idle processor.

    batch_s: [largest batch + 1], the run of a batch of so many rows; the first entry is not used.
    cold_s: [largest batch + 1], what it takes besides where the last run is long ago and other work has taken its place
    in the caches; cool_s: after so long 1 - 1/e of it.
    task_s: [largest batch + 1], what each request adds to a batch of so many rows, such as joining inputs and cutting
    outputs apart, or saves where it is negative. Of an event loop it is that of the rows that were read in one turn and
    run in one batch: what comes bit by bit while a batch waits saves nothing. The last counts for all beyond.
    lone_s: what of that a request which is alone in its turn and in its batch takes while it is read, and each that is
    the first in its turn with it; under an event loop.
    read_s, answer_s: work on a request before and after its batch.
    noise: factors on batch_s that are drawn from with equal chance, such as measured residuals; their mean should be 1.
    """

    batch_s: np.ndarray
    cold_s: np.ndarray = field(default_factory=lambda: np.zeros(2))
    cool_s: float = 1.0
    task_s: np.ndarray = field(default_factory=lambda: np.zeros(1))
    lone_s: float = 0.0
    read_s: float = 0.0
    answer_s: float = 0.0
    noise: np.ndarray = field(default_factory=lambda: NO_NOISE)

    def run_s(self, rows: int) -> float:
        """Return the time of a batch; beyond what was measured, along the line through the last two sizes."""
        return float(_table(self.batch_s, rows)[rows])

    def costlier(self, factor: float) -> ServiceTimes:
        """Return the times with every cost multiplied."""
        return replace(
            self,
            batch_s=self.batch_s * factor,
            cold_s=self.cold_s * factor,
            task_s=self.task_s * factor,
            lone_s=self.lone_s * factor,
            read_s=self.read_s * factor,
            answer_s=self.answer_s * factor,
        )


@dataclass(frozen=True)
class Queue:
    """One signature: how it is batched (None: not at all) and what it costs."""

    batching: BatchQueue | None
    times: ServiceTimes


@dataclass(frozen=True)
class Host:
    """Where the server runs and how it is built.

    cores: what all work shares evenly; inf for work that never competes.
    request_threads: requests that are worked on at once; others wait outside.
    front_threads: how many requests are read or answered at once.
    event_loop: one thread reads, starts batches and answers, in the order of asyncio: what has come is read before
    batches are formed, and answers go out together when all that lay ready is done. False: as in TensorFlow Serving,
    where each request has its thread.
    inline_s, inline_request_s: with an event loop, runs that are shorter than the one take place on it, and those that
    are shorter than the other for each request of the batch.
    poll_s: interval at which an idle batch thread looks for batches whose timeout has passed, and for those that it was
    given no notice of; TensorFlow's scheduler has 0.001. 0: all are noticed at once.
    batch_cores: cores that a batch on a batch thread keeps busy, as TensorFlow spreads a run over threads of its own.
    send_s, receive_s: a load generator's own work on a request, on the same cores; latency counts from when the request
    was due until the generator has taken in the answer.
    wake_s, client_wake_s: what a front worker, and the load generator, take to begin when they had nothing to do.
    rouse_s: what passes then, besides, before either begins, without a processor: until an idle core is awake.
    turn_read_s, turn_answer_s: what the first request takes besides to read, and to answer, that an event loop works on
    when it has sent answers or was idle: other work, or neighbours meanwhile, have taken its place in the caches.
    thread_s: what a batch that an event loop hands to a batch thread takes besides: both want the interpreter.
    crowd, crowd_s: while more requests than the one are in flight, each that is read takes the other besides: so many
    connections do not stay in the caches.
    paces, pace_s: how fast the machine computes, 1 on average, for so many s each: one after the other and round again,
    from one that the seed says.
    """

    cores: float = np.inf
    request_threads: int = 1 << 20
    front_threads: int = 1
    event_loop: bool = False
    inline_s: float = 0.0
    inline_request_s: float = 0.0
    poll_s: float = 0.0
    batch_cores: float = 1.0
    send_s: float = 0.0
    receive_s: float = 0.0
    wake_s: float = 0.0
    client_wake_s: float = 0.0
    rouse_s: float = 0.0
    turn_read_s: float = 0.0
    turn_answer_s: float = 0.0
    thread_s: float = 0.0
    crowd: int = 0
    crowd_s: float = 0.0
    paces: np.ndarray = field(default_factory=lambda: np.ones(1))
    pace_s: float = np.inf

    def costlier(self, factor: float) -> Host:
        """Return the host with every cost of the server multiplied."""
        return replace(
            self,
            wake_s=self.wake_s * factor,
            turn_read_s=self.turn_read_s * factor,
            turn_answer_s=self.turn_answer_s * factor,
            thread_s=self.thread_s * factor,
            crowd_s=self.crowd_s * factor,
        )


LEARNT_FROM = 64
TENSORFLOW_POLL_S = 0.001
"""`kTimeoutMillis` of `SharedBatchScheduler::ThreadLogic`."""


@dataclass(frozen=True)
class Arrivals:
    """Requests: due times [n] in s, increasing; rows of each [n]; the queue of each [n]."""

    times_s: np.ndarray
    sizes: np.ndarray
    queues: np.ndarray

    @classmethod
    def of(cls, times_s: np.ndarray, sizes: np.ndarray | int = 1, queues: np.ndarray | int = 0) -> Arrivals:
        """Make arrivals, with one size or one queue for all where a number is given."""
        n = len(times_s)
        return cls(
            np.ascontiguousarray(times_s, np.float64),
            np.array(np.broadcast_to(sizes, n), np.int64),
            np.array(np.broadcast_to(queues, n), np.int64),
        )

    def __len__(self) -> int:
        return len(self.times_s)


def poisson_arrivals(
    rate_rps: float, count: int, seed: int = 0, size: int = 1, shares: Sequence[float] = (1.0,)
) -> Arrivals:
    """Return `count` Poisson arrivals; `shares` says how they are spread over the queues."""
    chance = np.random.default_rng(seed)
    times = np.cumsum(chance.exponential(1 / rate_rps, count))
    shares_ = np.asarray(shares) / np.sum(shares)
    queues = chance.choice(len(shares_), count, p=shares_) if len(shares_) > 1 else 0
    return Arrivals.of(times, size, queues)


@dataclass(frozen=True)
class Result:
    """What became of the requests.

    latency_s: [n], nan for a request that was refused. queued_s: [n], the part of it spent waiting for a batch to run.
    batch_rows, batch_begun_s: [batches], rows before padding, and when each began, in the order in which they began.
    thread_use: share of the batch threads' time spent running. processor_use: share of the cores' time that the server
    took (nan with cores without end). generator_use: share of one core that the load generator took.
    """

    latency_s: np.ndarray
    queued_s: np.ndarray
    batch_rows: np.ndarray
    batch_begun_s: np.ndarray
    thread_use: float
    processor_use: float
    generator_use: float

    @property
    def refused(self) -> int:
        return int(np.isnan(self.latency_s).sum())

    @property
    def refused_share(self) -> float:
        return self.refused / len(self.latency_s)

    @property
    def mean_batch(self) -> float:
        """Mean rows of a batch; nan without any."""
        return float(self.batch_rows.mean()) if len(self.batch_rows) else float("nan")

    def percentile_ms(self, percentile: float, skip: float = 0.1) -> float:
        """Return a percentile of the latency of answered requests, in ms, leaving out the first `skip` of the run."""
        counted = self.latency_s[int(len(self.latency_s) * skip) :]
        answered = counted[~np.isnan(counted)]
        return float(np.percentile(answered, percentile) * 1e3) if len(answered) else float("nan")

    def missed_share(self, limit_s: float, skip: float = 0.1) -> float:
        """Return the share of requests that were refused or took longer than a limit, without the first `skip`."""
        counted = self.latency_s[int(len(self.latency_s) * skip) :]
        return float(1 - (counted <= limit_s).mean())


def simulate(queues: Sequence[Queue], num_batch_threads: int, host: Host, arrivals: Arrivals, seed: int = 0) -> Result:
    """Compute what becomes of the arrivals.

    queues: one for each number in `arrivals.queues`. num_batch_threads: shared by all queues.
    Raises ValueError for arrivals that are none: times that go back, rows under 1, a queue that is not there.
    """
    from launchpad.tune import events  # numba, and the first time a compilation

    _check(arrivals, len(queues))
    largest = int(arrivals.sizes.max())
    numbers, parts = _numbers(queues, arrivals)
    most_rows = max(largest, *(queue.batching.max_batch_size for queue in queues if queue.batching), 1)
    work = np.stack([_work(queue, queue.times.batch_s, most_rows) for queue in queues])
    size = float(arrivals.sizes.mean())
    inline = np.stack([_inline(queue, own, host, size) for queue, own in zip(queues, work, strict=True)])
    latency, queued = np.zeros(len(arrivals)), np.zeros(len(arrivals))
    rows, begun, totals = np.zeros(parts, np.int64), np.zeros(parts), np.zeros(5)
    events.run(
        times=arrivals.times_s,
        sizes=arrivals.sizes,
        queue_of=arrivals.queues,
        q=numbers,
        timeouts=np.array([queue.batching.batch_timeout_micros / 1e6 if queue.batching else 0.0 for queue in queues]),
        work=work,
        cold=np.stack([_work(queue, queue.times.cold_s, most_rows) for queue in queues]),
        cool_s=np.array([queue.times.cool_s for queue in queues]),
        task_s=np.stack([_added(queue, most_rows) for queue in queues]),
        lone_s=np.array([queue.times.lone_s if queue.batching else 0.0 for queue in queues]),
        front_s=np.array([(queue.times.read_s, queue.times.answer_s) for queue in queues]),
        factors=np.concatenate([np.asarray(queue.times.noise, np.float64) for queue in queues]),
        factor_ends=np.cumsum([len(queue.times.noise) for queue in queues]),
        cores=float(host.cores),
        batch_cores=float(host.batch_cores),
        fronts=1 if host.event_loop else host.front_threads,
        loop=host.event_loop,
        inline=inline,
        threads=num_batch_threads,
        request_threads=min(host.request_threads, len(arrivals)),
        poll_s=float(host.poll_s),
        client_s=np.array([host.send_s, host.receive_s]),
        wake_s=np.array([host.wake_s, host.client_wake_s]),
        rouse_s=float(host.rouse_s),
        turn_s=np.array([host.turn_read_s, host.turn_answer_s]),
        thread_s=float(host.thread_s),
        crowd=host.crowd,
        crowd_s=float(host.crowd_s),
        paces=np.asarray(host.paces, np.float64),
        pace_s=float(host.pace_s),
        seed=seed,
        latency=latency,
        queued=queued,
        rows=rows,
        begun=begun,
        totals=totals,
    )
    made, length_s = int(totals[0]), max(totals[4], 1e-12)
    return Result(
        latency_s=latency,
        queued_s=queued,
        batch_rows=rows[:made],
        batch_begun_s=begun[:made],
        thread_use=totals[1] / length_s / num_batch_threads,
        processor_use=totals[2] / length_s / host.cores if np.isfinite(host.cores) else float("nan"),
        generator_use=totals[3] / length_s,
    )


def prepare() -> None:
    """Have the event loop compiled, which takes some seconds the first time in a checkout."""
    times = ServiceTimes(batch_s=np.array([0, 1e-3]))
    simulate([Queue(None, times)], 1, Host(), poisson_arrivals(100, 10))


def _check(arrivals: Arrivals, queues: int) -> None:
    if not len(arrivals):
        raise ValueError("there are no arrivals")
    if (np.diff(arrivals.times_s) < 0).any() or arrivals.times_s[0] < 0:
        raise ValueError("arrival times must not go back, nor before 0")
    if (arrivals.sizes < 1).any():
        raise ValueError("a request has at least one row")
    if not ((arrivals.queues >= 0) & (arrivals.queues < queues)).all():
        raise ValueError(f"arrivals name queues 0 to {queues - 1} only")


def _numbers(queues: Sequence[Queue], arrivals: Arrivals) -> tuple[np.ndarray, int]:
    """Return the queues' numbers as `events` has them, and how many parts all requests can have."""
    from launchpad.tune import events

    numbers = np.zeros((len(queues), 10), np.int64)
    at = 0
    for k, queue in enumerate(queues):
        own = arrivals.sizes[arrivals.queues == k]
        row, batching = numbers[k], queue.batching
        row[events.PARTS_AT] = at
        parts = len(own)
        if batching is None:
            row[events.OFF] = 1
        else:
            splits = batching.enable_large_batch_splitting
            row[events.LIMIT], row[events.LARGEST] = batching.execution_size, batching.max_batch_size
            row[events.MOST], row[events.SPLIT] = batching.max_enqueued_batches, splits
            parts += int((own // batching.execution_size + 1).sum()) if splits else 0
        at += parts + 2
    return numbers, at


def _work(queue: Queue, times_s: np.ndarray, most_rows: int) -> np.ndarray:
    """Return [most_rows + 1]: what times_s [rows + 1] say of a batch of so many rows, at the allowed size that it is
    padded to."""
    rows = np.arange(most_rows + 1)
    allowed = queue.batching.allowed_batch_sizes if queue.batching else ()
    if allowed:
        sizes = np.asarray(allowed)
        rows = np.where(rows <= sizes[-1], sizes[np.minimum(np.searchsorted(sizes, rows), len(sizes) - 1)], rows)
    return _table(times_s, int(rows.max()))[rows]


def _inline(queue: Queue, work: np.ndarray, host: Host, size: float) -> np.ndarray:
    requests = np.arange(len(work)) / size if queue.batching else np.ones(len(work))
    return short(work, queue.times.noise, np.maximum(host.inline_s, requests * host.inline_request_s))


def short(work_s: np.ndarray, noise: np.ndarray, limit_s: np.ndarray) -> np.ndarray:
    """Return [rows + 1] bool: whether an event loop takes a batch of so many rows for a short one, that takes
    work_s [rows + 1] times the noise, where it may take limit_s [rows + 1].

    It goes by the shortest of the last LEARNT_FROM runs of the same order of magnitude.
    """
    rows = np.arange(len(work_s))
    least = 1 << (np.frexp(np.maximum(rows, 1))[1] - 1)
    return work_s[least] * np.quantile(noise, 1 / LEARNT_FROM) < limit_s


def _added(queue: Queue, most_rows: int) -> np.ndarray:
    """Return [most_rows + 1]: seconds that each request adds to a batch of so many rows."""
    known = np.asarray(queue.times.task_s, np.float64)
    return np.interp(np.arange(most_rows + 1), np.arange(len(known)), known)


def _table(batch_s: np.ndarray, rows: int) -> np.ndarray:
    """Return the times of 0 to `rows` rows; beyond the last known, along the line through the last two."""
    table = np.asarray(batch_s, np.float64)
    if len(table) < 2:
        raise ValueError("batch_s needs the time of at least one row")
    slope = table[-1] - table[-2] if len(table) > 2 else table[-1]
    beyond = table[-1] + slope * np.arange(1, max(0, rows + 1 - len(table)) + 1)
    return np.concatenate([table, beyond])
