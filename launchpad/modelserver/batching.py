"""Batches of requests, formed as TensorFlow's shared batch scheduler forms them.

`BatchQueue` is the rule by which tasks join batches: it computes, and knows neither clock nor thread.
`BatchScheduler` gives the batches of all queues in turn to a fixed number of batch threads. `BatchRunner` makes
one run of a batch: it joins inputs, pads them to an allowed size, and cuts the outputs apart.

Each parameter of `BatchingOptions` is that of the same name in TensorFlow Serving's
`session_bundle_config.proto`; the semantics are those of `shared_batch_scheduler.h` and `batching_session.cc`.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from .execution import Done, Outcome, ServiceTimes, Workers, remaining_ms
from .metrics import Metrics
from .runtime import Step
from .status import Code, ServingError, invalid_argument
from .tensor import Tensor, concatenate, pad
from .timer import Timer

_NO_DEADLINE = float("inf")


@dataclass(frozen=True)
class BatchingOptions:
    """How the batches of one queue are formed."""

    max_batch_size: int = 1000
    """Most rows in a batch; a request with more is refused unless large batches are split."""
    batch_timeout_micros: int = 0
    """How long the oldest task of a batch that is not full may wait for others."""
    max_enqueued_batches: int = 10
    """Batches that may wait for a thread; past that requests are refused with UNAVAILABLE."""
    allowed_batch_sizes: tuple[int, ...] = ()
    """Sizes to which batches are padded up; increasing, the last one the largest batch executed."""
    pad_variable_length_inputs: bool = False
    """Pads inputs of one batch to a common shape; otherwise they must have one."""
    enable_large_batch_splitting: bool = False
    """Splits requests with more rows than fit into the batch being formed."""
    max_execution_batch_size: int = 0
    """With splitting: most rows in a batch executed; 0 means max_batch_size."""

    @property
    def execution_limit(self) -> int:
        """Most rows in a batch as executed."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size:
            return self.max_execution_batch_size
        return self.max_batch_size

    def padded(self, size: int) -> int:
        """The least allowed batch size that holds `size` rows."""
        index = bisect_left(self.allowed_batch_sizes, size)
        return self.allowed_batch_sizes[index] if index < len(self.allowed_batch_sizes) else size

    def validate(self) -> None:
        """Raises INVALID_ARGUMENT where the parameters contradict each other."""
        if self.max_batch_size <= 0:
            raise invalid_argument(f"max_batch_size must be positive; was {self.max_batch_size}")
        if self.batch_timeout_micros < 0:
            raise invalid_argument(f"batch_timeout_micros must be non-negative; was {self.batch_timeout_micros}")
        if self.enable_large_batch_splitting and self.max_batch_size < self.execution_limit:
            raise invalid_argument(
                "When enable_large_batch_splitting is true, input_batch_size_limit must be greater than or "
                "equal to max_execution_batch_size."
            )
        sizes = self.allowed_batch_sizes
        if any(later <= earlier for earlier, later in pairwise(sizes)):
            raise invalid_argument("allowed_batch_sizes entries must be monotonically increasing")
        if sizes and sizes[-1] != self.execution_limit:
            limit = "max_execution_batch_size" if self.enable_large_batch_splitting else "max_batch_size"
            raise invalid_argument(
                f"Last entry in allowed_batch_sizes must match {limit}; last entry was {sizes[-1]}; expected "
                f"{self.execution_limit}"
            )


class Sized(Protocol):
    """What joins a batch: a number of rows, which can be split."""

    size: int

    def split(self, sizes: Sequence[int]) -> Sequence[Any]:
        """The task as one task for each of `sizes`, which add up to its own."""


TaskT = TypeVar("TaskT", bound=Sized)


class Batch(Generic[TaskT]):
    """Tasks that run together; `started` is when the first of them came."""

    __slots__ = ("size", "started", "tasks")

    def __init__(self) -> None:
        self.tasks: list[TaskT] = []
        self.size = 0
        self.started = 0.0


