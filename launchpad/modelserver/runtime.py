"""TensorFlow's runtime through its C API: load a SavedModel, run its graph, give everything back.

The shared library of the tensorflow wheel is called directly, so that TensorFlow's Python front end is never
imported: a session starts in tenths of a second, and a run costs microseconds of Python. Models are loaded by
the same C++ loader as TensorFlow Serving's, with the same errors.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from math import prod
from typing import Any

from .protos import tensorflow_directory
from .status import Code, ServingError, invalid_argument
from .tensor import DT_STRING, ELEMENT_TYPES, Shape, Tensor, unsupported

RUN_IN_CALLER = b"\x18" + b"\xff" * 9 + b"\x01"
"""RunOptions with inter_op_thread_pool = -1: operations run on the calling thread, with no hand-over."""


class _Output(ctypes.Structure):
    _fields_ = [("operation", c_void_p), ("index", c_int)]


class _Buffer(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("length", c_size_t), ("deallocator", c_void_p)]


_QUICK = {
    "TF_NewStatus": (c_void_p, []),
    "TF_DeleteStatus": (None, [c_void_p]),
    "TF_GetCode": (c_int, [c_void_p]),
    "TF_Message": (c_char_p, [c_void_p]),
    "TF_NewBuffer": (c_void_p, []),
    "TF_NewBufferFromString": (c_void_p, [c_char_p, c_size_t]),
    "TF_DeleteBuffer": (None, [c_void_p]),
    "TF_NewGraph": (c_void_p, []),
    "TF_DeleteGraph": (None, [c_void_p]),
    "TF_NewSessionOptions": (c_void_p, []),
    "TF_SetConfig": (None, [c_void_p, c_char_p, c_size_t, c_void_p]),
    "TF_DeleteSessionOptions": (None, [c_void_p]),
    "TF_GraphOperationByName": (c_void_p, [c_void_p, c_char_p]),
    "TF_OperationNumOutputs": (c_int, [c_void_p]),
    "TF_AllocateTensor": (c_void_p, [c_int, POINTER(c_int64), c_int, c_size_t]),
    "TF_DeleteTensor": (None, [c_void_p]),
    "TF_TensorData": (c_void_p, [c_void_p]),
    "TF_TensorType": (c_int, [c_void_p]),
    "TF_TensorByteSize": (c_size_t, [c_void_p]),
    "TF_NumDims": (c_int, [c_void_p]),
    "TF_Dim": (c_int64, [c_void_p, c_int]),
}
"""Calls that return at once: they keep the interpreter lock, since giving it up would cost more."""

_LONG = {
    "TF_LoadSessionFromSavedModel": (
        c_void_p,
        [c_void_p, c_void_p, c_char_p, POINTER(c_char_p), c_int, c_void_p, c_void_p, c_void_p],
    ),
    "TF_SessionRun": (
        None,
        [*[c_void_p] * 4, c_int, c_void_p, c_void_p, c_int, c_void_p, c_int, c_void_p, c_void_p],
    ),
    "TF_CloseSession": (None, [c_void_p, c_void_p]),
    "TF_DeleteSession": (None, [c_void_p, c_void_p]),
}
"""Calls that may take long: they give up the interpreter lock."""


@cache
def _library() -> Any:
    """The C API, loaded once; raises ImportError where the library is missing."""
    path = os.path.join(tensorflow_directory(), "libtensorflow_cc.so.2")
    try:
        quick, long = ctypes.PyDLL(path), ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(f"cannot load TensorFlow's library: {error}") from None
    functions: dict[str, Any] = {}
    for library, signatures in ((quick, _QUICK), (long, _LONG)):
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            functions[name] = function
    return type("CApi", (), {name: staticmethod(function) for name, function in functions.items()})


def prepare(*, onednn: bool) -> None:
    """Set up TensorFlow's library for this process; call it before anything else here.

    Keeps its log lines below errors off stderr, and chooses whether it uses oneDNN's kernels, unless the
    environment variable TF_ENABLE_ONEDNN_OPTS has chosen already. Raises ImportError where TensorFlow is missing.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", str(int(onednn)))
    try:
        framework = ctypes.CDLL(os.path.join(tensorflow_directory(), "libtensorflow_framework.so.2"))
    except OSError as error:
        raise ImportError(f"cannot load TensorFlow's library: {error}") from None
    set_level = getattr(framework, _ABSL_SET_MIN_LOG_LEVEL, None)
    if set_level is not None:
        set_level(_ABSL_LOG_ERROR)


_ABSL_SET_MIN_LOG_LEVEL = "_ZN4absl12lts_2025012714SetMinLogLevelENS0_18LogSeverityAtLeastE"
"""absl::SetMinLogLevel as TensorFlow 2.20 exports it; with another release a line or two of noise remains."""

_ABSL_LOG_ERROR = 2


def tensorflow_version() -> str:
    """The version of the TensorFlow library in use."""
    _library()
    library = ctypes.CDLL(os.path.join(tensorflow_directory(), "libtensorflow_cc.so.2"))
    library.TF_Version.restype = c_char_p
    return library.TF_Version().decode()


