"""Makes the models that the tests ask: small graphs without variables, in the folder named on the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import tensorflow as tf

ROW = tf.TensorSpec([None], tf.float32, name="x")
MATRIX = tf.TensorSpec([None, None], tf.float32, name="x")


def save(path: str, function: Callable[[tf.Tensor], dict[str, tf.Tensor]], spec: tf.TensorSpec) -> None:
    module = tf.Module()
    module.function = tf.function(function, input_signature=[spec])
    tf.saved_model.save(module, path, signatures=module.function)


def scale(factor: float) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """y is x times the factor, size the number of rows that ran together."""

    def run(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * factor, "size": tf.zeros_like(x) + tf.cast(tf.size(x), tf.float32)}

    return run


def slow(rounds: int) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """y is x, after as many rounds of work."""

    def step(i: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return i + 1, tf.linalg.matmul(total + 0.001, tf.ones([200, 200])) * 0.0001

    def run(x: tf.Tensor) -> dict[str, tf.Tensor]:
        _, total = tf.while_loop(lambda i, _: i < rounds, step, [0, tf.zeros([200, 200]) + 0.0 * x[0]])
        return {"y": x + 0.0 * tf.reduce_sum(total)}

    return run


def checked(x: tf.Tensor) -> dict[str, tf.Tensor]:
    """y is x; fails where x is not a number."""
    return {"y": tf.debugging.check_numerics(x, "checked")}


def sums(x: tf.Tensor) -> dict[str, tf.Tensor]:
    """y is the sum of each row, width the length of the rows."""
    return {"y": tf.reduce_sum(x, 1), "width": tf.zeros_like(x[:, 0]) + tf.cast(tf.shape(x)[1], tf.float32)}


if __name__ == "__main__":
    root = sys.argv[1]
    save(f"{root}/scale/1", scale(2.0), ROW)
    save(f"{root}/scale/2", scale(3.0), ROW)
    save(f"{root}/slow/1", slow(400), ROW)
    save(f"{root}/checked/1", checked, ROW)
    save(f"{root}/sums/1", sums, MATRIX)