class BatchQueue(Generic[TaskT]):
    """The tasks of one signature that wait for a batch thread. Times are in seconds on any clock."""

    def __init__(self, options: BatchingOptions) -> None:
        self.options = options
        self._limit = options.execution_limit
        self._timeout = options.batch_timeout_micros / 1e6
        self._batches: deque[Batch[TaskT]] = deque([Batch()])

    def add(self, task: TaskT, now: float) -> None:
        """Put the task into the batch being formed, or the next.

        Raises INVALID_ARGUMENT for a task that is too large, UNAVAILABLE when the queue is full.
        """
        self._check_capacity(task)
        room = self._limit - self._batches[-1].size
        for part in self._parts(task, room):
            if self._batches[-1].size + part.size > self._limit:
                self._batches.append(Batch())
            batch = self._batches[-1]
            if not batch.tasks:
                batch.started = now
            batch.tasks.append(part)
            batch.size += part.size

    def _parts(self, task: TaskT, room: int) -> Sequence[TaskT]:
        if task.size <= room or not self.options.enable_large_batch_splitting:
            return (task,)
        sizes = [room] if room else []
        rest = task.size - room
        while rest > 0:
            sizes.append(min(rest, self._limit))
            rest -= self._limit
        return task.split(sizes)

    def _check_capacity(self, task: TaskT) -> None:
        options = self.options
        if task.size > options.max_batch_size:
            raise invalid_argument(
                f"Task size {task.size} is larger than maximum input batch size {options.max_batch_size}"
            )
        enqueued, most = len(self._batches), max(1, options.max_enqueued_batches)
        tail = self._batches[-1].size
        if options.enable_large_batch_splitting:
            capacity = (most - enqueued) * self._limit + self._limit - tail
            if task.size > capacity:
                raise ServingError(
                    Code.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; task size is "
                    f"{task.size} but scheduling capacity is only {capacity} (num_enqueued_batches={enqueued}, "
                    f"max_enqueued_batches={most}, open_batch_size={tail}, "
                    f"max_execution_batch_size={self._limit})",
                )
        elif tail + task.size > options.max_batch_size and enqueued >= most:
            raise ServingError(
                Code.UNAVAILABLE,
                "The batch scheduling queue to which this task was submitted is full; currently "
                f"{enqueued} batches enqueued and max_enqueued_batches is {most}",
            )

    def ready_at(self) -> float | None:
        """When the first batch may run: 0 for at once, None while there is no task."""
        if len(self._batches) > 1:
            return 0.0
        batch = self._batches[0]
        if not batch.tasks:
            return None
        return 0.0 if batch.size >= self._limit else batch.started + self._timeout

    def take(self, now: float) -> Batch[TaskT] | None:
        """Remove and return the first batch, if it may run."""
        ready = self.ready_at()
        if ready is None or ready > now:
            return None
        batch = self._batches.popleft()
        if not self._batches:
            self._batches.append(Batch())
        return batch


class BatchScheduler:
    """Gives the batches of its queues, in turn, to a fixed number of batch threads. Lives on the event loop.

    answered: called when tasks have been told their outputs, before the loop reads anything else.
    """

    def __init__(
        self,
        num_batch_threads: int,
        thread_pool_name: str,
        loop: asyncio.AbstractEventLoop,
        answered: Callable[[], None],
    ) -> None:
        self.thread_pool_name = thread_pool_name
        self._answered = answered
        self._free = num_batch_threads
        self._workers = Workers(thread_pool_name or "batch", num_batch_threads)
        self._loop = loop
        self._queues: deque[tuple[BatchQueue[Task], BatchRunner]] = deque()
        self._timer = Timer(loop, self._look)
        self._looking = False

    def add_queue(self, queue: BatchQueue[Task], runner: BatchRunner) -> None:
        """Have the queue's batches run by `runner`; may be called on any thread."""
        self._loop.call_soon_threadsafe(self._queues.append, (queue, runner))

    def remove_queue(self, queue: BatchQueue[Task]) -> None:
        """Forget a queue that has no tasks left; may be called on any thread."""
        self._loop.call_soon_threadsafe(self._remove, queue)

    def _remove(self, queue: BatchQueue[Task]) -> None:
        self._queues = deque(entry for entry in self._queues if entry[0] is not queue)

    def look_soon(self) -> None:
        """Look for batches to run once the loop has taken in what lies ready."""
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        now = monotonic()
        while self._free:
            found = self._next(now)
            if found is None:
                break
            batch, runner = found
            if runner.expects_short(batch):
                runner.finish(batch, runner.run(batch, in_caller=True))
                now = monotonic()
                continue
            self._free -= 1
            self._workers.submit(lambda batch=batch, runner=runner: self._run(batch, runner))  # type: ignore[misc]
        self._set_timer()
        self._answered()

    def _next(self, now: float) -> tuple[Batch[Task], BatchRunner] | None:
        for _ in range(len(self._queues)):
            queue, runner = self._queues[0]
            self._queues.rotate(-1)
            batch = queue.take(now)
            if batch is not None:
                return batch, runner
        return None

    def _set_timer(self) -> None:
        times = [ready for queue, _ in self._queues if (ready := queue.ready_at()) is not None]
        if self._free and times:
            self._timer.wake_at(min(times))

    def _run(self, batch: Batch[Task], runner: BatchRunner) -> None:
        result = runner.run(batch)
        self._loop.call_soon_threadsafe(self._finish, batch, runner, result)

    def _finish(self, batch: Batch[Task], runner: BatchRunner, result: BatchResult) -> None:
        self._free += 1
        self._look()
        runner.finish(batch, result)
        self._answered()

    def stop(self) -> None:
        """Let the batch threads end."""
        self._timer.close()
        self._workers.stop()


@dataclass(slots=True)
class Task:
    """One request's share of a batch: `size` rows of each input, and whom to tell."""

    values: Sequence[Tensor]
    size: int
    deadline: float
    enqueued: float
    done: Done

    def split(self, sizes: Sequence[int]) -> list[Task]:
        """The task in parts; when all are done, their outputs are joined."""
        join = _Join(len(sizes), self.done)
        parts, start = [], 0
        for index, size in enumerate(sizes):
            values = [value.rows(start, start + size) for value in self.values]
            parts.append(Task(values, size, self.deadline, self.enqueued, join.part(index)))
            start += size
        return parts


class _Join:
    """Waits for all parts of a split task; the first error counts."""

    def __init__(self, count: int, done: Done) -> None:
        self._outcomes: list[Outcome | None] = [None] * count
        self._missing = count
        self._done = done

    def part(self, index: int) -> Done:
        """Whom part number `index` is to tell."""
        return lambda outcome: self._take(index, outcome)

    def _take(self, index: int, outcome: Outcome) -> None:
        self._outcomes[index] = outcome
        self._missing -= 1
        if self._missing:
            return
        parts: list[list[Tensor]] = []
        for part in self._outcomes:
            if isinstance(part, ServingError):
                self._done(part)
                return
            assert part is not None
            parts.append(part)
        self._done([concatenate(pieces) for pieces in zip(*parts, strict=True)])


@dataclass(slots=True)
class BatchResult:
    """What became of a batch: the outputs of each task or the error of all; sizes 0 if it did not run."""

    outcomes: Sequence[Outcome]
    dequeued: float
    padded_size: int = 0
    ran: bool = False


