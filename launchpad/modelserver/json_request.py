"""Requests in JSON to tensors and examples, as TensorFlow Serving's `json_tensor.cc` reads them.

There are two readers of predict requests. `_quick` takes the common cases straight from simdjson's buffers, with
no Python object for an element, and gives up on anything out of the ordinary. `_exact` then decides what the
request means, or which error it is. Whatever `_quick` accepts, `_exact` reads the same.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, prod
from typing import Any

import numpy as np
import simdjson

from .json_value import Json, format_error, parse_object, quote, too_deep
from .json_value import type_name as json_type_name
from .protos import Example, Input
from .status import Code, ServingError, invalid_argument
from .tensor import (
    DT_BOOL,
    DT_DOUBLE,
    DT_FLOAT,
    DT_INT8,
    DT_INT16,
    DT_INT32,
    DT_INT64,
    DT_STRING,
    DT_UINT8,
    DT_UINT32,
    DT_UINT64,
    ELEMENT_TYPES,
    Shape,
    Tensor,
    type_name,
)

InputTypes = Mapping[str, int]
"""The data type of each input of a signature, by the input's name."""

Lookup = Callable[[str], InputTypes]
"""Finds a signature's inputs by its name ("" for the default one); raises ServingError where there is none."""


@dataclass(slots=True)
class PredictInputs:
    """A predict request: `signature` as named in it, tensors by input name, and the format to answer in."""

    signature: str
    tensors: dict[str, Tensor]
    rows: bool


def read_predict(body: bytes, lookup: Lookup) -> PredictInputs:
    """Read a predict request in row (`instances`) or column (`inputs`) format.

    Raises INVALID_ARGUMENT for whatever does not fit, and what `lookup` raises.
    """
    try:
        return _quick(body, lookup) or _exact(body, lookup)
    except RecursionError:
        raise too_deep() from None


# --- the quick reader ---------------------------------------------------------------------------------------

np.seterr(over="raise")
_parser = simdjson.Parser()
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[],"))
_BUFFERS: dict[int, tuple[str, Any, Any]] = {
    DT_FLOAT: ("d", np.float64, np.float32),
    DT_DOUBLE: ("d", np.float64, np.float64),
    DT_INT64: ("i", np.int64, np.int64),
}
"""For each type read quickly: simdjson's buffer type, the array type of that buffer, and of the tensor."""


def _quick(body: bytes, lookup: Lookup) -> PredictInputs | None:
    try:
        document: Any = _parser.parse(body)
    except (ValueError, RuntimeError):
        return None
    try:
        return _quick_document(document, body, lookup)
    except (KeyError, TypeError, ValueError, IndexError, FloatingPointError, AttributeError):
        return None


def _quick_document(document: Any, body: bytes, lookup: Lookup) -> PredictInputs | None:
    members = len(document)
    signature = ""
    if members == 2:
        signature = document["signature_name"]
        if not isinstance(signature, str) or not signature.isidentifier():
            return None
    elif members != 1:
        return None
    try:
        values, rows = document["instances"], True
    except KeyError:
        values, rows = document["inputs"], False
    if not len(values):
        return None
    types = lookup(signature)
    if len(types) != 1:
        return None
    ((name, dtype),) = types.items()
    tensor = _quick_strings(values) if dtype == DT_STRING else _quick_numbers(values, dtype, body)
    return PredictInputs(signature, {name: tensor}, rows) if tensor else None


def _quick_numbers(values: Any, dtype: int, body: bytes) -> Tensor | None:
    """A regular nest of lists of numbers.

    Its regularity shows in the document's brackets and commas alone: where each list but the innermost has one
    element, in the number of brackets, else in all of them.
    """
    shape, inner = [len(values)], values[0]
    while isinstance(inner, simdjson.Array):
        shape.append(len(inner))
        inner = inner[0]
    if prod(shape) > len(body):  # a nest that is not regular
        return None
    single = prod(shape[:-1]) == 1
    if not (_has_brackets(body, len(shape)) if single else _is_regular(body, tuple(shape))):
        return None
    buffer_type, parsed, stored = _BUFFERS[dtype]
    flat = np.frombuffer(values.as_buffer(of_type=buffer_type), parsed)
    if len(flat) != prod(shape):
        return None
    return Tensor(dtype, tuple(shape), flat.astype(stored).tobytes())


