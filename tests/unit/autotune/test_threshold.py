"""The threshold policy: grow under the limit, shrink over twice the limit, never past the bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchpad.spec import Autotune, BatchQueue, Between, Bounds
from launchpad.tune.autotune.control import Observation, Rules
from launchpad.tune.autotune.threshold import resized, threshold

BOUNDS = Bounds(max_batch_size=Between(min=2, max=32), batch_timeout_micros=Between(min=0, max=1000))
RULES = Rules(Autotune(load_floor_rps=50, bounds=BOUNDS), p99_ms=40.0)
QUEUE = BatchQueue(max_batch_size=8, batch_timeout_micros=400, max_enqueued_batches=64)


def seen(p99_ms: float | None = 20.0, rps: float = 100.0, batch_size: float | None = 6.0) -> Observation:
    return Observation(0.0, 10.0, int(rps * 10), 0, p99_ms=p99_ms, batch_size=batch_size)


@pytest.mark.parametrize(
    ("current", "observation", "size", "reason"),
    [
        (QUEUE, seen(), 16, "p99 20 ms is under 40 ms at 100 requests/s"),
        (QUEUE, seen(rps=49), 8, "under the floor of 50"),
        (QUEUE, seen(batch_size=3.9), 8, "batches hold 3.9 of 8 on average"),
        (QUEUE, seen(batch_size=None), 16, "under 40 ms"),
        (QUEUE, seen(p99_ms=41), 8, "between 40 ms and 2 × that"),
        (QUEUE, seen(p99_ms=80), 8, "between"),
        (QUEUE, seen(p99_ms=81), 4, "over 2 × 40 ms"),
        (QUEUE, seen(p99_ms=None), 8, "no request was answered well"),
        (resized(QUEUE, 32, 1000), seen(batch_size=30), 32, "upper bounds"),
        (resized(QUEUE, 2, 0), seen(p99_ms=500), 2, "lower bounds"),
    ],
)
def test_larger_under_the_limit_smaller_far_over_it_nothing_between(current, observation, size, reason):
    wish = threshold(RULES)(current, observation)
    assert wish.setting.max_batch_size == size
    assert (wish.setting == current) == (size == current.max_batch_size)
    assert reason in wish.reason


def test_the_timeout_of_batches_of_one_is_left_alone():
    rules = Rules(Autotune(), p99_ms=40.0)
    one = BatchQueue(max_batch_size=1, batch_timeout_micros=400)
    assert threshold(rules)(one, seen(p99_ms=500)).setting == one


def test_a_model_that_is_not_batched_stays_so():
    assert threshold(RULES)(None, seen()).setting is None


def test_a_queue_that_splits_runs_no_more_at_once_than_before():
    splits = BatchQueue(max_batch_size=64, enable_large_batch_splitting=True, max_execution_batch_size=8)
    assert resized(splits, 128, 0).execution_size == 8
    assert resized(splits, 4, 0).execution_size == 4
    padded = BatchQueue(**splits.model_dump() | {"allowed_batch_sizes": (2, 8)})
    assert resized(padded, 128, 0).allowed_batch_sizes == (2, 8)


@st.composite
def queues(draw) -> BatchQueue:
    largest = draw(st.integers(1, 200))
    allowed = draw(st.booleans()) and tuple(sorted({*draw(st.sets(st.integers(1, largest), max_size=3)), largest}))
    return BatchQueue(
        max_batch_size=largest,
        batch_timeout_micros=draw(st.integers(0, 10**5)),
        max_enqueued_batches=draw(st.integers(1, 1000)),
        allowed_batch_sizes=allowed or (),
    )


@given(queues(), st.floats(0.01, 10**4), st.floats(0.1, 10**5))
def test_what_it_wants_is_within_the_bounds_and_a_server_can_load_it(queue, p99_ms, rps):
    wanted = threshold(RULES)(queue, seen(p99_ms, rps, None)).setting
    if wanted != queue:
        assert 2 <= wanted.max_batch_size <= 32 and 0 <= wanted.batch_timeout_micros <= 1000
        assert wanted.max_batch_size * wanted.max_enqueued_batches >= queue.max_batch_size * queue.max_enqueued_batches
        assert not queue.allowed_batch_sizes or wanted.allowed_batch_sizes[-1] == wanted.max_batch_size
