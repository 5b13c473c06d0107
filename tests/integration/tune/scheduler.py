"""Runs a script of arrivals through TensorFlow's own batch scheduler, with batches that take as long as they are told.

Reads a JSON object from stdin: the scheduler's parameters, `batch_s` (how long a batch takes), the script of [seconds,
rows]. Prints the rows of the batches in the order in which they began, and the latency of each request, nan where it
was refused.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf


def main() -> None:
    case = json.load(sys.stdin)
    begun: list[int] = []
    latencies = [0.0] * len(case["script"])

    def work(x: np.ndarray) -> np.ndarray:
        begun.append(len(x))
        time.sleep(case["batch_s"])
        return x

    @tf.nondifferentiable_batch_function(autograph=False, **case["parameters"])
    def batched(x: tf.Tensor) -> tf.Tensor:
        y = tf.numpy_function(work, [x], tf.float32)
        y.set_shape([None])
        return y

    function = tf.function(batched, input_signature=[tf.TensorSpec([None], tf.float32)])
    function(tf.zeros([1]))
    begun.clear()
    begin = time.monotonic() + 0.2

    def arrive(index: int, at: float, rows: int) -> None:
        time.sleep(max(0.0, begin + at - time.monotonic()))
        try:
            function(tf.zeros([rows]))
            latencies[index] = time.monotonic() - begin - at
        except tf.errors.UnavailableError:
            latencies[index] = float("nan")

    threads = [threading.Thread(target=arrive, args=(i, *arrival)) for i, arrival in enumerate(case["script"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"batches": begun, "latencies_s": latencies}))


if __name__ == "__main__":
    main()
