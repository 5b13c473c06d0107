"""Preprocessing from its declaration: the steps as graph operations, and as what a client does to reach them.

`apply` builds the graph for a whole batch. `encode` goes the other way: from a raw example to what a client of the
signature sends. `reference` computes in NumPy what the graph should, for the parity gate.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from launchpad.spec import Step

STRING_DECODERS = ("decode_base64", "parse_tensor", "decode_raw", "decode_image")
"""Steps that take strings."""
PER_EXAMPLE = ("parse_tensor", "decode_image")
"""Steps whose operation takes one example; they are mapped over the batch, with the resize that follows a decode."""


def takes_strings(steps: Sequence[Step]) -> bool:
    """Tell whether a signature with these steps has a string input."""
    return bool(steps) and steps[0].name in STRING_DECODERS


def apply(steps: Sequence[Step], batch: tf.Tensor) -> tf.Tensor:
    """Return the batch after all steps, inside the graph being traced.

    batch: [None, ...]; strings are [None]. The result has the shape that the last step gives, None first.
    """
    rest = list(steps)
    while rest:
        step = rest.pop(0)
        if step.name in PER_EXAMPLE:
            chain = [step]
            while step.name == "decode_image" and rest and rest[0].name == "resize":
                chain.append(rest.pop(0))
            batch = _map_over_batch(chain, batch)
        else:
            batch = _vectorised(step, batch)
    return batch


def _vectorised(step: Step, batch: tf.Tensor) -> tf.Tensor:
    settings = step.settings
    match step.name:
        case "decode_base64":
            return tf.io.decode_base64(batch)
        case "decode_raw":
            return _as_rows(tf.io.decode_raw(batch, settings.dtype), settings.shape, tf.shape(batch)[0])
        case "resize":
            return tf.image.resize(batch, (settings.height, settings.width), settings.method)
        case "reshape":
            return _as_rows(batch, settings.shape, tf.shape(batch)[0])
        case "normalize":
            return (tf.cast(batch, tf.float32) - settings.mean) / settings.scale
    raise ValueError(f"no operation for the step {step.name}")


def _as_rows(values: tf.Tensor, shape: Sequence[int], rows: tf.Tensor) -> tf.Tensor:
    """Reshape to [rows, *shape]; an input of the wrong length fails instead of turning into more or fewer rows."""
    return tf.ensure_shape(tf.reshape(values, (rows, *shape)), (None, *shape))


def _map_over_batch(chain: Sequence[Step], batch: tf.Tensor) -> tf.Tensor:
    first = chain[0].settings
    if chain[0].name == "parse_tensor":
        spec = tf.TensorSpec(first.shape, first.dtype)
        return tf.map_fn(
            lambda one: tf.ensure_shape(tf.io.parse_tensor(one, first.dtype), first.shape),
            batch,
            fn_output_signature=spec,
        )

    def decode(one: tf.Tensor) -> tf.Tensor:
        pixels = tf.io.decode_image(one, channels=first.channels, expand_animations=False)
        pixels.set_shape([None, None, first.channels])
        for resize in chain[1:]:
            pixels = _vectorised(resize, pixels[tf.newaxis])[0]
        return tf.cast(pixels, tf.float32)

    shape = (None, None, first.channels)
    if len(chain) > 1:
        shape = (chain[-1].settings.height, chain[-1].settings.width, first.channels)
    return tf.map_fn(decode, batch, fn_output_signature=tf.TensorSpec(shape, tf.float32))


def encode(steps: Sequence[Step], example: np.ndarray) -> bytes:
    """Return what a client sends for a raw example to a signature that takes strings."""
    value: Any = example
    for step in reversed(steps):
        settings = step.settings
        match step.name:
            case "decode_base64":
                value = base64.urlsafe_b64encode(value)
            case "parse_tensor":
                value = tf.io.serialize_tensor(value.astype(settings.dtype).reshape(settings.shape)).numpy()
            case "decode_raw":
                value = value.astype(settings.dtype).reshape(settings.shape).tobytes()
            case "decode_image":
                value = tf.io.encode_png(_pixels(value, steps, settings.channels)).numpy()
    return value


def _pixels(example: np.ndarray, steps: Sequence[Step], channels: int) -> np.ndarray:
    """Return an example as uint8 [height, width, channels]."""
    sizes = [(step.resize.height, step.resize.width) for step in steps if step.resize]
    if example.ndim < 2 and not sizes:
        raise ValueError("flat examples can't be made into images: add a resize step, or keep height and width")
    size = example.shape[:2] if example.ndim >= 2 else sizes[0]
    return example.reshape(*size, channels).astype(np.uint8)


def reference(steps: Sequence[Step], examples: np.ndarray) -> np.ndarray:
    """Return raw examples [n, ...] after they were encoded and the steps applied, in NumPy where the step allows."""
    values = examples
    for step in steps:
        settings = step.settings
        match step.name:
            case "parse_tensor" | "decode_raw":
                values = values.astype(settings.dtype).reshape(-1, *settings.shape)
            case "decode_image":
                values = np.stack([_pixels(value, steps, settings.channels) for value in values]).astype(np.float32)
            case "resize":
                values = _vectorised(step, tf.constant(values)).numpy()
            case "reshape":
                values = values.reshape(-1, *settings.shape)
            case "normalize":
                values = ((values.astype(np.float64) - settings.mean) / settings.scale).astype(np.float32)
    return values
