"""Warmup requests that the server replays before a version turns AVAILABLE: `tf_serving_warmup_requests`.

The format is TensorFlow Serving's: a TFRecord file of PredictionLog messages, at most 1000 of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from launchpad.examples import Examples, Values

FILE = "tf_serving_warmup_requests"
MAX_RECORDS = 1000
MAX_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Written:
    records: int
    batch_sizes: list[int]
    left_out: list[int]
    """Batch sizes for which the record or byte limit left no room."""


def write(path: Path, model: str, examples: Examples, batch_sizes: Sequence[int]) -> Written:
    """Write one request for each signature and batch size, made of the examples in turn.

    batch_sizes: increasing. If they do not fit the limits, an even choice of them that keeps the smallest and the
    largest is written.
    """
    sizes = _within_limits(examples, batch_sizes)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for size in sizes:
            for signature in examples.inputs:
                writer.write(_record(model, signature, examples, size).SerializeToString())
    return Written(
        records=len(sizes) * len(examples.inputs),
        batch_sizes=list(sizes),
        left_out=sorted(set(batch_sizes) - set(sizes)),
    )


def _within_limits(examples: Examples, batch_sizes: Sequence[int]) -> list[int]:
    row = sum(_row_bytes(values) for inputs in examples.inputs.values() for values in inputs.values())
    count = min(len(batch_sizes), MAX_RECORDS // len(examples.inputs))
    while True:
        sizes = [batch_sizes[int(index)] for index in np.linspace(len(batch_sizes) - 1, 0, count).round()][::-1]
        if count == 1 or sum(sizes) * row <= MAX_BYTES:
            return sizes
        count -= 1


def _row_bytes(values: Values) -> int:
    """Return the bytes that one more example adds to a request; a repeated string adds none."""
    return values[0].nbytes if isinstance(values, np.ndarray) else 0


def _record(model: str, signature: str, examples: Examples, size: int) -> prediction_log_pb2.PredictionLog:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, values in examples.inputs[signature].items():
        if isinstance(values, np.ndarray):
            rows = np.resize(values, (size, *values.shape[1:]))
            request.inputs[name].CopyFrom(tf.make_tensor_proto(rows))
        else:
            # A TensorProto repeats its last value up to its shape, so one string makes a batch of any size.
            tensor = request.inputs[name]
            tensor.dtype = tf.string.as_datatype_enum
            tensor.tensor_shape.dim.add(size=size)
            tensor.string_val.append(values[size % len(values)])
    return prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
