"""The REST API: paths, methods and JSON, as `http_rest_api_handler.cc` has them."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from time import monotonic, perf_counter
from typing import Any
from urllib.parse import unquote

import orjson
from google.protobuf import json_format

from .http import Respond, Response
from .inference import Answer, Inference
from .json_request import InputTypes, PredictInputs, read_examples, read_predict
from .json_response import (
    write_classifications,
    write_error,
    write_outputs,
    write_predictions,
    write_regressions,
)
from .manager import ModelManager, Version
from .metrics import Metrics
from .servable import DEFAULT_SIGNATURE, Servable, Signature
from .status import HTTP_STATUS, Code, ServingError, invalid_argument

_log = logging.getLogger(__name__)

_API_PREFIX = "/v1/"
_TARGET = r"(?:(?:/versions/(?P<version>\d+))|(?:/labels/(?P<label>[^/:]+)))?"
_VERSION_DIGITS = 19
"""Of the largest int64."""
_PREDICTION = re.compile(rf"(?i:/v1/models/(?P<name>[^/:]+){_TARGET}:(?P<method>classify|regress|predict))")
_STATUS = re.compile(rf"(?i:/v1/models(?:/(?P<name>[^/:]+))?{_TARGET}(?:/(?P<method>metadata))?)")
_NOT_FOUND = Response(
    404,
    b"<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n</BODY></HTML>\n",
    "text/html",
)
_CORS_HEADERS = (
    "Access-Control-Allow-Origin: *",
    "Access-Control-Allow-Methods: POST, GET",
    "Access-Control-Allow-Headers: Content-Type",
)
_WAITING_PER_THREAD = 1024
"""Requests that may wait for their turn, for each that may be worked on; past that they are refused."""


@dataclass(frozen=True, slots=True)
class Route:
    """What a path asks for; `method` is "" for a model's status."""

    name: str
    version: int | None
    label: str | None
    method: str


class _NoVersion(ServingError):
    """A version number too large, to which the original answers without a word."""


@lru_cache(maxsize=1024)
def parse_path(http_method: str, path: str) -> Route:
    """The route of a path under /v1/. Raises INVALID_ARGUMENT."""
    match = _match(http_method, path)
    if match is None:
        raise invalid_argument(f"Malformed request: {http_method} {path}")
    digits = match["version"]
    if digits and (len(digits.lstrip("0")) > _VERSION_DIGITS or int(digits) >= 1 << 63):
        raise _NoVersion(Code.INVALID_ARGUMENT, f"Failed to convert version: {digits} to numeric.")
    version = int(digits) if digits else None
    label = unquote(match["label"]) if match["label"] else None
    method = match["method"] or ""
    if method != method.lower():
        if http_method == "POST":
            raise invalid_argument(f"Malformed request: {http_method} {path}")
        method = ""  # METADATA matches, but only metadata is one
    return Route(unquote(match["name"] or ""), version, label, method)


def _match(http_method: str, path: str) -> re.Match[str] | None:
    pattern = {"POST": _PREDICTION, "GET": _STATUS}.get(http_method)
    return pattern.fullmatch(path) if pattern else None


def _api_label(route: Route) -> str:
    """The API under which the request's latency is counted: the original counts status and metadata under none."""
    return "" if route.method == "metadata" else route.method


def route_name(http_method: str, path: str) -> str:
    """The model that the path names, "" where it names none, for the count of failures."""
    match = _match(http_method, path)
    return unquote(match["name"] or "") if match else ""


