"""One client for a model server: predict over REST and gRPC, model status, metadata, the metrics page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import grpc
import ml_dtypes  # noqa: F401  (makes NumPy know bfloat16)
import numpy as np
import requests

from launchpad.examples import Values
from launchpad.modelserver import protos
from launchpad.modelserver.tensor_proto import from_proto

PREDICT = "/tensorflow.serving.PredictionService/Predict"
RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"


_UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
"""Messages of any size, as a model server sends and takes them; gRPC's own default is 4 MiB for answers."""


class ServerError(Exception):
    """The server did not give the answer: `kind` is `HTTP 503`, `UNAVAILABLE`, `no connection` or the like."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


class RestClient:
    """The REST API of a server. Connections are kept alive between calls."""

    def __init__(self, url: str, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._session = requests.Session()
        self._session.trust_env = False

    def predict(self, model: str, signature: str, inputs: Mapping[str, Values]) -> dict[str, np.ndarray]:
        """Return {output name: array [n, ...]} for a batch given as {input name: n values}.

        Raises ServerError for anything but an answer.
        """
        body = self._call("POST", f"/v1/models/{model}:predict", columns(signature, inputs))["outputs"]
        named = body if isinstance(body, dict) else {"": body}
        return {name: np.asarray(values) for name, values in named.items()}

    def states(self, model: str) -> dict[int, str]:
        """Return {version: state} of a model, such as {1: "AVAILABLE"}. Raises ServerError."""
        return {version: state for version, (state, _) in self.statuses(model).items()}

    def statuses(self, model: str) -> dict[int, tuple[str, str]]:
        """Return {version: (state, error message, empty if there is none)} of a model. Raises ServerError."""
        answer = self._call("GET", f"/v1/models/{model}")
        return {
            int(entry["version"]): (entry["state"], entry["status"]["error_message"])
            for entry in answer["model_version_status"]
        }

    def metadata(self, model: str) -> dict[str, Any]:
        """Return the signatures of a model's newest version as the server lists them. Raises ServerError."""
        return self._call("GET", f"/v1/models/{model}/metadata")

    def metrics(self, path: str) -> str:
        """Return the text of the Prometheus page. Raises ServerError."""
        return self._response("GET", path).text

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        try:
            return self._response(method, path, body).json()
        except ValueError as error:
            raise ServerError("no JSON", str(error)) from error

    def _response(self, method: str, path: str, body: Any = None) -> requests.Response:
        data = None if body is None else json.dumps(body)  # NaN and Infinity stand bare, as the server reads them
        headers = {"Content-Type": "application/json"} if data else {}
        try:
            response = self._session.request(
                method, self.url + path, data=data, headers=headers, timeout=self._timeout_s
            )
        except requests.Timeout as error:
            raise ServerError("timeout", f"no answer in {self._timeout_s:g} s") from error
        except requests.exceptions.ChunkedEncodingError as error:
            raise ServerError("cut off", "the connection ended in the middle of the answer") from error
        except requests.RequestException as error:
            raise ServerError("no connection", str(error)) from error
        if response.status_code != 200:
            raise ServerError(f"HTTP {response.status_code}", response.text[:500])
        return response


def columns(signature: str, inputs: Mapping[str, Values]) -> dict[str, Any]:
    """Return the body of a REST predict request in the columns format. Strings are sent as b64 objects."""
    return {"signature_name": signature, "inputs": {name: plain(values) for name, values in inputs.items()}}


def plain(values: Values) -> list[Any]:
    """Return values as JSON has them; byte strings as the `{"b64": ...}` objects that the server decodes."""
    if isinstance(values, np.ndarray):
        return values.tolist()
    return [{"b64": base64.b64encode(value).decode()} for value in values]


class GrpcClient:
    """The gRPC API of a server."""

    def __init__(self, address: str, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(address, _UNLIMITED)
        self._predict = self._channel.unary_unary(
            PREDICT,
            request_serializer=protos.PredictRequest.SerializeToString,
            response_deserializer=protos.PredictResponse.FromString,
        )
        self._reload = self._channel.unary_unary(
            RELOAD,
            request_serializer=protos.ReloadConfigRequest.SerializeToString,
            response_deserializer=protos.ReloadConfigResponse.FromString,
        )

    def predict(self, model: str, signature: str, inputs: Mapping[str, Values]) -> dict[str, np.ndarray]:
        """Return {output name: array [n, ...]} for a batch given as {input name: n values}. Raises ServerError."""
        try:
            answer = self._predict(predict_request(model, signature, inputs), timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise ServerError(error.code().name, error.details()) from error
        return {name: array(tensor) for name, tensor in answer.outputs.items()}

    def reload(self, config: Any) -> None:
        """Have the server obey a ModelServerConfig: its models, version policies and labels. Raises ServerError."""
        request = protos.ReloadConfigRequest()
        request.config.CopyFrom(config)
        try:
            answer = self._reload(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise ServerError(error.code().name, error.details()) from error
        if answer.status.error_code:
            raise ServerError(f"status {answer.status.error_code}", answer.status.error_message)

    def close(self) -> None:
        self._channel.close()


def predict_request(model: str, signature: str, inputs: Mapping[str, Values]) -> Any:
    """Return a PredictRequest; numeric inputs as tensor_content, strings as string_val."""
    request = protos.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, values in inputs.items():
        tensor = request.inputs[name]
        if isinstance(values, np.ndarray):
            tensor.dtype = DTYPES[values.dtype.name]
            tensor.tensor_content = np.ascontiguousarray(values).tobytes()
            shape: tuple[int, ...] = values.shape
        else:
            tensor.dtype = DTYPES["string"]
            tensor.string_val.extend(values)
            shape = (len(values),)
        for size in shape:
            tensor.tensor_shape.dim.add(size=size)
    return request


DTYPES = {
    **{"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "string": 7, "complex64": 8},
    **{
        "int64": 9,
        "bool": 10,
        "bfloat16": 14,
        "uint16": 17,
        "complex128": 18,
        "float16": 19,
        "uint32": 22,
        "uint64": 23,
    },
}
"""Numbers of TensorFlow's DataType enum, by NumPy's names."""

_NAMES = {number: name for name, number in DTYPES.items()}


def array(message: Any) -> np.ndarray:
    """Return a TensorProto as an array of its shape; strings as an array of bytes objects."""
    tensor = from_proto(message, "output")
    if message.dtype == DTYPES["string"]:
        return np.array(list(tensor.strings), dtype=object).reshape(tensor.shape)
    return np.frombuffer(tensor.data, np.dtype(_NAMES[message.dtype])).reshape(tensor.shape)
