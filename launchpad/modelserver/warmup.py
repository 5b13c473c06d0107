"""Replay of a version's warmup requests before it serves: no client ever meets a cold model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from google.protobuf.message import DecodeError

from .inference import Inference, Job
from .protos import PredictionLog
from .servable import DEFAULT_SIGNATURE, Servable
from .status import Code, ServingError, invalid_argument
from .tensor_proto import from_proto
from .tfrecord import Corrupted, read

MAX_RECORDS = 1000
_REQUESTS_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")


def has_requests(version_path: str) -> bool:
    """Whether the version directory holds warmup requests."""
    return os.path.exists(os.path.join(version_path, _REQUESTS_FILE))


def replay(servable: Servable, version_path: str, inference: Inference, iterations: int) -> int:
    """Run each request of the version's warmup file `iterations` times; return how many requests it holds.

    Raises ServingError for a file or a request that is bad, and when there are more than MAX_RECORDS.
    """
    path = os.path.join(version_path, _REQUESTS_FILE)
    count = 0
    with open(path, "rb") as file:
        for record in _records(file):
            try:
                log = PredictionLog.FromString(record)
            except DecodeError:
                raise invalid_argument(f"Failed to parse warmup record: {record!r} from {path}") from None
            for _ in range(iterations):
                inference.run_now(_job(servable, log, inference))
            count += 1
            if count > MAX_RECORDS:
                raise invalid_argument(f"Number of warmup records exceeds the maximum ({MAX_RECORDS}) at {path}")
    return count


def _job(servable: Servable, log: Any, inference: Inference) -> Job:
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        return _predict_job(servable, log.predict_log.request, inference)
    if kind == "classify_log":
        request = log.classify_log.request
        return inference.classify(servable, request.model_spec.signature_name, request.input)
    if kind == "regress_log":
        request = log.regress_log.request
        return inference.regress(servable, request.model_spec.signature_name, request.input)
    if kind == "multi_inference_log":
        return inference.multi_inference(servable, log.multi_inference_log.request)
    raise ServingError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {kind}")


def _predict_job(servable: Servable, request: Any, inference: Inference) -> Job:
    name = request.model_spec.signature_name or DEFAULT_SIGNATURE
    signature = servable.signature(name)
    if signature is None:
        raise ServingError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    tensors = {alias: from_proto(value, alias) for alias, value in request.inputs.items()}
    return inference.predict(servable, signature, tensors, request.output_filter)


def _records(file: BinaryIO) -> Iterator[bytes]:
    try:
        yield from read(file)
    except Corrupted as error:
        raise ServingError(Code.DATA_LOSS, f"{error}. Please verify your warmup data is in TFRecord format.") from None