def _has_brackets(body: bytes, count: int) -> bool:
    """Whether there are exactly `count` opening brackets; found from both ends, which is quicker than counting."""
    last = -1
    for _ in range(count):
        last = body.find(b"[", last + 1)
    return last >= 0 and last == body.rfind(b"[")


def _is_regular(body: bytes, shape: Shape) -> bool:
    return body.translate(None, _NOT_STRUCTURE).strip(b",") == _list_of(shape[0], _structure(shape[1:]))


@lru_cache(maxsize=64)
def _structure(shape: Shape) -> bytes:
    """What is left of a nest of lists of this shape when only brackets and commas are kept; kept for rows, since a
    client's are of one shape however many it sends."""
    structure = b""
    for size in reversed(shape):
        structure = _list_of(size, structure)
    return structure


def _list_of(size: int, structure: bytes) -> bytes:
    return b"[" + b",".join([structure] * size) + b"]"


def _quick_strings(values: Any) -> Tensor | None:
    """A list of strings and b64 objects."""
    strings = []
    for value in values.as_list():
        if isinstance(value, str):
            strings.append(value.encode())
        else:
            (encoded,) = value.values()
            if "b64" not in value:
                return None
            strings.append(binascii.a2b_base64(encoded, strict_mode=True))
    return Tensor(DT_STRING, (len(strings),), strings=strings)


# --- the exact reader ---------------------------------------------------------------------------------------


def _exact(body: bytes, lookup: Lookup) -> PredictInputs:
    document = parse_object(body)
    signature = _signature_name(document)
    types = lookup(signature)
    if not types:
        raise invalid_argument(f"Failed to get input map for signature: {signature or 'DEFAULT'}")
    if "instances" in document and "inputs" in document:
        complaint = "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
        raise format_error(document, complaint)
    if "instances" in document:
        instances = document["instances"]
        if not isinstance(instances, list):
            raise format_error(document, "Expecting 'instances' to be an list/array")
        if not instances:
            raise format_error(document, "No values in 'instances' array")
        return PredictInputs(signature, _from_instances(instances, types), True)
    if "inputs" in document:
        return PredictInputs(signature, _from_inputs(document["inputs"], types), False)
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _signature_name(document: dict[str, Json]) -> str:
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        complaint = "not formatted correctly. 'signature_name' key must be a string value."
        raise format_error(document, complaint)
    return name


def _is_base64(value: Json) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_named(value: Json) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


class _Column:
    """The tensor of one input as it grows, an instance at a time."""

    def __init__(self, dtype: int) -> None:
        self.dtype = dtype
        self.elements: list[Any] = []
        self.shape: Shape | None = None

    def add(self, value: Json) -> None:
        shape = _dense_shape(value)
        before = len(self.elements)
        _fill(value, 0, shape, self.dtype, self.elements)
        size = len(self.elements) - before
        if self.shape is None:
            self.shape, self._size = shape, size
        elif size != self._size:
            raise invalid_argument(f"Expecting tensor size: {self._size} but got: {size}")
        elif shape != self.shape:
            raise invalid_argument(f"Expecting shape {_shape(self.shape)} but got: {_shape(shape)}")


def _from_instances(instances: list[Json], types: InputTypes) -> dict[str, Tensor]:
    if not isinstance(instances[0], dict) and len(types) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as "
            "per tensorinfo_map"
        )
    columns: dict[str, _Column] = {}
    add = _add_named if _is_named(instances[0]) else _add_plain
    for index, instance in enumerate(instances):
        add(index, instance, types, columns)
    return {
        name: _tensor(column.dtype, (len(instances), *(column.shape or ())), column.elements)
        for name, column in columns.items()
    }


def _add_plain(index: int, instance: Json, types: InputTypes, columns: dict[str, _Column]) -> None:
    if _is_named(instance):
        raise invalid_argument(f"Expecting value/list but got object at item {index} of input list")
    ((name, dtype),) = types.items()
    try:
        columns.setdefault(name, _Column(dtype)).add(instance)
    except ServingError as error:
        raise invalid_argument(f"Failed to process element: {index} of 'instances' list. Error: {error}") from None


