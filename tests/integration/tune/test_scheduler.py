"""The simulator forms the batches that TensorFlow's own scheduler forms of the same arrivals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launchpad.spec import BatchQueue
from launchpad.tune.simulate import TENSORFLOW_POLL_S, Arrivals, Host, Queue, ServiceTimes, simulate

STEP_S = 0.04
BATCH_S = 3.25 * STEP_S
APART_S = 0.2 * STEP_S
"""Least time between the end of a batch and an arrival or a timeout, by the choice of seeds: what is first is certain
on a busy machine too."""


def script(seed: int, count: int, most_rows: int) -> list[tuple[float, int]]:
    """Return arrivals at different multiples of STEP_S."""
    chance = np.random.default_rng(seed)
    steps = np.sort(chance.choice(np.arange(4 * count), count, replace=False))
    return [
        (float(step) * STEP_S, int(rows))
        for step, rows in zip(steps, chance.integers(1, most_rows + 1, count), strict=True)
    ]


CASES: dict[str, tuple[BatchQueue, int, list[tuple[float, int]]]] = {
    "one thread takes what there is": (BatchQueue(max_batch_size=4), 1, script(774, 25, 1)),
    "rows that do not fit begin a new batch": (BatchQueue(max_batch_size=4), 1, script(144, 25, 3)),
    "timeout": (BatchQueue(max_batch_size=8, batch_timeout_micros=100_000), 1, script(27, 25, 2)),
    "two threads": (BatchQueue(max_batch_size=4, batch_timeout_micros=60_000), 2, script(84, 30, 2)),
    "padding": (BatchQueue(max_batch_size=6, allowed_batch_sizes=(2, 3, 6)), 1, script(14, 25, 3)),
    "a queue that is full": (BatchQueue(max_batch_size=2, max_enqueued_batches=1), 1, script(11, 25, 2)),
    "splitting": (
        BatchQueue(max_batch_size=12, enable_large_batch_splitting=True, max_execution_batch_size=4),
        1,
        script(35, 14, 9),
    ),
}


@pytest.fixture(scope="module")
def really() -> dict[str, Any]:
    """What TensorFlow's scheduler does of each script, each in a process of its own, all at once."""
    running = {name: started(name) for name in CASES}
    return {name: ended(process) for name, process in running.items()}


def started(name: str) -> subprocess.Popen[str]:
    queue, threads, arrivals = CASES[name]
    parameters = {
        "num_batch_threads": threads,
        "max_batch_size": queue.max_batch_size,
        "batch_timeout_micros": queue.batch_timeout_micros,
        "max_enqueued_batches": queue.max_enqueued_batches,
        "enable_large_batch_splitting": queue.enable_large_batch_splitting,
    }
    if queue.allowed_batch_sizes or queue.enable_large_batch_splitting:
        parameters["allowed_batch_sizes"] = queue.allowed_batch_sizes or [queue.execution_size]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("scheduler.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"parameters": parameters, "batch_s": BATCH_S, "script": arrivals}))
    process.stdin.close()
    process.stdin = None
    return process


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(process.communicate(timeout=120)[0])
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_simulator_does_what_tensorflows_scheduler_does(name, really):
    queue, threads, arrivals = CASES[name]
    times, rows = (np.array(values) for values in zip(*arrivals, strict=True))
    largest = np.full(queue.max_batch_size + 1, BATCH_S)
    result = simulate(
        [Queue(queue, ServiceTimes(largest))], threads, Host(poll_s=TENSORFLOW_POLL_S), Arrivals.of(times, rows)
    )
    ends = result.batch_begun_s + BATCH_S
    decisive = [times, times + queue.batch_timeout_micros / 1e6]
    assert all(np.abs(ends[:, None] - others).min() > APART_S for others in decisive)
    padded = [queue.execution_size] if queue.enable_large_batch_splitting else queue.allowed_batch_sizes
    rows_run = [next((size for size in padded if size >= rows), rows) for rows in result.batch_rows.tolist()]
    latencies_s = pytest.approx(result.latency_s, abs=STEP_S, nan_ok=True)
    found = really[name]
    if found["batches"] != rows_run or found["latencies_s"] != latencies_s:
        found = ended(started(name))  # a machine that stood still meanwhile does not do so twice
    assert found["batches"] == rows_run
    assert found["latencies_s"] == latencies_s
    assert bool(result.refused) == (name == "a queue that is full")
