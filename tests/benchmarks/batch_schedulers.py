"""The embedded server's batch scheduler beside TensorFlow's own, on the dense net and nothing else of a server.

    python -m tests.benchmarks.batch_schedulers                  # a minute
    python -m tests.benchmarks.batch_schedulers --in-flight 16

A fixed number of requests is in flight: each answer makes the next request. TensorFlow's scheduler is reachable through
`tf.nondifferentiable_batch_function`, which holds a thread for each request that waits; the embedded server's lives on
the event loop. Both run the signature of `models/digits-mlp` with the same parameters. They take turns, each time in a
process of its own, and the figures are the medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "models" / "digits-mlp" / "versions" / "1")
WIDTH = 784
BATCHING = {"max_batch_size": 64, "batch_timeout_micros": 0, "max_enqueued_batches": 1000}


def measure_tensorflow(in_flight: int, seconds: float) -> int:
    """Return how many requests TensorFlow's scheduler got answered."""
    import tensorflow as tf

    model = tf.saved_model.load(MODEL)
    serve = model.signatures["serving_default"]
    name = next(iter(serve.structured_input_signature[1]))
    answer = next(iter(serve.structured_outputs))

    @tf.nondifferentiable_batch_function(num_batch_threads=1, autograph=False, **BATCHING)
    def batched(rows: tf.Tensor) -> tf.Tensor:
        return serve(**{name: rows})[answer]

    ask = tf.function(batched, input_signature=[tf.TensorSpec([None, WIDTH], tf.float32)]).get_concrete_function()
    row = tf.constant(np.ones((1, WIDTH), np.float32))
    ask(row)
    counts = [0] * in_flight
    end = time.monotonic() + seconds

    def keep_asking(number: int) -> None:
        while time.monotonic() < end:
            ask(row)
            counts[number] += 1

    threads = [threading.Thread(target=keep_asking, args=(number,)) for number in range(in_flight)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def measure_embedded(in_flight: int, seconds: float) -> int:
    """Return how many requests the embedded server's scheduler got answered."""
    import uvloop

    return uvloop.run(_embedded(in_flight, seconds))


async def _embedded(in_flight: int, seconds: float) -> int:
    import asyncio

    from launchpad.modelserver.batching import BatchingOptions, BatchQueue, BatchRunner, BatchScheduler
    from launchpad.modelserver.execution import Outcome
    from launchpad.modelserver.metrics import Metrics
    from launchpad.modelserver.runtime import Session, Step, prepare
    from launchpad.modelserver.servable import Plan, Servable
    from launchpad.modelserver.status import ServingError
    from launchpad.modelserver.tensor import Tensor

    prepare(onednn=True)
    loop = asyncio.get_running_loop()
    scheduler = BatchScheduler(1, "batch", loop, lambda: None)

    def batched(step: Step, plan: Plan, whole: bool) -> BatchRunner:
        return BatchRunner(step, plan.feeds, BatchQueue(BatchingOptions(**BATCHING)), scheduler, Metrics(batching=True))

    servable = Servable("digits-mlp", 1, Session(MODEL, ["serve"], b""), batched)
    signature = servable.signatures["serving_default"]
    runner = servable.runner(signature.feeds, signature.fetches)
    dtype = next(iter(signature.inputs.values())).dtype
    row = Tensor(dtype, (1, WIDTH), np.ones((1, WIDTH), np.float32).tobytes())
    count, end, over = 0, loop.time() + seconds, asyncio.Event()

    def answered(outcome: Outcome) -> None:
        nonlocal count
        if isinstance(outcome, ServingError):
            raise SystemExit(outcome.message)
        count += 1
        if loop.time() < end:
            loop.call_soon(runner.submit, [row], None, answered)
        else:
            over.set()

    for _ in range(in_flight):
        loop.call_soon(runner.submit, [row], None, answered)
    await over.wait()
    return count


CONTENDERS = {"embedded server's": measure_embedded, "TensorFlow's": measure_tensorflow}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(CONTENDERS[options.measure](options.in_flight, options.seconds))
        return
    counts: dict[str, list[int]] = {name: [] for name in CONTENDERS}
    given = [f"--in-flight={options.in_flight}", f"--seconds={options.seconds}"]
    for _ in range(options.rounds):
        for name, found in counts.items():
            command = [sys.executable, "-m", "tests.benchmarks.batch_schedulers", "--measure", name, *given]
            environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            found.append(int(done.stdout))
    rates = {name: statistics.median(found) / options.seconds for name, found in counts.items()}
    theirs = rates["TensorFlow's"]
    for name, rate in rates.items():
        rounds = [round(count / options.seconds) for count in counts[name]]
        print(f"{name:20}{rate:10.0f} requests/s   {rate / theirs:5.2f} x TensorFlow's   {rounds}")


if __name__ == "__main__":
    main()