def release_free_memory() -> None:
    """Give memory that is no longer in use back to the operating system, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def run_options(timeout_ms: int | None) -> bytes:
    """RunOptions for a run on TensorFlow's own thread pool that is cancelled after `timeout_ms`."""
    if timeout_ms is None:
        return b""
    encoded, rest = bytearray(b"\x10"), max(1, timeout_ms)
    while rest > 127:
        encoded.append(rest & 127 | 128)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


class Session:
    """A loaded SavedModel.

    Runs may come from several threads at a time. `close` must come after the last of them has returned.
    """

    def __init__(self, path: str, tags: Sequence[str], config: bytes) -> None:
        """Load the SavedModel in directory `path`; `config` is a serialised ConfigProto.

        Raises ServingError with the loader's code and message.
        """
        api = _library()
        self._api = api
        self._graph = api.TF_NewGraph()
        status, options, meta = api.TF_NewStatus(), api.TF_NewSessionOptions(), api.TF_NewBuffer()
        try:
            api.TF_SetConfig(options, config, len(config), status)
            self._check(status)
            names = (c_char_p * len(tags))(*[tag.encode() for tag in tags])
            self._session = api.TF_LoadSessionFromSavedModel(
                options, None, os.fsencode(path), names, len(tags), self._graph, meta, status
            )
            self._check(status)
            buffer = _Buffer.from_address(meta)
            self.meta_graph: bytes = ctypes.string_at(buffer.data, buffer.length)
        except ServingError:
            api.TF_DeleteGraph(self._graph)
            raise
        finally:
            api.TF_DeleteBuffer(meta)
            api.TF_DeleteSessionOptions(options)
            api.TF_DeleteStatus(status)

    def _check(self, status: int) -> None:
        code = self._api.TF_GetCode(status)
        if code:
            raise ServingError(Code(code), self._api.TF_Message(status).decode("utf-8", "replace"))

    def step(self, feeds: Sequence[str], fetches: Sequence[str]) -> Step:
        """A run of the graph, prepared: from the tensors named `feeds` to those named `fetches`.

        Raises NOT_FOUND where the graph has no such tensor.
        """
        return Step(self._api, self._session, self._outputs(feeds), self._outputs(fetches))

    def _outputs(self, names: Sequence[str]) -> Any:
        outputs = (_Output * len(names))()
        for slot, name in zip(outputs, names, strict=True):
            operation_name, _, index = name.partition(":")
            operation = self._api.TF_GraphOperationByName(self._graph, operation_name.encode())
            number = int(index or 0)
            if not operation or number >= self._api.TF_OperationNumOutputs(operation):
                raise ServingError(Code.NOT_FOUND, f"Tensor {name} was not found in the graph")
            slot.operation, slot.index = operation, number
        return outputs

    def close(self) -> None:
        """Give back the session, its variables and its graph."""
        status = self._api.TF_NewStatus()
        self._api.TF_CloseSession(self._session, status)
        self._api.TF_DeleteSession(self._session, status)
        self._api.TF_DeleteGraph(self._graph)
        self._api.TF_DeleteStatus(status)


