"""Warmup requests of a version: for every batch size that it may be run with, within TensorFlow Serving's limits.

Kernels are chosen, and compiled where XLA is used, for each batch size at its first run. A server replays these
requests before a version turns AVAILABLE, so that no client waits for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launchpad.errors import EnvironmentFault

FILE = "tf_serving_warmup_requests"
FOLDER = "assets.extra"
DESCRIPTION = "warmup.json"
"""What the export says of the file."""
MAX_RECORDS = 1000
"""A server refuses a file with more."""
MAX_BYTES = 32 * 1024 * 1024
"""Beyond that a version is not made larger for its warmup."""


def within_limits(sizes: Sequence[int], signatures: int, row_bytes: int) -> list[int]:
    """Return the batch sizes, or an even choice of them that keeps the smallest and the largest.

    signatures: requests for each size; row_bytes: what one more row adds to all of them.
    """
    count = min(len(sizes), max(1, MAX_RECORDS // signatures))
    while True:
        chosen = [sizes[round(index * (len(sizes) - 1) / max(1, count - 1))] for index in range(count)]
        chosen[-1] = sizes[-1]
        if count == 1 or sum(chosen) * row_bytes <= MAX_BYTES:
            return chosen
        count -= 1


def cover(version: Path, sizes: Sequence[int]) -> None:
    """Have a version's warmup requests, where it has any, cover these batch sizes instead, where some are missing.

    The smallest request of each signature is repeated as often as it takes. The file is replaced, not written through:
    it may be a link. Raises EnvironmentFault where it cannot be read.
    """
    path = version / FOLDER / FILE
    if not path.exists():
        return
    requests = sorted(_requests(path), key=_rows, reverse=True)
    if set(sizes) <= {_rows(request) for request in requests}:
        return
    smallest = {request.model_spec.signature_name: request for request in requests}
    row_bytes = sum(request.ByteSize() // _rows(request) for request in smallest.values())
    within = within_limits(sizes, len(smallest), row_bytes)
    content = b"".join(_record(request, size) for size in within for request in smallest.values())
    path.unlink()
    path.write_bytes(content)
    (version / FOLDER / DESCRIPTION).unlink(missing_ok=True)


def _requests(path: Path) -> list[Any]:
    from google.protobuf.message import DecodeError

    from launchpad.modelserver.protos import PredictionLog
    from launchpad.modelserver.tfrecord import Corrupted, read

    try:
        with path.open("rb") as file:
            return [PredictionLog.FromString(record).predict_log.request for record in read(file)]
    except (Corrupted, DecodeError) as error:
        raise EnvironmentFault(f"{path.name} is no file of warmup requests: {error}", str(path.parent)) from None


def _record(request: Any, rows: int) -> bytes:
    from launchpad.modelserver.protos import PredictionLog
    from launchpad.modelserver.tfrecord import framed

    log = PredictionLog()
    log.predict_log.request.CopyFrom(request)
    for tensor in log.predict_log.request.inputs.values():
        _resize(tensor, rows)
    return framed(log.SerializeToString())


def _rows(request: Any) -> int:
    return max(tensor.tensor_shape.dim[0].size for tensor in request.inputs.values())


def _resize(tensor: Any, rows: int) -> None:
    """Give a tensor more rows. Where it has values, not content, the last one stands for the rest (tensor.proto)."""
    before = tensor.tensor_shape.dim[0].size
    tensor.tensor_shape.dim[0].size = rows
    row = len(tensor.tensor_content) // before
    tensor.tensor_content = (tensor.tensor_content * -(-rows // before))[: rows * row]
