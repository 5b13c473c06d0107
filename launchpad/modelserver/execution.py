"""Where runs take place: on the event loop when they are short, on a worker thread when they are not.

Handing a run to a thread and back costs as much as a small model's whole run. So a run that is known to be short
takes place on the event loop itself, and long ones, or ones of unknown length, on worker threads, where they hold
up nobody.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from math import inf
from queue import SimpleQueue
from time import monotonic, perf_counter

from .flags import schedulable_cpus
from .runtime import Step
from .status import Code, ServingError
from .tensor import Tensor

Outcome = list[Tensor] | ServingError
Done = Callable[[Outcome], None]
"""Called on the event loop with a run's outputs or its error, at once or later."""


_CORES = os.sched_getaffinity(0)


def use_all_cores() -> None:
    """Let the calling thread run on all cores that the process began with: a load test keeps the event loop to some,
    which a thread that the loop starts would inherit."""
    os.sched_setaffinity(0, _CORES)


class Workers:
    """Threads that are started as they are needed, up to a number, and work one function after the other."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = max(1, limit)
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._busy = 0
        self._started = 0
        self._lock = threading.Lock()

    def submit(self, task: Callable[[], None]) -> None:
        """Have `task`, which must not raise, called on a thread."""
        with self._lock:
            self._busy += 1
            start = self._busy > self._started and self._started < self._limit
            self._started += start
        if start:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        self._tasks.put(task)

    def _work(self) -> None:
        use_all_cores()
        while task := self._tasks.get():
            task()
            with self._lock:
                self._busy -= 1

    def stop(self) -> None:
        """Let the threads end when they have done what was submitted."""
        for _ in range(self._started):
            self._tasks.put(None)


class ServiceTimes:
    """What is known of how long runs take, by the order of magnitude of their inputs."""

    INLINE_LIMIT_S = 0.0008 if schedulable_cpus() <= 2 else 0.00015
    """Runs expected to be shorter take place on the event loop.

    With a processor or two there is little to gain from another thread; with more, a run on the event loop is
    one that cannot take place beside the others.
    """
    INLINE_REQUEST_S = 0.00004 if schedulable_cpus() <= 2 else 0.0
    """With a processor or two, also runs expected to take less than this for each of a batch's requests.

    It is what reading and answering a request takes at least, and while it does that, a run on another thread waits
    for the interpreter, and the loop for the run: more than the other processor gives.
    """

    _PATIENCE = 8
    _MEMORY = 64

    def __init__(self) -> None:
        self._recent: dict[int, tuple[float, int]] = {}

    def expects_short(self, magnitude: int, requests: int = 1) -> bool:
        """Whether a run on inputs of this magnitude is known to be short, for so many requests."""
        known = self._recent.get(magnitude)
        limit_s = max(self.INLINE_LIMIT_S, requests * self.INLINE_REQUEST_S)
        return known is not None and known[0] < limit_s and known[1] >= self._PATIENCE

    def add(self, magnitude: int, seconds: float) -> None:
        """Learn from a run. The least of the recent times counts: waiting for the processor is not the run's."""
        least, count = self._recent.get(magnitude, (inf, 0))
        if count >= self._MEMORY:
            least, count = inf, self._PATIENCE
        self._recent[magnitude] = (min(least, seconds), count + 1)


def magnitude(values: Sequence[Tensor]) -> int:
    """The order of magnitude, to the base 2, of the inputs' size."""
    size = 0
    for value in values:
        size += len(value.data) or sum(map(len, value.strings))
    return size.bit_length()


def remaining_ms(deadline: float | None) -> int | None:
    """The whole milliseconds left until a deadline on the monotonic clock; DEADLINE_EXCEEDED if there are none."""
    if deadline is None:
        return None
    left = int((deadline - monotonic()) * 1000)
    if left <= 0:
        raise ServingError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")
    return left


class DirectRunner:
    """Runs a step for each request by itself."""

    def __init__(self, step: Step, workers: Workers, loop: asyncio.AbstractEventLoop) -> None:
        self._step = step
        self._workers = workers
        self._loop = loop
        self._times = ServiceTimes()

    def submit(self, values: Sequence[Tensor], deadline: float | None, done: Done) -> None:
        """Run on `values` before `deadline` (monotonic clock) and tell `done`."""
        size = magnitude(values)
        if self._times.expects_short(size):
            outcome, seconds = self._timed(self._step.run_in_caller, values)
            self._times.add(size, seconds)
            done(outcome)
        else:
            self._workers.submit(lambda: self._on_worker(values, size, deadline, done))

    def run_now(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Run on this thread; raises ServingError."""
        return self._step.run(values)

    def close(self) -> None:
        """Nothing more will be submitted."""

    def _on_worker(self, values: Sequence[Tensor], size: int, deadline: float | None, done: Done) -> None:
        outcome, seconds = self._timed(lambda inputs: self._step.run(inputs, remaining_ms(deadline)), values)
        self._times.add(size, seconds)
        self._loop.call_soon_threadsafe(done, outcome)

    @staticmethod
    def _timed(run: Callable[[Sequence[Tensor]], list[Tensor]], values: Sequence[Tensor]) -> tuple[Outcome, float]:
        started = perf_counter()
        outcome: Outcome
        try:
            outcome = run(values)
        except ServingError as error:
            outcome = error
        return outcome, perf_counter() - started
