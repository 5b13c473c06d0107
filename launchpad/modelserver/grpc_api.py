"""The gRPC API: PredictionService, ModelService and the health service, over HTTP/2.

gRPC is spoken here directly, since Python's gRPC server costs several times what the rest of a request does.
All calls are unary.
"""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Awaitable, Callable
from time import monotonic, perf_counter
from typing import Any
from urllib.parse import quote

from google.protobuf.message import DecodeError

from .config import ModelSettings, model_settings
from .http2 import Headers, Stream
from .inference import Classification, Inference, Outputs, Regression
from .manager import ModelManager
from .metrics import Metrics
from .predict_codec import read_request, write_response
from .protos import (
    ClassificationRequest,
    ClassificationResponse,
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    GetModelStatusRequest,
    GetModelStatusResponse,
    MultiInferenceRequest,
    MultiInferenceResponse,
    RegressionRequest,
    RegressionResponse,
    ReloadConfigRequest,
    ReloadConfigResponse,
)
from .servable import DEFAULT_SIGNATURE, Servable
from .status import Code, ServingError, invalid_argument

_log = logging.getLogger(__name__)

Reply = Callable[[bytes | ServingError], None]
"""Told the serialised response, or the error in its place."""

Call = Callable[[bytes, float | None, Reply], None]
"""A method: given the serialised request, the deadline and whom to reply to; may raise ServingError at once."""

StreamCall = Callable[[bytes, Stream], None]
"""A method that answers more than once: given the serialised request and where to answer."""

