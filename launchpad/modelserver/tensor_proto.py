"""Tensors to and from TensorProto messages, as TensorFlow's `Tensor::FromProto` and `AsProtoField` do it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod
from typing import Any

from .status import invalid_argument
from .tensor import (
    DT_BFLOAT16,
    DT_COMPLEX64,
    DT_COMPLEX128,
    DT_HALF,
    DT_STRING,
    ELEMENT_TYPES,
    Tensor,
)

_MAX_BYTES = 1 << 30
"""The largest tensor that a request may describe; a few bytes can ask for any size by repetition."""
_HALVES = (DT_HALF, DT_BFLOAT16)
_COMPLEX_PARTS = {DT_COMPLEX64: "f", DT_COMPLEX128: "d"}


def from_proto(message: Any, alias: str) -> Tensor:
    """The tensor in a message for the input `alias`.

    Elements come from `tensor_content` or from the type's list; where the list is shorter than the shape, its
    last element (or zero) is repeated. Raises INVALID_ARGUMENT for a message that is no tensor.
    """
    shape = tuple([dimension.size for dimension in message.tensor_shape.dim])
    count = prod(shape)
    dtype = message.dtype
    known = dtype == DT_STRING or dtype in ELEMENT_TYPES
    if not known or message.tensor_shape.unknown_rank or min(shape, default=0) < 0:
        raise _unparsable(alias)
    if count * _width(dtype) > _MAX_BYTES:
        raise _unparsable(alias)
    if dtype == DT_STRING:
        if message.tensor_content:
            raise _unparsable(alias)
        return Tensor(DT_STRING, shape, strings=_repeat(message.string_val, count, b""))
    content = message.tensor_content
    if content:
        if len(content) != count * ELEMENT_TYPES[dtype].size:
            raise _unparsable(alias)
        return Tensor(dtype, shape, content)
    return Tensor(dtype, shape, _pack(message, dtype, count))


def _width(dtype: int) -> int:
    return 24 if dtype == DT_STRING else ELEMENT_TYPES[dtype].size


def _unparsable(alias: str) -> Exception:
    return invalid_argument(f"tensor parsing error: {alias}")


def _repeat(values: Sequence[Any], count: int, zero: Any) -> list[Any]:
    """The first `count` values, the last one repeated where they are fewer, `zero` where there is none."""
    given = list(values[:count])
    return given + [given[-1] if given else zero] * (count - len(given))


def _pack(message: Any, dtype: int, count: int) -> bytes:
    element = ELEMENT_TYPES[dtype]
    values = getattr(message, element.field)
    if dtype in _COMPLEX_PARTS:
        pairs = zip(values[::2], values[1::2], strict=False)
        parts = [part for pair in pairs for part in pair][: 2 * count]
        given = struct.pack(f"<{len(parts)}{_COMPLEX_PARTS[dtype]}", *parts)
    else:
        code = "H" if dtype in _HALVES else element.format
        fitted = [_fit(value, code) for value in values[:count]]
        given = struct.pack(f"<{len(fitted)}{code}", *fitted)
    last = given[-element.size :] or bytes(element.size)
    return given + last * (count - len(given) // element.size)


_BITS = {"B": 8, "b": 8, "H": 16, "h": 16}


def _fit(value: Any, code: str) -> Any:
    """An element of a 32-bit list cut to the width of a narrower type."""
    bits = _BITS.get(code)
    if bits is None:
        return value
    value &= (1 << bits) - 1
    return value - (1 << bits) if code.islower() and value >> (bits - 1) else value


def fill_proto(message: Any, tensor: Tensor, *, as_content: bool) -> None:
    """Write the tensor into an empty TensorProto, its elements one by one or, `as_content`, as they lie."""
    message.dtype = tensor.dtype
    for size in tensor.shape:
        message.tensor_shape.dim.add(size=size)
    if not tensor.shape:
        message.tensor_shape.SetInParent()
    if tensor.dtype == DT_STRING:
        message.string_val.extend(tensor.strings)
    elif as_content:
        message.tensor_content = bytes(tensor.data)
    else:
        getattr(message, ELEMENT_TYPES[tensor.dtype].field).extend(_elements(tensor))


def _elements(tensor: Tensor) -> Sequence[Any]:
    data = bytes(tensor.data)
    if tensor.dtype in _HALVES:
        return struct.unpack(f"<{tensor.size}H", data)
    if tensor.dtype in _COMPLEX_PARTS:
        return struct.unpack(f"<{2 * tensor.size}{_COMPLEX_PARTS[tensor.dtype]}", data)
    return tensor.values()
