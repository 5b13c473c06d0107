"""Answers in JSON, laid out as TensorFlow Serving lays them out."""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Mapping, Sequence
from math import prod

from .json_value import byte_text, decimals, text
from .status import invalid_argument
from .tensor import DT_BOOL, DT_DOUBLE, DT_FLOAT, DT_HALF, DT_STRING, DT_UINT16, Tensor, unwritable

_INDENT = b"    "
_UNWRITTEN = (DT_HALF, DT_UINT16)
"""Types that have values, but that the original does not write in JSON."""


def write_predictions(outputs: Mapping[str, Tensor]) -> bytes:
    """Predictions in row format: one entry an instance, bare where there is one output, else an object."""
    count = _batch_size(outputs)
    columns = [(name, _row_texts(name, tensor)) for name, tensor in outputs.items()]
    if len(columns) == 1:
        body = b", ".join(columns[0][1])
        return b'{\n    "predictions": [' + body + (b"\n    ]\n}" if count else b"]\n}")
    rows = []
    keys = [text(name).encode() for name, _ in columns]
    for index in range(count):
        members = [_INDENT * 3 + key + b": " + texts[index] for key, (_, texts) in zip(keys, columns, strict=True)]
        rows.append(b"\n        {\n" + b",\n".join(members) + b"\n        }")
    return b'{\n    "predictions": [' + b",".join(rows) + (b"\n    ]\n}" if count else b"]\n}")


def _batch_size(outputs: Mapping[str, Tensor]) -> int:
    if not outputs:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    count = -1
    for name, tensor in outputs.items():
        if not tensor.shape:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        if count not in (-1, tensor.shape[0]):
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {tensor.shape[0]} expecting: {count}"
            )
        count = tensor.shape[0]
    return count


def write_outputs(outputs: Mapping[str, Tensor]) -> bytes:
    """Outputs in column format: bare where there is one, else an object of them."""
    if not outputs:
        raise invalid_argument("Cannot convert empty tensor map to JSON")
    if len(outputs) == 1:
        ((name, tensor),) = outputs.items()
        body = _over_lines(iter(_element_texts(name, tensor)), tensor.shape, 1)
    else:
        members = [
            _INDENT * 2 + text(name).encode() + b": " + _over_lines(iter(_element_texts(name, tensor)), tensor.shape, 2)
            for name, tensor in outputs.items()
        ]
        body = b"{\n" + b",\n".join(members) + b"\n    }"
    return b'{\n    "outputs": ' + body + b"\n}"


def _over_lines(elements: Iterator[bytes], shape: Sequence[int], level: int) -> bytes:
    """A nest of lists with every element on a line of its own."""
    if not shape:
        return next(elements)
    if not shape[0]:
        return b"[]"
    indent = b"\n" + _INDENT * (level + 1)
    inner = [indent + _over_lines(elements, shape[1:], level + 1) for _ in range(shape[0])]
    return b"[" + b",".join(inner) + b"\n" + _INDENT * level + b"]"


def _row_texts(name: str, tensor: Tensor) -> list[bytes]:
    """The text of each row, on one line."""
    texts = _element_texts(name, tensor)
    for axis in range(len(tensor.shape) - 1, 0, -1):
        size = tensor.shape[axis]
        count = prod(tensor.shape[:axis])
        texts = [b"[" + b", ".join(texts[i * size : (i + 1) * size]) + b"]" for i in range(count)]
    return texts


def _element_texts(name: str, tensor: Tensor) -> list[bytes]:
    if tensor.dtype == DT_STRING:
        if name.endswith("_bytes"):
            return [b'{"b64": "' + binascii.b2a_base64(value, newline=False) + b'"}' for value in tensor.strings]
        return [byte_text(value) for value in tensor.strings]
    if tensor.dtype in _UNWRITTEN:
        raise unwritable(tensor.dtype)
    values: Sequence[object] = tensor.values()
    if tensor.dtype in (DT_FLOAT, DT_DOUBLE):
        single = tensor.dtype != DT_DOUBLE
        return "\n".join(decimals(values, single=single)).encode().split(b"\n") if values else []  # type: ignore[arg-type]
    if tensor.dtype == DT_BOOL:
        return [b"true" if value else b"false" for value in values]
    return [b"%d" % value for value in values]  # type: ignore[str-format]


def write_classifications(results: Sequence[Sequence[tuple[bytes, float]]]) -> bytes:
    """Classes of each example, as pairs of label and score."""
    if not results:
        raise invalid_argument("Cannot convert empty ClassificationResults to JSON")
    rows = []
    for classes in results:
        scores = decimals([score for _, score in classes], single=True)
        pairs = [
            b"[" + byte_text(label) + b", " + score.encode() + b"]"
            for (label, _), score in zip(classes, scores, strict=True)
        ]
        rows.append(b"[" + b", ".join(pairs) + b"]")
    return b'{\n    "results": [' + b", ".join(rows) + b"\n    ]\n}"


def write_regressions(results: Sequence[float]) -> bytes:
    """The value of each example."""
    if not results:
        raise invalid_argument("Cannot convert empty RegressionResults to JSON")
    return b'{\n    "results": [' + ", ".join(decimals(results, single=True)).encode() + b"]\n}"


def write_error(message: str) -> bytes:
    """What the client is told went wrong."""
    return b'{\n    "error": ' + byte_text(message.encode("utf-8", "surrogateescape")) + b"\n}"
