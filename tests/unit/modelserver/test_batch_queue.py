"""The rule by which tasks join batches, with times as given."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from launchpad.modelserver.batching import Batch, BatchingOptions, BatchQueue, BatchScheduler
from launchpad.modelserver.status import Code, ServingError


@dataclass
class Rows:
    size: int

    def split(self, sizes: Sequence[int]) -> list[Rows]:
        return [Rows(size) for size in sizes]


def _queue(**options: object) -> BatchQueue[Rows]:
    return BatchQueue(BatchingOptions(**options))  # type: ignore[arg-type]


def _sizes(queue: BatchQueue[Rows], now: float) -> list[int]:
    sizes = []
    while batch := queue.take(now):
        sizes.append(batch.size)
    return sizes


def test_a_batch_that_is_not_full_waits_for_the_timeout_of_its_first_task() -> None:
    queue = _queue(max_batch_size=4, batch_timeout_micros=1000)
    queue.add(Rows(1), 1.0)
    queue.add(Rows(2), 1.0009)
    assert queue.ready_at() == pytest.approx(1.001)
    assert _sizes(queue, 1.0009) == []
    assert _sizes(queue, 1.0011) == [3]
    assert queue.ready_at() is None


def test_a_full_batch_and_one_that_is_followed_by_another_run_at_once() -> None:
    queue = _queue(max_batch_size=4, batch_timeout_micros=1000)
    queue.add(Rows(4), 1.0)
    assert queue.ready_at() == 0.0 and _sizes(queue, 1.0) == [4]
    queue.add(Rows(3), 2.0)
    queue.add(Rows(2), 2.0)
    assert _sizes(queue, 2.0) == [3]
    assert _sizes(queue, 2.1) == [2]


def test_a_large_task_fills_the_open_batch_and_those_after_it() -> None:
    queue = _queue(max_batch_size=100, max_execution_batch_size=4, enable_large_batch_splitting=True)
    queue.add(Rows(3), 0.0)
    queue.add(Rows(10), 0.0)
    assert _sizes(queue, 0.0) == [4, 4, 4, 1]


@pytest.mark.parametrize(
    ("options", "sizes", "code"),
    [
        ({"max_batch_size": 4}, [5], Code.INVALID_ARGUMENT),
        ({"max_batch_size": 4, "max_enqueued_batches": 2}, [4, 4, 1], Code.UNAVAILABLE),
        (
            {"max_batch_size": 8, "max_execution_batch_size": 4, "enable_large_batch_splitting": True}
            | {"max_enqueued_batches": 1},
            [4, 1],
            Code.UNAVAILABLE,
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, object], sizes: list[int], code: Code) -> None:
    queue = _queue(**options)
    for size in sizes[:-1]:
        queue.add(Rows(size), 0.0)
    with pytest.raises(ServingError) as refused:
        queue.add(Rows(sizes[-1]), 0.0)
    assert refused.value.code is code


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch_size": 8, "allowed_batch_sizes": (4, 4, 8)},
        {"max_batch_size": 8, "allowed_batch_sizes": (4,)},
        {"max_batch_size": 0},
        {"batch_timeout_micros": -1},
        {"max_batch_size": 2, "max_execution_batch_size": 4, "enable_large_batch_splitting": True},
    ],
)
def test_parameters_that_contradict_each_other_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ServingError):
        BatchingOptions(**options).validate()  # type: ignore[arg-type]


def test_batches_are_padded_to_the_next_allowed_size() -> None:
    options = BatchingOptions(max_batch_size=16, allowed_batch_sizes=(2, 8, 16))
    assert [options.padded(size) for size in (1, 2, 3, 8, 9, 16)] == [2, 2, 8, 8, 16, 16]
    assert BatchingOptions().padded(5) == 5


class _Runner:
    """A runner whose batches take no time, on the loop or beside it."""

    def __init__(self, events: list[str], short: bool) -> None:
        self._events, self._short = events, short

    def expects_short(self, batch: Batch[Rows]) -> bool:
        return self._short

    def run(self, batch: Batch[Rows], *, in_caller: bool = False) -> None:
        self._events.append(f"run {batch.size}")

    def finish(self, batch: Batch[Rows], result: None) -> None:
        self._events.append(f"finish {batch.size}")


@pytest.mark.parametrize("short", [True, False])
def test_answers_of_a_batch_go_out_before_the_loop_does_anything_else(short: bool) -> None:
    """What reads the next requests is scheduled as soon as a batch runs, and yet comes after its answers."""
    events: list[str] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def answered() -> None:
            if any(event.startswith("finish") for event in events) and "answered" not in events:
                events.append("answered")
                over.set()

        runner, queue = _Runner(events, short), _queue(max_batch_size=8)
        finish = runner.finish

        def finish_and_read_on(batch: Batch[Rows], result: None) -> None:
            loop.call_soon(events.append, "read on")
            finish(batch, result)

        runner.finish = finish_and_read_on  # type: ignore[method-assign]
        scheduler = BatchScheduler(1, "batch", loop, answered)
        scheduler.add_queue(queue, runner)  # type: ignore[arg-type]
        await asyncio.sleep(0)
        queue.add(Rows(3), loop.time())
        scheduler.look_soon()
        await asyncio.wait_for(over.wait(), 5)
        await asyncio.sleep(0)
        scheduler.stop()

    asyncio.run(serve())
    assert events == ["run 3", "finish 3", "answered", "read on"]