Reconfigure = Callable[[dict[str, ModelSettings]], Awaitable[None]]


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field that uses no compression state (RFC 7541, literal without indexing, new name)."""
    return b"\x00" + _text(name) + _text(value)


def _text(value: bytes) -> bytes:
    size = len(value)
    if size < 127:
        return bytes([size]) + value
    prefix, rest = bytearray([127]), size - 127
    while rest > 127:
        prefix.append(rest & 127 | 128)
        rest >>= 7
    prefix.append(rest)
    return bytes(prefix) + value


_STATUS_200 = b"\x88"
_HEAD = _STATUS_200 + _literal(b"content-type", b"application/grpc")
_OK_TRAILERS = _literal(b"grpc-status", b"0")
_WRONG_CONTENT_TYPE = _literal(b":status", b"415")

_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_TIMEOUT_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_PREFIX = struct.Struct(">BI")


def _message_text(message: str) -> bytes:
    """An error text as a `grpc-message` header carries it."""
    return quote(message.encode("utf-8", "surrogateescape"), safe=_PRINTABLE).encode()


_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_MAX_MESSAGE = 4096


class GrpcApi:
    """Handles HTTP/2 requests that are gRPC calls; of those that wait for a model, a limited number at a time."""

    def __init__(
        self, calls: dict[str, Call], streams: dict[str, StreamCall], *, threads: int, max_message_bytes: int
    ) -> None:
        """Methods by path, such as `/tensorflow.serving.PredictionService/Predict`; `streams` answer more than once."""
        self._calls = {path.encode(): call for path, call in calls.items()}
        self._streams = {path.encode(): call for path, call in streams.items()}
        self._free = max(1, threads)
        self._max_message_bytes = max_message_bytes

    def handle(self, stream: Stream) -> None:
        """Answer a call; see `http2.Handler`."""
        headers = stream.headers
        if not headers.get(b"content-type", b"").startswith(b"application/grpc"):
            stream.respond(b"", b"", _WRONG_CONTENT_TYPE)
            return
        streaming = self._streams.get(headers.get(b":path", b""))
        if streaming is not None:
            self._stream(streaming, stream)
            return
        replied = False

        def reply(result: bytes | ServingError) -> None:
            nonlocal replied
            if not replied:
                replied = True
                self._free += 1
                _reply(stream, result)

        if not self._free:
            _reply(stream, ServingError(Code.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted"))
            return
        self._free -= 1
        try:
            call = self._calls.get(headers.get(b":path", b""))
            if call is None:
                raise ServingError(Code.UNIMPLEMENTED, "")
            call(self._message(stream), _deadline(headers), reply)
        except ServingError as error:
            reply(error)
        except Exception:
            _log.exception("a call failed unexpectedly")
            reply(ServingError(Code.INTERNAL, "Internal error; see the server's log"))

    def _stream(self, call: StreamCall, stream: Stream) -> None:
        try:
            call(self._message(stream), stream)
        except ServingError as error:
            _reply(stream, error)

    def _message(self, stream: Stream) -> bytes:
        body = stream.body
        if len(body) < _PREFIX.size:
            raise ServingError(Code.INTERNAL, "The call has no message")
        compressed, size = _PREFIX.unpack_from(body)
        if size > self._max_message_bytes:
            raise ServingError(
                Code.RESOURCE_EXHAUSTED,
                f"Received message larger than max ({size} vs. {self._max_message_bytes})",
            )
        if size != len(body) - _PREFIX.size:
            raise ServingError(Code.INTERNAL, "The call must have exactly one whole message")
        message = bytes(memoryview(body)[_PREFIX.size :])
        return self._decompress(message, stream.headers) if compressed else message

    def _decompress(self, message: bytes, headers: Headers) -> bytes:
        encoding = headers.get(b"grpc-encoding", b"identity")
        if encoding not in (b"gzip", b"deflate"):
            raise ServingError(Code.UNIMPLEMENTED, f"Compression {encoding.decode('latin-1')} is not supported")
        decompressor = zlib.decompressobj(wbits=31 if encoding == b"gzip" else 15)
        try:
            plain = decompressor.decompress(message, self._max_message_bytes + 1)
        except zlib.error:
            raise ServingError(Code.INTERNAL, "The message is not compressed as it says") from None
        if len(plain) > self._max_message_bytes:
            raise ServingError(Code.RESOURCE_EXHAUSTED, "Received message larger than max after decompression")
        return plain


def _reply(stream: Stream, result: bytes | ServingError) -> None:
    if isinstance(result, ServingError):
        trailers = _literal(b"grpc-status", b"%d" % result.code)
        if result.message:
            trailers += _literal(b"grpc-message", _message_text(result.message)[:_MAX_MESSAGE])
        stream.respond(b"", b"", _HEAD + trailers)
    else:
        stream.respond(_HEAD, _framed(result), _OK_TRAILERS)


def _framed(message: bytes) -> bytes:
    """A message as it travels, uncompressed."""
    return _PREFIX.pack(0, len(message)) + message


def _deadline(headers: Headers) -> float | None:
    timeout = headers.get(b"grpc-timeout")
    match = _TIMEOUT.fullmatch(timeout) if timeout else None
    return monotonic() + int(match[1]) * _TIMEOUT_UNITS[match[2]] if match else None


def _parse(message_type: Any, data: bytes) -> Any:
    try:
        return message_type.FromString(data)
    except DecodeError:
        raise ServingError(Code.INTERNAL, "Failed to parse the request message") from None


def _find(manager: ModelManager, spec: Any) -> Servable:
    version = spec.version.value if spec.HasField("version") else None
    label = spec.version_label if spec.HasField("version_label") else None
    return manager.find(spec.name, version, label)


class PredictionService:
    """tensorflow.serving.PredictionService."""

    def __init__(self, manager: ModelManager, inference: Inference, metrics: Metrics, *, as_content: bool) -> None:
        self._manager = manager
        self._inference = inference
        self._metrics = metrics
        self._as_content = as_content

    def calls(self) -> dict[str, Call]:
        """The methods by path."""
        prefix = "/tensorflow.serving.PredictionService/"
        return {
            prefix + "Predict": self._predict,
            prefix + "Classify": self._classify,
            prefix + "Regress": self._regress,
            prefix + "MultiInference": self._multi_inference,
            prefix + "GetModelMetadata": self._get_model_metadata,
        }

    def _predict(self, data: bytes, deadline: float | None, reply: Reply) -> None:
        started = perf_counter()
        name = ""
        try:
            request = read_request(data)
            if request.name is None:
                raise invalid_argument("Missing ModelSpec")
            name = request.name
            servable = self._manager.find(name, request.version, request.label)
            signature_name = request.signature or DEFAULT_SIGNATURE
            signature = servable.signature(signature_name)
            if signature is None:
                raise ServingError(Code.FAILED_PRECONDITION, f'Serving signature key "{signature_name}" not found.')
            job = self._inference.predict(servable, signature, request.inputs(), request.output_filter)
        except ServingError as error:
            self._metrics.request_count.add(name, error.code.name)
            raise

        def answer(outputs: Outputs | ServingError) -> None:
            if isinstance(outputs, ServingError):
                self._fail(name, outputs, reply)
            else:
                data = write_response(outputs, servable, signature_name, as_content=self._as_content)
                self._succeed(name, "Predict", started, data, reply)

        self._inference.submit(job, deadline, answer)

    def _succeed(self, name: str, api: str, started: float, data: bytes, reply: Reply) -> None:
        self._metrics.request_latency.cell(name, api, "GRPC").add(int((perf_counter() - started) * 1e6))
        self._metrics.request_count.add(name, "OK")
        reply(data)

    def _fail(self, name: str, error: ServingError, reply: Reply) -> None:
        self._metrics.request_count.add(name, error.code.name)
        reply(error)

    def _classify(self, data: bytes, deadline: float | None, reply: Reply) -> None:
        request = _parse(ClassificationRequest, data)

        def write(servable: Servable, result: Classification) -> Any:
            response = ClassificationResponse()
            _fill_spec(response.model_spec, servable, request.model_spec.signature_name)
            _fill_classification(response.result, result)
            return response

        self._examples_call("Classify", self._inference.classify, request, deadline, reply, write)

    def _regress(self, data: bytes, deadline: float | None, reply: Reply) -> None:
        request = _parse(RegressionRequest, data)

        def write(servable: Servable, result: Regression) -> Any:
            response = RegressionResponse()
            _fill_spec(response.model_spec, servable, request.model_spec.signature_name)
            _fill_regression(response.result, result)
            return response

        self._examples_call("Regress", self._inference.regress, request, deadline, reply, write)

    def _examples_call(
        self,
        api: str,
        make_job: Callable[[Servable, str, Any], Any],
        request: Any,
        deadline: float | None,
        reply: Reply,
        write: Callable[[Servable, Any], Any],
    ) -> None:
        started = perf_counter()
        spec = request.model_spec
        try:
            if not request.HasField("model_spec"):
                raise invalid_argument("Missing ModelSpec")
            servable = _find(self._manager, spec)
            job = make_job(servable, spec.signature_name, request.input)
        except ServingError as error:
            self._metrics.request_count.add(spec.name, error.code.name)
            raise

        def answer(result: Any) -> None:
            if isinstance(result, ServingError):
                self._fail(spec.name, result, reply)
            else:
                response = write(servable, result).SerializeToString()
                self._succeed(spec.name, api, started, response, reply)

        self._inference.submit(job, deadline, answer)

    def _multi_inference(self, data: bytes, deadline: float | None, reply: Reply) -> None:
        request = _parse(MultiInferenceRequest, data)
        if not request.tasks:
            raise invalid_argument("ModelSpec has no name specified.")
        servable = _find(self._manager, request.tasks[0].model_spec)
        job = self._inference.multi_inference(servable, request)

        def answer(results: list[Classification | Regression] | ServingError) -> None:
            if isinstance(results, ServingError):
                reply(results)
                return
            response = MultiInferenceResponse()
            for task, result in zip(request.tasks, results, strict=True):
                entry = response.results.add()
                _fill_spec(entry.model_spec, servable, task.model_spec.signature_name)
                if isinstance(result, Classification):
                    _fill_classification(entry.classification_result, result)
                else:
                    _fill_regression(entry.regression_result, result)
            reply(response.SerializeToString())

        self._inference.submit(job, deadline, answer)

    def _get_model_metadata(self, data: bytes, deadline: float | None, reply: Reply) -> None:
        request = _parse(GetModelMetadataRequest, data)
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid_argument(f"Metadata field {field} is not supported")
        servable = _find(self._manager, request.model_spec)
        response = GetModelMetadataResponse()
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        response.metadata["signature_def"].Pack(servable.signature_map())
        reply(response.SerializeToString())


def _fill_spec(spec: Any, servable: Servable, signature_name: str) -> None:
    spec.name = servable.name
    spec.version.value = servable.version
    spec.signature_name = signature_name or DEFAULT_SIGNATURE


def _fill_classification(message: Any, result: Classification) -> None:
    for classes in result.examples:
        entry = message.classifications.add()
        for label, score in classes:
            entry.classes.add(label=label.decode("utf-8", "replace"), score=score)


def _fill_regression(message: Any, result: Regression) -> None:
    for value in result.values:
        message.regressions.add(value=value)


class ModelService:
    """tensorflow.serving.ModelService."""

    def __init__(self, manager: ModelManager, reconfigure: Reconfigure, spawn: Callable[[Any], None]) -> None:
        """`spawn` runs a coroutine in the background."""
        self._manager = manager
        self._reconfigure = reconfigure
        self._spawn = spawn

    def calls(self) -> dict[str, Call]:
        """The methods by path."""
        prefix = "/tensorflow.serving.ModelService/"
        return {
            prefix + "GetModelStatus": self._get_model_status,
            prefix + "HandleReloadConfigRequest": self._handle_reload_config_request,
        }

    def _get_model_status(self, data: bytes, deadline: float | None, reply: Reply) -> None:
        request = _parse(GetModelStatusRequest, data)
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        spec = request.model_spec
        number = spec.version.value if spec.HasField("version") else None
        response = GetModelStatusResponse()
        for version in self._manager.status(spec.name, number):
            entry = response.model_version_status.add(version=version.number, state=version.state.value)
            entry.status.SetInParent()
            if version.error is not None:
                entry.status.error_code = version.error.code
                entry.status.error_message = version.error.message
        reply(response.SerializeToString())

    def _handle_reload_config_request(self, data: bytes, deadline: float | None, reply: Reply) -> None:
        request = _parse(ReloadConfigRequest, data)
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid_argument(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is "
                "currently supported"
            )
        self._spawn(self._reload(model_settings(request.config), reply))

    async def _reload(self, models: dict[str, ModelSettings], reply: Reply) -> None:
        try:
            await self._reconfigure(models)
        except ServingError as error:
            _log.error("the new model configuration is not obeyed: %s", error)
            reply(error)
            return
        response = ReloadConfigResponse()
        response.status.SetInParent()
        reply(response.SerializeToString())


class Health:
    """grpc.health.v1.Health, for the server as a whole; it is asked only while the server serves."""

    _SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
    """HealthCheckResponse with each status."""
    _WHOLE_SERVER = (b"", b"\x0a\x00")
    """HealthCheckRequest with an empty service."""

    def __init__(self) -> None:
        self._watched: list[Stream] = []

    def calls(self) -> dict[str, Call]:
        """The method that answers once."""
        return {"/grpc.health.v1.Health/Check": self._check}

    def streams(self) -> dict[str, StreamCall]:
        """The method that goes on answering."""
        return {"/grpc.health.v1.Health/Watch": self._watch}

    def leave(self) -> None:
        """Tell those who watch that the server serves no more, and let them go."""
        for stream in self._watched:
            stream.respond(b"", _framed(self._NOT_SERVING), _OK_TRAILERS)
        self._watched.clear()

    def _check(self, data: bytes, deadline: float | None, reply: Reply) -> None:
        if data not in self._WHOLE_SERVER:
            raise ServingError(Code.NOT_FOUND, "service name unknown")
        reply(self._SERVING)

    def _watch(self, data: bytes, stream: Stream) -> None:
        known = data in self._WHOLE_SERVER
        stream.begin(_HEAD, _framed(self._SERVING if known else self._SERVICE_UNKNOWN))
        self._watched = [watched for watched in self._watched if not watched.closed] + [stream]
