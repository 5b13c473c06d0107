"""Replay of a version's warmup requests before it serves: no client ever meets a cold model."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import google_crc32c
from google.protobuf.message import DecodeError

from .inference import Inference, Job
from .protos import PredictionLog
from .servable import DEFAULT_SIGNATURE, Servable
from .status import Code, ServingError, invalid_argument
from .tensor_proto import from_proto

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


_LENGTH = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8


def _records(file: BinaryIO) -> Iterator[bytes]:
    """The records of a TFRecord file: length, its checksum, data, its checksum."""
    offset = 0
    while header := file.read(_LENGTH.size):
        if len(header) < _LENGTH.size:
            raise _corrupted("truncated record", offset)
        length, checksum = _LENGTH.unpack(header)
        if _masked_crc(header[:8]) != checksum:
            raise _corrupted("corrupted record", offset)
        data, trailer = file.read(length), file.read(_CHECKSUM.size)
        if len(trailer) < _CHECKSUM.size:
            raise _corrupted("truncated record", offset)
        if (_masked_crc(data),) != _CHECKSUM.unpack(trailer):
            raise _corrupted("corrupted record", offset)
        yield data
        offset += _LENGTH.size + length + _CHECKSUM.size


def _corrupted(kind: str, offset: int) -> ServingError:
    return ServingError(Code.DATA_LOSS, f"{kind} at {offset}. Please verify your warmup data is in TFRecord format.")


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF
