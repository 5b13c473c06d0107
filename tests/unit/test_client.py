"""The client of a model server: what it sends, how it reads answers, and how it names what went wrong."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from launchpad.client import DTYPES, PREDICT, GrpcClient, RestClient, ServerError, array, predict_request
from launchpad.modelserver import protos

NUMERIC = [name for name in DTYPES if name not in ("string", "bfloat16")]  # hypothesis knows no bfloat16


@given(hnp.arrays(st.sampled_from(NUMERIC), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)))
def test_numbers_survive_the_way_into_a_tensor_and_back(values):
    tensor = predict_request("m", "s", {"x": values}).inputs["x"]
    back = array(tensor)
    assert (back.dtype, back.shape, back.tobytes()) == (values.dtype, values.shape, values.tobytes())


@given(st.lists(st.binary(max_size=8), max_size=5))
def test_strings_survive_the_way_into_a_tensor_and_back(values):
    back = array(predict_request("m", "s", {"x": values}).inputs["x"])
    assert back.tolist() == values


@pytest.mark.parametrize(
    ("dtype", "field"),
    [
        ("float32", "float_val"),
        ("float64", "double_val"),
        ("int32", "int_val"),
        ("int16", "int_val"),
        ("int8", "int_val"),
        ("uint8", "int_val"),
        ("int64", "int64_val"),
        ("bool", "bool_val"),
    ],
)
def test_an_answer_in_typed_value_lists_is_read(dtype, field):
    tensor = protos.TensorProto(dtype=DTYPES[dtype])
    tensor.tensor_shape.dim.add(size=2)
    tensor.tensor_shape.dim.add(size=1)
    getattr(tensor, field).extend([1, 0])
    assert array(tensor).tolist() == [[1], [0]]
    assert array(tensor).dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_numbers_of_types_are_those_of_tensorflow(dtype):
    name = {"float16": "HALF", "float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())
    assert protos.DataType.Value(f"DT_{name}") == DTYPES[dtype]


@pytest.fixture
def server():
    """A real HTTP server that gives prepared answers, and keeps what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.server.asked.append((self.command, self.path, self.rfile.read(length)))
            status, body = self.server.answers.pop(0)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *_) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        http.asked, http.answers = [], []
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield http
        http.shutdown()
        thread.join()


def client(server, **options) -> RestClient:
    return RestClient(f"http://127.0.0.1:{server.server_port}/", **options)


def will_answer(server, status: int, body: object) -> None:
    server.answers.append((status, body if isinstance(body, bytes) else json.dumps(body).encode()))


def test_predict_sends_columns_and_reads_named_outputs(server):
    will_answer(server, 200, {"outputs": {"scores": [[0.5, 0.5]], "label": [1]}})
    answer = client(server).predict("m", "s", {"x": np.array([[1.0, 2.0]], np.float32)})
    assert {name: values.tolist() for name, values in answer.items()} == {"scores": [[0.5, 0.5]], "label": [1]}
    ((method, path, body),) = server.asked
    assert (method, path) == ("POST", "/v1/models/m:predict")
    assert json.loads(body) == {"signature_name": "s", "inputs": {"x": [[1.0, 2.0]]}}


def test_numbers_that_json_has_not_are_sent_bare(server):
    will_answer(server, 200, {"outputs": [1.0]})
    client(server).predict("m", "s", {"x": np.array([np.nan, np.inf, -np.inf], np.float32)})
    assert b'"inputs": {"x": [NaN, Infinity, -Infinity]}' in server.asked[0][2]


def test_a_single_output_comes_without_its_name(server):
    will_answer(server, 200, {"outputs": [[0.25], [0.75]]})
    answer = client(server).predict("m", "s", {"x": [b"a", b"\xff"]})
    assert answer[""].tolist() == [[0.25], [0.75]]
    assert json.loads(server.asked[0][2])["inputs"] == {"x": [{"b64": "YQ=="}, {"b64": "/w=="}]}


def test_states_are_read_by_version(server):
    status = {"error_code": "OK", "error_message": ""}
    states = [
        {"version": "2", "state": "AVAILABLE", "status": status},
        {"version": "1", "state": "END", "status": status},
    ]
    will_answer(server, 200, {"model_version_status": states})
    assert client(server).states("m") == {2: "AVAILABLE", 1: "END"}


def test_an_error_status_is_named_with_the_servers_own_words(server):
    will_answer(server, 503, {"error": "the queue is full"})
    with pytest.raises(ServerError, match="the queue is full") as raised:
        client(server).states("m")
    assert raised.value.kind == "HTTP 503"


def test_an_answer_that_is_no_json_is_an_error(server):
    will_answer(server, 200, b"<html>")
    with pytest.raises(ServerError) as raised:
        client(server).states("m")
    assert raised.value.kind == "no JSON"


def test_the_metrics_page_comes_as_text(server):
    will_answer(server, 200, b"# TYPE a counter\na 1\n")
    assert client(server).metrics("/metrics") == "# TYPE a counter\na 1\n"
    assert server.asked[0][:2] == ("GET", "/metrics")


@contextlib.contextmanager
def listening_in_silence():
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_a_server_that_does_not_answer_in_time_is_a_timeout():
    with listening_in_silence() as port, pytest.raises(ServerError, match="no answer in") as raised:
        RestClient(f"http://127.0.0.1:{port}", timeout_s=0.05).states("m")
    assert raised.value.kind == "timeout"


def test_a_server_that_is_not_there_is_no_connection():
    with pytest.raises(ServerError) as raised:
        RestClient(f"http://127.0.0.1:{free_port()}").states("m")
    assert raised.value.kind == "no connection"


def test_a_proxy_of_the_environment_is_not_asked(server, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    will_answer(server, 200, b"page")
    assert client(server).metrics("/") == "page"


def test_grpc_errors_are_named_by_their_code():
    client = GrpcClient(f"127.0.0.1:{free_port()}", timeout_s=5)
    try:
        with pytest.raises(ServerError) as raised:
            client.predict("m", "s", {"x": np.zeros(1, np.float32)})
    finally:
        client.close()
    assert raised.value.kind == "UNAVAILABLE"


@pytest.fixture
def grpc_port():
    """A gRPC server that gives back the inputs of a Predict request as outputs."""

    def predict(request, _):
        answer = protos.PredictResponse()
        answer.outputs["x"].CopyFrom(request.inputs["x"])
        return answer

    echo = grpc.unary_unary_rpc_method_handler(
        predict, protos.PredictRequest.FromString, protos.PredictResponse.SerializeToString
    )
    service, method = PREDICT.strip("/").split("/")
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: echo})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


def test_a_grpc_message_may_have_any_size(grpc_port):
    values = np.zeros(5 << 20, np.uint8)
    client = GrpcClient(f"127.0.0.1:{grpc_port}")
    try:
        assert client.predict("m", "s", {"x": values})["x"].size == values.size
    finally:
        client.close()


def test_an_answer_whose_connection_ends_in_the_middle_is_told_apart_from_no_answer():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def half() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it")

        answering = threading.Thread(target=half)
        answering.start()
        with pytest.raises(ServerError) as raised:
            RestClient(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=5).metrics("/metrics")
        answering.join()
    assert raised.value.kind == "cut off"