def _add_named(index: int, instance: Json, types: InputTypes, columns: dict[str, _Column]) -> None:
    if not _is_named(instance):
        raise invalid_argument(f"Expecting object but got list at item {index} of input list")
    for name, value in instance.items():
        try:
            if name not in types:
                raise invalid_argument(f"JSON object: does not have named input: {name}")
            columns.setdefault(name, _Column(types[name])).add(value)
        except ServingError as error:
            raise invalid_argument(
                f"Failed to process element: {index} key: {name} of 'instances' list. Error: {error}"
            ) from None
    if instance.keys() != types.keys():
        raise invalid_argument(
            f"Failed to process element: {index} of 'instances' list. JSON object: {quote(instance)} keys must "
            f"be equal to: {','.join(sorted(types))}"
        )


def _from_inputs(inputs: Json, types: InputTypes) -> dict[str, Tensor]:
    if _is_named(inputs):
        tensors = {}
        for name, dtype in types.items():
            if name not in inputs:
                raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
            tensors[name] = _column_tensor(inputs[name], dtype)
        return tensors
    if len(types) > 1:
        raise invalid_argument(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
            "tensorinfo_map"
        )
    ((name, dtype),) = types.items()
    return {name: _column_tensor(inputs, dtype)}


def _column_tensor(value: Json, dtype: int) -> Tensor:
    shape = _dense_shape(value)
    elements: list[Any] = []
    _fill(value, 0, shape, dtype, elements)
    return _tensor(dtype, shape, elements)