@dataclass
class BatchRunner:
    """Runs the batches of one signature. `submit` and `finish` on the event loop, `run` on a batch thread."""

    step: Step
    feed_names: Sequence[str]
    queue: BatchQueue[Task]
    scheduler: BatchScheduler
    metrics: Metrics
    _times: ServiceTimes = field(init=False, default_factory=ServiceTimes)
    _latency: Any = field(init=False)
    _input_sizes: Any = field(init=False)
    _processed_sizes: Any = field(init=False)

    def __post_init__(self) -> None:
        self._latency = self.metrics.queuing_latency.cell(self.scheduler.thread_pool_name)
        self._input_sizes = self.metrics.input_batch_size
        self._processed_sizes = self.metrics.processed_batch_size
        self.scheduler.add_queue(self.queue, self)

    def submit(self, values: Sequence[Tensor], deadline: float | None, done: Done) -> None:
        """Enqueue a request and tell `done` its share of the outputs."""
        now = monotonic()
        try:
            size = _batch_size(values)
            for _ in values:
                self._input_sizes.cell().add(size)
            self.queue.add(Task(values, size, _NO_DEADLINE if deadline is None else deadline, now, done), now)
        except ServingError as error:
            done(error)
            return
        self.scheduler.look_soon()

    def run_now(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Run a request on this thread in a batch of its own, padded as any batch; raises ServingError."""
        batch: Batch[Task] = Batch()
        batch.size = _batch_size(values)
        batch.tasks.append(Task(values, batch.size, _NO_DEADLINE, monotonic(), lambda outcome: None))
        outcome = self.run(batch).outcomes[0]
        if isinstance(outcome, ServingError):
            raise outcome
        return outcome

    def close(self) -> None:
        """Nothing more will be submitted."""
        self.scheduler.remove_queue(self.queue)

    def expects_short(self, batch: Batch[Task]) -> bool:
        """Whether the batch is worth running on the event loop; see `ServiceTimes`."""
        return self._times.expects_short(batch.size.bit_length(), len(batch.tasks))

    def run(self, batch: Batch[Task], *, in_caller: bool = False) -> BatchResult:
        """Run a batch to the end, `in_caller` wholly on this thread; never raises."""
        dequeued = monotonic()
        latest = max(task.deadline for task in batch.tasks)
        result = BatchResult([], dequeued)
        try:
            if latest <= dequeued:
                raise ServingError(Code.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue")
            result.padded_size = self.queue.options.padded(batch.size) if batch.size else 0
            merged = self._merge(batch, result.padded_size)
            result.ran = True
            outputs = self._run_step(merged, latest, in_caller)
            self._times.add(batch.size.bit_length(), monotonic() - dequeued)
            result.outcomes = self._split(batch, outputs, result.padded_size)
        except ServingError as error:
            result.outcomes = [error] * len(batch.tasks)
        return result

    def _run_step(self, merged: Sequence[Tensor], deadline: float, in_caller: bool) -> list[Tensor]:
        if in_caller:
            return self.step.run_in_caller(merged)
        return self.step.run(merged, None if deadline == _NO_DEADLINE else remaining_ms(deadline))

    def _merge(self, batch: Batch[Task], padded_size: int) -> list[Tensor]:
        merged = []
        for index, name in enumerate(self.feed_names):
            parts = [task.values[index] for task in batch.tasks]
            self._agree(name, parts)
            if self.queue.options.pad_variable_length_inputs:
                parts = _pad_all(parts)
            if padded_size > batch.size:
                filler = next(part for part in reversed(parts) if part.shape[0]).rows(0, 1)
                parts = [*parts, *[filler] * (padded_size - batch.size)]
            merged.append(concatenate(parts))
        return merged

    def _agree(self, name: str, parts: Sequence[Tensor]) -> None:
        first = parts[0]
        for part in parts:
            if part.dtype != first.dtype:
                raise ServingError(Code.INTERNAL, "Tensor concat operation failed: tensors have different types")
            if part.shape[1:] != first.shape[1:] and not self.queue.options.pad_variable_length_inputs:
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    f"Tensors with name '{name}' from different tasks have different shapes and padding is "
                    "turned off.Set pad_variable_length_inputs to true, or ensure that all tensors with the "
                    "same namehave equal dimensions starting with the first dim.",
                )

    @staticmethod
    def _split(batch: Batch[Task], outputs: Sequence[Tensor], padded_size: int) -> list[Outcome]:
        for output in outputs:
            if not output.shape:
                raise ServingError(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
            if output.shape[0] != padded_size:
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of "
                    "the input tensors",
                )
        outcomes: list[Outcome] = []
        start = 0
        for task in batch.tasks:
            outcomes.append([output.rows(start, start + task.size) for output in outputs])
            start += task.size
        return outcomes

    def finish(self, batch: Batch[Task], result: BatchResult) -> None:
        """Count the batch and tell everybody."""
        if result.padded_size:
            self.metrics.padding_size.cell(str(result.padded_size)).add(result.padded_size - batch.size)
            self._processed_sizes.cell().add(result.padded_size)
        if result.ran:
            self.metrics.wrapped_run_count.add()
        for task, outcome in zip(batch.tasks, result.outcomes, strict=True):
            self._latency.add(int((result.dequeued - task.enqueued) * 1e6))
            task.done(outcome)


def _batch_size(values: Sequence[Tensor]) -> int:
    if not values:
        raise invalid_argument("Batching session Run() must have at least one input tensor")
    if any(not value.shape for value in values):
        raise invalid_argument("Batching Run() input tensors must have at least one dimension")
    size = values[0].shape[0]
    if any(value.shape[0] != size for value in values):
        raise invalid_argument("Batching Run() input tensors must have equal 0th-dimension size")
    return size


def _pad_all(parts: Sequence[Tensor]) -> list[Tensor]:
    """The parts padded to the largest size in each dimension but the 0th."""
    if len({len(part.shape) for part in parts}) > 1:
        raise invalid_argument("Tensors of one batch must have the same number of dimensions")
    largest = tuple(map(max, zip(*[part.shape[1:] for part in parts], strict=True)))
    return [pad(part, (part.shape[0], *largest)) for part in parts]
