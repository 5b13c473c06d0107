"""Tensors as the server carries them: a data type, a shape, and the elements in row-major order.

Numeric elements are one contiguous buffer, string elements a list of bytes objects. Rows, the slices along the
0th dimension, are therefore contiguous: batching joins buffers and unbatching cuts them, with no arithmetic.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from .protos import DataType
from .status import ServingError, invalid_argument

Buffer = bytes | bytearray | memoryview
Shape = tuple[int, ...]

DT_FLOAT = 1
DT_DOUBLE = 2
DT_INT32 = 3
DT_UINT8 = 4
DT_INT16 = 5
DT_INT8 = 6
DT_STRING = 7
DT_COMPLEX64 = 8
DT_INT64 = 9
DT_BOOL = 10
DT_BFLOAT16 = 14
DT_UINT16 = 17
DT_COMPLEX128 = 18
DT_HALF = 19
DT_UINT32 = 22
DT_UINT64 = 23


@dataclass(frozen=True)
class ElementType:
    """How the elements of one data type are stored.

    `format` is the element's code in the `struct` module ("" where it has none), `field` the list of a
    TensorProto that carries such elements one by one.
    """

    name: str
    size: int
    format: str
    field: str


ELEMENT_TYPES: dict[int, ElementType] = {
    DT_FLOAT: ElementType("float", 4, "f", "float_val"),
    DT_DOUBLE: ElementType("double", 8, "d", "double_val"),
    DT_INT32: ElementType("int32", 4, "i", "int_val"),
    DT_UINT8: ElementType("uint8", 1, "B", "int_val"),
    DT_INT16: ElementType("int16", 2, "h", "int_val"),
    DT_INT8: ElementType("int8", 1, "b", "int_val"),
    DT_COMPLEX64: ElementType("complex64", 8, "", "scomplex_val"),
    DT_INT64: ElementType("int64", 8, "q", "int64_val"),
    DT_BOOL: ElementType("bool", 1, "?", "bool_val"),
    DT_BFLOAT16: ElementType("bfloat16", 2, "", "half_val"),
    DT_UINT16: ElementType("uint16", 2, "H", "int_val"),
    DT_COMPLEX128: ElementType("complex128", 16, "", "dcomplex_val"),
    DT_HALF: ElementType("half", 2, "", "half_val"),
    DT_UINT32: ElementType("uint32", 4, "I", "uint32_val"),
    DT_UINT64: ElementType("uint64", 8, "Q", "uint64_val"),
}
"""The numeric types that can be served."""


def type_name(dtype: int) -> str:
    """A data type's name as TensorFlow prints it: `float`, `string`, `int32`."""
    if dtype in ELEMENT_TYPES:
        return ELEMENT_TYPES[dtype].name
    known = dtype in DataType.values()
    return DataType.Name(dtype).removeprefix("DT_").lower() if known else f"unknown dtype enum ({dtype})"


class Tensor:
    """A value of a model's input or output; treat it as immutable."""

    __slots__ = ("data", "dtype", "shape", "strings")

    def __init__(self, dtype: int, shape: Shape, data: Buffer = b"", strings: Sequence[bytes] = ()) -> None:
        self.dtype = dtype
        self.shape = shape
        self.data = data
        self.strings = strings

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    def values(self) -> Sequence[object]:
        """The elements in row-major order as Python values; INVALID_ARGUMENT for types that have none."""
        if self.dtype == DT_STRING:
            return self.strings
        if self.dtype == DT_HALF:
            return struct.unpack(f"{self.size}e", self.data)
        code = ELEMENT_TYPES[self.dtype].format
        if not code:
            raise unwritable(self.dtype)
        flat = memoryview(self.data)
        return (flat if flat.format == "B" else flat.cast("B")).cast(code).tolist()  # type: ignore[call-overload]

    def rows(self, start: int, stop: int) -> Tensor:
        """The rows from `start` up to `stop`, without a copy of numeric elements."""
        shape = (stop - start, *self.shape[1:])
        if self.dtype == DT_STRING:
            stride = prod(self.shape[1:])
            return Tensor(DT_STRING, shape, strings=self.strings[start * stride : stop * stride])
        stride = prod(self.shape[1:]) * ELEMENT_TYPES[self.dtype].size
        return Tensor(self.dtype, shape, memoryview(self.data)[start * stride : stop * stride])


def concatenate(parts: Sequence[Tensor]) -> Tensor:
    """The parts one below the other; they must agree in type and in all dimensions but the 0th."""
    first = parts[0]
    if len(parts) == 1:
        return first
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    if first.dtype == DT_STRING:
        return Tensor(DT_STRING, shape, strings=[text for part in parts for text in part.strings])
    return Tensor(first.dtype, shape, b"".join([part.data for part in parts]))


def pad(tensor: Tensor, shape: Shape) -> Tensor:
    """The tensor grown to `shape`, of the same rank; the new elements equal its first one.

    Raises INVALID_ARGUMENT where the tensor has no element.
    """
    if tensor.shape == shape:
        return tensor
    if not tensor.size:
        raise invalid_argument("Got empty tensor in batch of non-empty tensors.")
    if tensor.dtype == DT_STRING:
        return Tensor(DT_STRING, shape, strings=_grow(list(tensor.strings), tensor.shape, shape))
    width = ELEMENT_TYPES[tensor.dtype].size
    data = bytes(tensor.data)
    elements = [data[start : start + width] for start in range(0, len(data), width)]
    return Tensor(tensor.dtype, shape, b"".join(_grow(elements, tensor.shape, shape)))


def _grow(elements: list[bytes], old: Shape, new: Shape) -> list[bytes]:
    grown = [elements[0]] * prod(new)
    run = old[-1]
    for index in range(len(elements) // run):
        target = _offset(index, old, new)
        grown[target : target + run] = elements[index * run : (index + 1) * run]
    return grown


def _offset(index: int, old: Shape, new: Shape) -> int:
    """Where the run of elements number `index` of a tensor of shape `old` begins in one of shape `new`."""
    offset, stride = 0, new[-1]
    for old_size, new_size in zip(reversed(old[:-1]), reversed(new[:-1]), strict=True):
        index, position = divmod(index, old_size)
        offset += position * stride
        stride *= new_size
    return offset


def unsupported(dtype: int) -> ServingError:
    """The error for a data type that cannot be served."""
    return invalid_argument(f"Unsupported data type: {type_name(dtype)}")


def unwritable(dtype: int) -> ServingError:
    """The error for a data type that has no form in JSON."""
    return invalid_argument(f"Failed to write JSON value for tensor type: {type_name(dtype)}")