class Step:
    """One way to run a session: fixed feeds and fetches, any values."""

    def __init__(self, api: Any, session: int, feeds: Any, fetches: Any) -> None:
        self._api = api
        self._session = session
        self._feeds, self._fetches = feeds, fetches
        self._inputs_type = c_void_p * len(feeds)
        self._outputs_type = c_void_p * len(fetches)
        self._in_caller = api.TF_NewBufferFromString(RUN_IN_CALLER, len(RUN_IN_CALLER))

    def __del__(self) -> None:
        self._api.TF_DeleteBuffer(self._in_caller)

    def run_in_caller(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Run wholly on this thread: the cheapest way, without a time limit.

        Raises ServingError with the code and message of whatever went wrong in the graph.
        """
        return self._run(values, self._in_caller)

    def run(self, values: Sequence[Tensor], timeout_ms: int | None = None) -> list[Tensor]:
        """Run on TensorFlow's thread pool; DEADLINE_EXCEEDED after `timeout_ms`. Raises as `run_in_caller`."""
        options = run_options(timeout_ms)
        buffer = self._api.TF_NewBufferFromString(options, len(options))
        try:
            return self._run(values, buffer)
        finally:
            self._api.TF_DeleteBuffer(buffer)

    def _run(self, values: Sequence[Tensor], options: int) -> list[Tensor]:
        api = self._api
        inputs, outputs = self._inputs_type(), self._outputs_type()
        status = api.TF_NewStatus()
        try:
            for index, value in enumerate(values):
                inputs[index] = _to_c(api, value)
            api.TF_SessionRun(
                self._session,
                options,
                self._feeds,
                inputs,
                len(inputs),
                self._fetches,
                outputs,
                len(outputs),
                None,
                0,
                None,
                status,
            )
            code = api.TF_GetCode(status)
            if code:
                raise ServingError(Code(code), api.TF_Message(status).decode("utf-8", "replace"))
            return [_from_c(api, outputs[index] or 0) for index in range(len(outputs))]
        finally:
            for tensor in inputs:
                if tensor:
                    api.TF_DeleteTensor(tensor)
            for tensor in outputs:
                if tensor:
                    api.TF_DeleteTensor(tensor)
            api.TF_DeleteStatus(status)


_MAX_RANK = 254
_MAX_ELEMENTS = (1 << 63) - 1
"""What TensorFlow can hold, a dimension of 0 counted as 1; it ends the process when asked for more."""


@cache
def _dims_type(rank: int) -> Any:
    return c_int64 * rank


def _allocate(api: Any, dtype: int, shape: Shape, length: int) -> tuple[int, int]:
    """A new C tensor and the address of its elements."""
    if len(shape) > _MAX_RANK or (0 in shape and prod(filter(None, shape)) > _MAX_ELEMENTS):
        raise invalid_argument(f"Tensor of rank {len(shape)} has too many dimensions or elements")
    tensor = api.TF_AllocateTensor(dtype, _dims_type(len(shape))(*shape), len(shape), length)
    if not tensor:
        raise ServingError(Code.RESOURCE_EXHAUSTED, f"Cannot allocate a tensor of {length} bytes")
    return tensor, api.TF_TensorData(tensor)


def _to_c(api: Any, value: Tensor) -> int:
    if value.dtype == DT_STRING:
        return _strings_to_c(api, value)
    element = ELEMENT_TYPES.get(value.dtype)
    if element is None:
        raise unsupported(value.dtype)
    data = value.data
    length = len(data) if isinstance(data, bytes) else memoryview(data).nbytes
    if length != prod(value.shape) * element.size:
        raise invalid_argument(f"Tensor of shape {list(value.shape)} has {length} bytes")
    tensor, address = _allocate(api, value.dtype, value.shape, length)
    if length:
        ctypes.memmove(address, _pointer(data), length)
    return tensor


def _pointer(data: Any) -> Any:
    """What `ctypes.memmove` can read the buffer through."""
    if isinstance(data, bytes):
        return data
    view = memoryview(data)
    if view.readonly:
        return bytes(view)
    return byref((ctypes.c_char * view.nbytes).from_buffer(view))


_STRING_SIZE = 24
_STRING_SMALL, _STRING_LARGE, _STRING_OFFSET, _STRING_VIEW = range(4)
_STRING_KIND_BITS = 2
_OFFSET_STRING = struct.Struct("<III12x")
_LARGE_STRING = struct.Struct("<QQQ")
_MAX_OFFSET_STRING = 1 << 30


def _strings_to_c(api: Any, value: Tensor) -> int:
    """A string tensor whose elements lie behind its headers in one allocation (TF_TString of kind OFFSET).

    Such elements own nothing: TensorFlow copies what it keeps, and the whole is freed with the tensor.
    """
    strings = value.strings
    if len(strings) != prod(value.shape):
        raise invalid_argument(f"Tensor of shape {list(value.shape)} has {len(strings)} strings")
    headers = bytearray(_STRING_SIZE * len(strings))
    offset = len(headers)
    for index, text in enumerate(strings):
        size = len(text)
        if size >= _MAX_OFFSET_STRING or offset - index * _STRING_SIZE > 0xFFFFFFFF:
            raise invalid_argument("String tensor is too large")
        start = index * _STRING_SIZE
        _OFFSET_STRING.pack_into(headers, start, size << _STRING_KIND_BITS | _STRING_OFFSET, offset - start, 1)
        offset += size
    encoded = b"".join([bytes(headers), *strings])
    tensor, address = _allocate(api, DT_STRING, value.shape, len(encoded))
    ctypes.memmove(address, encoded, len(encoded))
    return tensor


def _from_c(api: Any, tensor: int) -> Tensor:
    dtype = api.TF_TensorType(tensor)
    shape = tuple([api.TF_Dim(tensor, axis) for axis in range(api.TF_NumDims(tensor))])
    address = api.TF_TensorData(tensor)
    if dtype == DT_STRING:
        return Tensor(DT_STRING, shape, strings=_strings_from_c(address, prod(shape)))
    if dtype not in ELEMENT_TYPES:
        raise unsupported(dtype)
    length = api.TF_TensorByteSize(tensor)
    return Tensor(dtype, shape, ctypes.string_at(address, length) if length else b"")


def _strings_from_c(address: int, count: int) -> list[bytes]:
    headers = ctypes.string_at(address, count * _STRING_SIZE) if count else b""
    strings = []
    for start in range(0, len(headers), _STRING_SIZE):
        kind = headers[start] & (1 << _STRING_KIND_BITS) - 1
        if kind == _STRING_SMALL:
            size = headers[start] >> _STRING_KIND_BITS
            strings.append(headers[start + 1 : start + 1 + size])
        elif kind == _STRING_OFFSET:
            tagged, offset, _ = _OFFSET_STRING.unpack_from(headers, start)
            strings.append(ctypes.string_at(address + start + offset, tagged >> _STRING_KIND_BITS))
        else:
            tagged, second, third = _LARGE_STRING.unpack_from(headers, start)
            pointer = third if kind == _STRING_LARGE else second
            strings.append(ctypes.string_at(pointer, tagged >> _STRING_KIND_BITS))
    return strings