def _dense_shape(value: Json) -> Shape:
    """The shape that the first elements of a nest of lists suggest."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _shape(shape: Shape) -> str:
    return f"[{','.join(map(str, shape))}]"


def _fill(value: Json, level: int, shape: Shape, dtype: int, out: list[Any]) -> None:
    """Append the elements of a nest of lists that must have `shape` from `level` on."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid_argument(
                f"JSON Value: {quote(value)} found at incorrect level: {level + 1} in the JSON DOM. Expected at "
                f"level: {len(shape)}"
            )
        out.append(_element(value, dtype))
        return
    if level >= len(shape):
        raise invalid_argument(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid_argument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for inner in value:
        _fill(inner, level + 1, shape, dtype, out)


_FLOAT_MAX = float(np.finfo(np.float32).max)
_INTEGER_RANGES = {
    DT_INT32: (-(2**31), 2**31 - 1),
    DT_INT16: (-(2**31), 2**31 - 1),
    DT_INT8: (-(2**31), 2**31 - 1),
    DT_UINT8: (-(2**31), 2**31 - 1),
    DT_INT64: (-(2**63), 2**63 - 1),
    DT_UINT32: (0, 2**32 - 1),
    DT_UINT64: (0, 2**64 - 1),
}
"""What is taken for each integer type; the narrow ones are cut to size afterwards, as the original does."""


def _element(value: Json, dtype: int) -> Any:
    """One element of a tensor of type `dtype`."""
    if isinstance(value, dict):
        if dtype == DT_STRING:
            return _base64_object(value)
        raise _wrong_type(value, dtype)
    if dtype in (DT_FLOAT, DT_DOUBLE):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong_type(value, dtype)
        if dtype == DT_FLOAT and isfinite(value) and abs(value) > _FLOAT_MAX:
            raise _lossy(value)
        return value
    if dtype == DT_STRING:
        if not isinstance(value, str):
            raise _wrong_type(value, dtype)
        return value.encode("utf-8", "surrogatepass")
    if dtype == DT_BOOL:
        if not isinstance(value, bool):
            raise _wrong_type(value, dtype)
        return value
    if dtype not in _INTEGER_RANGES:
        raise ServingError(Code.UNIMPLEMENTED, f"Conversion of JSON Value: {quote(value)} to type: {type_name(dtype)}")
    low, high = _INTEGER_RANGES[dtype]
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _wrong_type(value, dtype)
    return value


def _wrong_type(value: Json, dtype: int) -> ServingError:
    return invalid_argument(
        f"JSON Value: {quote(value)} Type: {json_type_name(value)} is not of expected type: {type_name(dtype)}"
    )


def _lossy(value: Json) -> ServingError:
    return invalid_argument(f"Cannot convert JSON value: {quote(value)} to float without loss of precision.")


_BASE64 = re.compile(r"([A-Za-z0-9+/]*)([=.]*)")


def _base64_object(value: Json) -> bytes:
    """The bytes of `{"b64": ...}`: standard alphabet, white space ignored, padding optional."""
    if not _is_base64(value):
        raise invalid_argument(f"JSON Value: {quote(value)} not formatted correctly for base64 data")
    match = _BASE64.fullmatch("".join(value["b64"].split()))
    digits, padding = match.groups() if match else ("", "!")
    missing = -len(digits) % 4
    if missing == 3 or len(padding) not in (0, missing):
        raise invalid_argument("Unable to base64 decode")
    return binascii.a2b_base64(digits + "=" * missing)


def _tensor(dtype: int, shape: Shape, elements: list[Any]) -> Tensor:
    if dtype == DT_STRING:
        return Tensor(DT_STRING, shape, strings=elements)
    if dtype in (DT_INT8, DT_INT16, DT_UINT8):
        wide = np.array(elements, np.int32)
        return Tensor(dtype, shape, wide.astype(ELEMENT_TYPES[dtype].name).tobytes())
    return Tensor(dtype, shape, np.array(elements, _ARRAY_TYPES[dtype]).tobytes())


_ARRAY_TYPES: dict[int, Any] = {
    DT_FLOAT: np.float32,
    DT_DOUBLE: np.float64,
    DT_INT32: np.int32,
    DT_INT64: np.int64,
    DT_BOOL: np.bool_,
    DT_UINT32: np.uint32,
    DT_UINT64: np.uint64,
}


# --- classify and regress -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExampleInputs:
    """A classify or regress request: `signature` as named in it, and the examples as an Input message."""

    signature: str
    input: Any


def read_examples(body: bytes) -> ExampleInputs:
    """Read a classify or regress request. Raises INVALID_ARGUMENT for whatever does not fit."""
    try:
        return _examples(body)
    except RecursionError:
        raise too_deep() from None


def _examples(body: bytes) -> ExampleInputs:
    document = parse_object(body)
    signature = _signature_name(document)
    request = Input()
    target = request.example_list
    if "context" in document:
        target = request.example_list_with_context
        _example(document["context"], target.context)
    if "examples" not in document:
        complaint = "When method is classify, key 'examples' is expected and was not found"
        raise format_error(document, complaint)
    examples = document["examples"]
    if not isinstance(examples, list):
        raise format_error(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise format_error(document, "'examples' value is an empty array")
    for example in examples:
        _example(example, target.examples.add())
    return ExampleInputs(signature, request)


def _example(value: Json, example: Example) -> None:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {json_type_name(value)}")
    for name, content in value.items():
        feature = example.features.feature[name]
        for element in content if isinstance(content, list) else (content,):
            _add_to_feature(element, name, feature)


def _add_to_feature(value: Json, name: str, feature: Any) -> None:
    kind, converted = _feature_element(value, name)
    current = feature.WhichOneof("kind")
    if current not in (None, kind):
        expected = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}[current]
        raise invalid_argument(f"Unexpected element type in feature: {name} expecting type: {expected}")
    getattr(feature, kind).value.append(converted)


def _feature_element(value: Json, name: str) -> tuple[str, Any]:
    """The kind of feature that holds the value, and the value in it."""
    if isinstance(value, str):
        return "bytes_list", value.encode("utf-8", "surrogatepass")
    if _is_base64(value):
        return "bytes_list", _base64_object(value)
    if value is None or isinstance(value, list | dict):
        raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {json_type_name(value)}")
    if isinstance(value, float):
        if isfinite(value) and abs(value) > _FLOAT_MAX:
            raise _lossy(value)
        return "float_list", value
    if value > 2**63 - 1:
        raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.")
    return "int64_list", int(value)
