"""Predict's messages on the wire: the one call whose cost counts.

Requests are parsed by protobuf. Responses are written by hand where their elements lie in memory as they do in
the message, which is so for all floating-point outputs, and by protobuf otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from google.protobuf.message import DecodeError

from .protos import ModelSpec, PredictRequest, TensorProto
from .servable import Servable
from .status import Code, ServingError
from .tensor import DT_DOUBLE, DT_FLOAT, DT_STRING, Tensor
from .tensor_proto import fill_proto, from_proto


class PredictCall:
    """A PredictRequest, read. `name` is None where there is no model spec."""

    __slots__ = ("_message", "label", "name", "output_filter", "signature", "version")

    def __init__(self, message: Any) -> None:
        self._message = message
        self.name: str | None = None
        self.version: int | None = None
        self.label: str | None = None
        self.signature = ""
        if message.HasField("model_spec"):
            spec = message.model_spec
            self.name = spec.name
            self.signature = spec.signature_name
            choice = spec.WhichOneof("version_choice")
            if choice == "version":
                self.version = spec.version.value
            elif choice:
                self.label = spec.version_label
        self.output_filter: Sequence[str] = message.output_filter

    def inputs(self) -> dict[str, Tensor]:
        """The tensors by input name. Raises INVALID_ARGUMENT for one that is malformed."""
        return {alias: from_proto(tensor, alias) for alias, tensor in self._message.inputs.items()}


def read_request(data: bytes) -> PredictCall:
    """Read a serialised PredictRequest; raises INTERNAL for what is none."""
    try:
        return PredictCall(PredictRequest.FromString(data))
    except DecodeError:
        raise ServingError(Code.INTERNAL, "Failed to parse the request message") from None


def write_response(outputs: Mapping[str, Tensor], servable: Servable, signature: str, *, as_content: bool) -> bytes:
    """A serialised PredictResponse."""
    parts = [_output(alias, tensor, as_content) for alias, tensor in outputs.items()]
    return b"".join([*parts, _model_spec(servable.name, servable.version, signature)])


def _varint(value: int) -> bytes:
    if value < 128:
        return bytes((value,))
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


_TENSOR_CONTENT, _FLOAT_VAL, _DOUBLE_VAL = 4, 5, 6


def _output(alias: str, tensor: Tensor, as_content: bool) -> bytes:
    """An entry of `outputs`: map<string, TensorProto>, field 1."""
    if as_content and tensor.dtype != DT_STRING:
        values = _field(_TENSOR_CONTENT, bytes(tensor.data))
    elif tensor.dtype == DT_FLOAT:
        values = _field(_FLOAT_VAL, bytes(tensor.data))
    elif tensor.dtype == DT_DOUBLE:
        values = _field(_DOUBLE_VAL, bytes(tensor.data))
    else:
        message = TensorProto()
        fill_proto(message, tensor, as_content=as_content)
        return _field(1, _field(1, alias.encode()) + _field(2, message.SerializeToString()))
    if not tensor.size:
        values = b""
    key, begin = _entry_begin(alias, tensor.dtype, tensor.shape)
    return _field(1, key + _field(2, begin + values))


@lru_cache(maxsize=1024)
def _entry_begin(alias: str, dtype: int, shape: tuple[int, ...]) -> tuple[bytes, bytes]:
    """The entry's key, and the beginning of its tensor: data type and shape."""
    message = TensorProto(dtype=dtype)
    message.tensor_shape.SetInParent()
    for size in shape:
        message.tensor_shape.dim.add(size=size)
    return _field(1, alias.encode()), message.SerializeToString()


@lru_cache(maxsize=1024)
def _model_spec(name: str, version: int, signature: str) -> bytes:
    """The field `model_spec`, number 2."""
    spec = ModelSpec(name=name, signature_name=signature)
    spec.version.value = version
    return _field(2, spec.SerializeToString())