class RestApi:
    """Handles HTTP requests. Of those that need a model, a limited number is worked on at a time."""

    def __init__(
        self,
        manager: ModelManager,
        inference: Inference,
        metrics: Metrics,
        *,
        threads: int,
        timeout_ms: int,
        cors: bool,
        metrics_path: str | None,
    ) -> None:
        self._manager = manager
        self._inference = inference
        self._metrics = metrics
        self._free = max(1, threads)
        self._max_waiting = self._free * _WAITING_PER_THREAD
        self._timeout_s = timeout_ms / 1000 if timeout_ms > 0 else None
        self._headers = _CORS_HEADERS if cors else ()
        self._cors = cors
        self._metrics_path = metrics_path
        self._near_metrics = (f"{metrics_path}?", f"{metrics_path}#") if metrics_path else ()
        self._waiting: deque[Callable[[], None]] = deque()
        self._starting = False
        self._methods: dict[str, Callable[[Route, bytes, float | None, Answer], None]] = {
            "predict": self._predict,
            "classify": self._classify,
            "regress": self._regress,
        }

    def handle(self, http_method: str, path: str, body: bytes, respond: Respond) -> None:
        """Answer a request; see `http.Handler`."""
        if path == self._metrics_path:
            respond(Response(200, self._metrics.page().encode(), "text/plain"))
        elif path.startswith(self._near_metrics):
            complaint = f"Unexpected path: {path}. Should be {self._metrics_path}"
            respond(Response(400, complaint.encode("latin-1"), "text/plain"))
        elif path[: len(_API_PREFIX)].lower() != _API_PREFIX:
            respond(_NOT_FOUND)
        elif http_method == "OPTIONS" and self._cors:
            respond(Response(200, b"", headers=self._headers))
        else:
            self._handle_api(http_method, path, body, respond)

    def _handle_api(self, http_method: str, path: str, body: bytes, respond: Respond) -> None:
        deadline = None if self._timeout_s is None else monotonic() + self._timeout_s
        try:
            route = parse_path(http_method, path)
            if http_method == "GET":
                self._succeed(route, perf_counter(), self._get(route), respond)
                return
        except ServingError as error:
            self._fail(route_name(http_method, path), error, respond)
            return
        if self._free:
            self._work(route, body, deadline, respond)
        elif len(self._waiting) < self._max_waiting:
            self._waiting.append(lambda: self._work(route, body, deadline, respond))
        else:
            busy = ServingError(Code.UNAVAILABLE, "Too many requests are waiting")
            self._fail(route.name, busy, respond)

    def _work(self, route: Route, body: bytes, deadline: float | None, respond: Respond) -> None:
        self._free -= 1
        started = perf_counter()

        def answer(result: bytes | ServingError) -> None:
            if isinstance(result, ServingError):
                self._fail(route.name, result, respond)
            else:
                self._succeed(route, started, result, respond)
            self._free += 1
            self._start_waiting()

        try:
            if deadline is not None and deadline < monotonic():
                raise ServingError(Code.DEADLINE_EXCEEDED, "Timed out waiting for a thread")
            self._methods[route.method](route, body, deadline, answer)
        except ServingError as error:
            answer(error)
        except Exception:
            _log.exception("a %s request failed unexpectedly", route.method)
            answer(ServingError(Code.INTERNAL, "Internal error; see the server's log"))

    def _start_waiting(self) -> None:
        """Start what waits for a thread. One after the other, not one inside the other: a short run is over, and has
        given its thread back, before its call returns."""
        if self._starting:
            return
        self._starting = True
        try:
            while self._free and self._waiting:
                self._waiting.popleft()()
        finally:
            self._starting = False

    def _succeed(self, route: Route, started: float, body: bytes, respond: Respond) -> None:
        latency = self._metrics.request_latency.cell(route.name, _api_label(route), "REST")
        latency.add(int((perf_counter() - started) * 1e6))
        self._metrics.request_count.add(route.name, "OK")
        respond(Response(200, body, headers=self._headers))

    def _fail(self, name: str, error: ServingError, respond: Respond) -> None:
        self._metrics.request_count.add(name, error.code.name)
        body = b"" if isinstance(error, _NoVersion) else write_error(error.message)
        respond(Response(HTTP_STATUS[error.code], body, headers=self._headers))

    # --- prediction ---

    def _predict(self, route: Route, body: bytes, deadline: float | None, answer: Answer) -> None:
        found: list[tuple[Servable, Signature]] = []

        def lookup(signature_name: str) -> InputTypes:
            servable = self._manager.find(route.name, route.version, route.label)
            signature = servable.signature(signature_name)
            if signature is None:
                name = signature_name or DEFAULT_SIGNATURE
                raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
            found.append((servable, signature))
            return signature.input_types

        inputs = read_predict(body, lookup)
        servable, signature = found[-1]
        job = self._inference.predict(servable, signature, inputs.tensors)
        self._inference.submit(job, deadline, _writing(answer, _predict_writer(inputs)))

    def _classify(self, route: Route, body: bytes, deadline: float | None, answer: Answer) -> None:
        request = read_examples(body)
        servable = self._manager.find(route.name, route.version, route.label)
        job = self._inference.classify(servable, request.signature, request.input)
        self._inference.submit(job, deadline, _writing(answer, lambda result: write_classifications(result.examples)))

    def _regress(self, route: Route, body: bytes, deadline: float | None, answer: Answer) -> None:
        request = read_examples(body)
        servable = self._manager.find(route.name, route.version, route.label)
        job = self._inference.regress(servable, request.signature, request.input)
        self._inference.submit(job, deadline, _writing(answer, lambda result: write_regressions(result.values)))

    # --- status and metadata ---

    def _get(self, route: Route) -> bytes:
        if not route.name:
            raise invalid_argument("Missing model name in request.")
        if route.method == "metadata":
            return _metadata_json(self._manager.find(route.name, route.version, route.label))
        return _status_json(self._manager.status(route.name, route.version))


def _predict_writer(inputs: PredictInputs) -> Callable[[Any], bytes]:
    return write_predictions if inputs.rows else write_outputs


def _writing(answer: Answer, write: Callable[[Any], bytes]) -> Answer:
    """An answer that takes a result and passes on its JSON."""

    def on_result(result: Any) -> None:
        if not isinstance(result, ServingError):
            try:
                result = write(result)
            except ServingError as error:
                result = error
        answer(result)

    return on_result


def _status_json(versions: list[Version]) -> bytes:
    entries = [
        {
            "version": str(version.number),
            "state": version.state.name,
            "status": {
                "error_code": version.error.code.name if version.error else "OK",
                "error_message": version.error.message if version.error else "",
            },
        }
        for version in versions
    ]
    return orjson.dumps({"model_version_status": entries}, option=orjson.OPT_INDENT_2)


def _metadata_json(servable: Servable) -> bytes:
    signatures = json_format.MessageToDict(
        servable.signature_map(),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    spec = {"name": servable.name, "signature_name": "", "version": str(servable.version)}
    return orjson.dumps({"model_spec": spec, "metadata": {"signature_def": signatures}}, option=orjson.OPT_INDENT_2)
