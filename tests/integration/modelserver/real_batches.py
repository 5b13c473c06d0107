"""Asks TensorFlow's own batch scheduler which batches it forms of a script of arrivals.

Reads a JSON object with the scheduler's parameters and a script of [seconds, rows] on stdin; prints the sizes of the
batches that were run, in order. One case a process: within one, the schedulers would be one.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf


def batches(parameters: dict[str, Any], script: list[tuple[float, int]]) -> list[int]:
    """The sizes of the batches formed when tasks of these sizes arrive at these times."""
    sizes: list[int] = []

    def record(x: np.ndarray) -> np.ndarray:
        sizes.append(len(x))
        return x

    @tf.nondifferentiable_batch_function(num_batch_threads=1, autograph=False, **parameters)
    def batched(x: tf.Tensor) -> tf.Tensor:
        y = tf.numpy_function(record, [x], tf.float32)
        y.set_shape([None])
        return y

    function = tf.function(batched, input_signature=[tf.TensorSpec([None], tf.float32)])
    function(tf.zeros([1]))
    sizes.clear()
    begin = time.monotonic() + 0.2

    def arrive(at: float, rows: int) -> None:
        time.sleep(max(0.0, begin + at - time.monotonic()))
        function(tf.zeros([rows]))

    threads = [threading.Thread(target=arrive, args=arrival) for arrival in script]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sizes


if __name__ == "__main__":
    case = json.load(sys.stdin)
    print(json.dumps(batches(case["parameters"], case["script"])))
