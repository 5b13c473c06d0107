"""The requests of a load test, made beforehand: real examples as bytes to send, with the answers to expect."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
from google.protobuf.message import DecodeError

from launchpad import exported
from launchpad.client import PREDICT, array, columns, plain, predict_request
from launchpad.declaration import Declaration
from launchpad.errors import EnvironmentFault
from launchpad.examples import Examples, Values, same_answer
from launchpad.layout import Layout
from launchpad.loadtest.connections import Connection, GrpcConnection, RestConnection
from launchpad.modelserver import protos
from launchpad.modelserver.status import ServingError
from launchpad.spec import Traffic

REQUESTS = 200
"""Different requests of each line, sent in turn."""
MAX_KNOWN = 8
"""Right answers remembered by their bytes: rounding by batch size makes a few."""

HOST = "127.0.0.1"

Outputs = dict[str, np.ndarray]


class Request:
    """Bytes to send, and a check of the answer's body. Bodies found right once are known by their bytes."""

    def __init__(self, wire: bytes, expected: Outputs, decode: Callable[[bytes, Outputs], Outputs]) -> None:
        self.wire = wire
        self._expected = expected
        self._decode = decode
        self._known: set[bytes] = set()

    def is_right(self, body: bytes) -> bool:
        """Tell whether the body of a good answer is the exporter's answer."""
        if body in self._known:
            return True
        try:
            given = self._decode(body, self._expected)
            right = all(same_answer(values, given[name]) for name, values in self._expected.items())
        except (ValueError, KeyError, TypeError, DecodeError, ServingError):
            return False
        if right and len(self._known) < MAX_KNOWN:
            self._known.add(body)
        return right


class Line:
    """A line of traffic: what is asked of whom, and the requests to ask with."""

    def __init__(self, declared: Traffic, requests: Sequence[Request]) -> None:
        self.name = declared.line
        self.weight = declared.weight
        self.protocol = declared.protocol
        self.requests = requests


def lines(declaration: Declaration, traffic: Sequence[Traffic]) -> list[Line]:
    """Return lines of traffic ready to be sent.

    Raises EnvironmentFault if a model has not been exported, or a signature has no examples.
    """
    layout = Layout(declaration.root)
    cache: dict[str, Examples] = {}
    made = []
    for line in traffic:
        version = declaration.pipeline.models[line.model].version
        if line.model not in cache:
            cache[line.model] = exported.examples(layout, line.model, version)
        examples = cache[line.model]
        if line.signature not in examples.inputs:
            place = layout.relative(layout.examples(line.model, version))
            raise EnvironmentFault(f"{line.model} has no examples for {line.signature}", place)
        made.append(Line(line, [_request(declaration, line, examples, index) for index in range(REQUESTS)]))
    return made


def connection(declaration: Declaration, protocol: str, url: str, timeout_s: float) -> Connection:
    """Return a connection for a protocol of traffic to the server with a REST URL; gRPC is on its declared port."""
    place, ports = urlsplit(url), declaration.pipeline.serving.ports
    host = place.hostname or HOST
    if protocol == "grpc":
        return GrpcConnection(host, ports.grpc, timeout_s)
    return RestConnection(host, place.port or ports.rest, timeout_s)


def _request(declaration: Declaration, line: Traffic, examples: Examples, index: int) -> Request:
    rows = np.arange(index * line.batch, (index + 1) * line.batch) % len(examples)
    inputs: dict[str, Values] = {
        name: values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
        for name, values in examples.inputs[line.signature].items()
    }
    expected = {name: values[rows] for name, values in examples.outputs[line.signature].items()}
    ports = declaration.pipeline.serving.ports
    if line.protocol == "grpc":
        message = predict_request(line.model, line.signature, inputs).SerializeToString()
        return Request(GrpcConnection.request(f"{HOST}:{ports.grpc}", PREDICT, message), expected, _of_message)
    column_format = line.protocol == "rest_columns"
    body = columns(line.signature, inputs) if column_format else _rows(line.signature, inputs)
    wire = RestConnection.request(f"{HOST}:{ports.rest}", f"/v1/models/{line.model}:predict", _dumped(body))
    return Request(wire, expected, _of_columns if column_format else _of_rows)


def _rows(signature: str, inputs: dict[str, Values]) -> dict[str, Any]:
    """Return the body of a REST predict request in the row format; a single input stands bare."""
    plains = {name: plain(values) for name, values in inputs.items()}
    if len(plains) == 1:
        return {"signature_name": signature, "instances": next(iter(plains.values()))}
    instances = [dict(zip(plains, row, strict=True)) for row in zip(*plains.values(), strict=True)]
    return {"signature_name": signature, "instances": instances}


def _of_rows(body: bytes, expected: Outputs) -> Outputs:
    rows = _json(body)["predictions"]
    if len(expected) == 1:
        return {name: np.asarray(rows) for name in expected}
    return {name: np.asarray([row[name] for row in rows]) for name in expected}


def _of_columns(body: bytes, expected: Outputs) -> Outputs:
    outputs = _json(body)["outputs"]
    if len(expected) == 1:
        return {name: np.asarray(outputs) for name in expected}
    return {name: np.asarray(outputs[name]) for name in expected}


def _of_message(body: bytes, expected: Outputs) -> Outputs:
    outputs = protos.PredictResponse.FromString(body).outputs
    return {name: array(outputs[name]) for name in expected}


def _dumped(body: Any) -> bytes:
    """Write JSON; NaN and Infinity bare, as the server reads them, by the slower writer: the quick one writes null."""
    dumped = orjson.dumps(body)
    return json.dumps(body, separators=(",", ":")).encode() if b"null" in dumped else dumped


def _json(body: bytes) -> Any:
    """Read JSON; NaN and Infinity, which the server writes bare, by the slower reader that knows them."""
    return json.loads(body) if b"NaN" in body or b"Infinity" in body else orjson.loads(body)
