"""The requests of a load test: real examples, and a judge of the answers."""

from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest

from launchpad.errors import EnvironmentFault
from launchpad.examples import Examples
from launchpad.layout import Layout
from launchpad.loadtest.traffic import MAX_KNOWN, REQUESTS, lines
from launchpad.modelserver import protos

TEXT = """\
name: tiny
models:
  tiny:
    source: m.py:f
    signatures: {serving_default: {}, bytes: {}, two: {}}
loadtest:
  profile: p
  profiles:
    p:
      users: 1
      duration_s: 1
      traffic:
        - {model: tiny, weight: 3}
        - {model: tiny, signature: bytes, batch: 2}
        - {model: tiny, signature: two}
        - {model: tiny, signature: two, protocol: rest_columns, batch: 2}
        - {model: tiny, protocol: grpc, batch: 2}
        - {model: tiny, signature: bytes, protocol: grpc}
serving: {ports: {rest: 8123, grpc: 8124}}
"""
PIXELS = np.arange(12, dtype=np.float32).reshape(3, 4)
SCORES = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], np.float32)
EXAMPLES = Examples(
    inputs={
        "serving_default": {"pixels": PIXELS},
        "bytes": {"raw": [b"one", b"two", b"three"]},
        "two": {"a": PIXELS, "b": [b"x", b"y", b"z"]},
    },
    outputs={
        "serving_default": {"scores": SCORES},
        "bytes": {"scores": SCORES},
        "two": {"scores": SCORES, "best": np.array([0, 1, 0])},
    },
    labels=None,
)


@pytest.fixture
def made(declare, tmp_path):
    path = Layout(tmp_path).evidence("tiny", 1) / "examples.npz"
    path.parent.mkdir(parents=True)
    EXAMPLES.save(path)
    return declared_lines(declare(TEXT))


def declared_lines(declaration):
    return lines(declaration, declaration.pipeline.traffic(declaration.pipeline.loadtest.profiles["p"]))


def sent_body(request) -> dict:
    head, _, body = request.wire.partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"POST /v1/models/tiny:predict HTTP/1.1"
    assert b"Content-Length: %d" % len(body) in head.splitlines()
    return json.loads(body)


def sent_message(request) -> protos.PredictRequest:
    (size,) = struct.unpack_from(">I", request.wire)
    compressed, length = struct.unpack_from(">BI", request.wire, 4 + size)
    message = request.wire[4 + size + 5 :]
    assert (compressed, length) == (0, len(message))
    return protos.PredictRequest.FromString(message)


def test_each_declared_line_has_its_name_protocol_weight_and_requests(made):
    assert [(line.name, line.protocol, line.weight) for line in made] == [
        ("tiny serving_default", "rest", 3),
        ("tiny bytes x2", "rest", 1),
        ("tiny two", "rest", 1),
        ("tiny two rest_columns x2", "rest_columns", 1),
        ("tiny serving_default grpc x2", "grpc", 1),
        ("tiny bytes grpc", "grpc", 1),
    ]
    assert {len(line.requests) for line in made} == {REQUESTS}


def test_requests_send_the_examples_in_turn(made):
    sent = [sent_body(request) for request in made[0].requests[:4]]
    assert [body["signature_name"] for body in sent] == ["serving_default"] * 4
    assert [body["instances"] for body in sent] == [PIXELS[[row]].tolist() for row in (0, 1, 2, 0)]


def test_strings_are_sent_as_b64_objects_and_batches_hold_as_many_examples_as_declared(made):
    sent = [sent_body(request)["instances"] for request in made[1].requests[:2]]
    decoded = [[base64.b64decode(instance["b64"]) for instance in instances] for instances in sent]
    assert decoded == [[b"one", b"two"], [b"three", b"one"]]


def test_several_inputs_are_sent_by_name(made):
    (instance,) = sent_body(made[2].requests[1])["instances"]
    assert instance == {"a": PIXELS[1].tolist(), "b": {"b64": base64.b64encode(b"y").decode()}}


def test_columns_hold_each_input_as_one_batch(made):
    body = sent_body(made[3].requests[1])
    assert body["signature_name"] == "two"
    assert body["inputs"] == {
        "a": PIXELS[[2, 0]].tolist(),
        "b": [{"b64": base64.b64encode(value).decode()} for value in (b"z", b"x")],
    }


def test_numbers_that_json_has_not_are_sent_bare(declare, tmp_path):
    path = Layout(tmp_path).evidence("tiny", 1) / "examples.npz"
    path.parent.mkdir(parents=True)
    pixels = np.array([[np.nan, np.inf, -np.inf, 0.5]] * 3, np.float32)
    odd = {"serving_default": {"pixels": pixels}, "two": {"a": pixels, "b": [b"x", b"y", b"z"]}}
    Examples(EXAMPLES.inputs | odd, EXAMPLES.outputs, labels=None).save(path)
    made = declared_lines(declare(TEXT))
    assert b'"instances":[[NaN,Infinity,-Infinity,0.5]]' in made[0].requests[0].wire
    assert b'"a":[[NaN,Infinity,-Infinity,0.5]' in made[3].requests[0].wire
    assert b"null" not in made[0].requests[0].wire


def test_grpc_sends_numbers_as_tensor_content(made):
    message = sent_message(made[4].requests[0])
    assert (message.model_spec.name, message.model_spec.signature_name) == ("tiny", "serving_default")
    tensor = message.inputs["pixels"]
    assert tensor.tensor_content == PIXELS[:2].tobytes()
    assert [dim.size for dim in tensor.tensor_shape.dim] == [2, 4]


def test_grpc_sends_strings_as_they_are(made):
    tensor = sent_message(made[5].requests[2]).inputs["raw"]
    assert list(tensor.string_val) == [b"three"]
    assert [dim.size for dim in tensor.tensor_shape.dim] == [1]


def answer(predictions) -> bytes:
    return json.dumps({"predictions": predictions}).encode()


def test_the_exporters_answer_is_right(made):
    assert made[0].requests[0].is_right(answer(SCORES[[0]].tolist()))
    assert made[1].requests[0].is_right(answer(SCORES[[0, 1]].tolist()))
    assert made[2].requests[0].is_right(answer([{"scores": SCORES[0].tolist(), "best": 0}]))


def test_columns_are_judged_by_name_and_a_single_output_stands_bare(made):
    scores, best = SCORES[[0, 1]].tolist(), [0, 1]
    assert made[3].requests[0].is_right(json.dumps({"outputs": {"best": best, "scores": scores}}).encode())
    assert not made[3].requests[0].is_right(json.dumps({"outputs": {"best": [1, 0], "scores": scores}}).encode())
    assert not made[3].requests[0].is_right(answer(scores))


def predict_response(scores: np.ndarray) -> bytes:
    response = protos.PredictResponse()
    tensor = response.outputs["scores"]
    tensor.dtype, tensor.tensor_content = 1, scores.astype(np.float32).tobytes()
    for size in scores.shape:
        tensor.tensor_shape.dim.add(size=size)
    return response.SerializeToString()


def test_grpc_answers_are_judged_like_the_others(made):
    request = made[4].requests[0]
    assert request.is_right(predict_response(SCORES[:2]))
    assert not request.is_right(predict_response(SCORES[1:]))
    assert not request.is_right(predict_response(SCORES[:1]))
    assert not request.is_right(b"")
    assert not request.is_right(b"\xff\xff no message")


def test_answers_that_differ_by_rounding_only_are_right_and_a_known_one_never_makes_a_wrong_one_right(made):
    request = made[0].requests[0]
    for step in range(2 * MAX_KNOWN):
        assert request.is_right(answer((SCORES[[0]] + step * 1e-5).tolist()))
    assert not request.is_right(answer((SCORES[[0]] + 0.01).tolist()))


@pytest.mark.parametrize(
    "body",
    [
        answer([[0.1, 0.9]]),
        answer([[0.9, 0.1], [0.9, 0.1]]),
        answer([]),
        answer([[float("nan"), 0.1]]),
        answer([["0.9", "0.1"]]),
        answer([{"scores": [0.9, 0.1]}]),
        answer(None),
        b'{"error": "no"}',
        b'{"predictions": [[0.9, ',
        b"[]",
        b"",
    ],
)
def test_any_other_body_is_wrong(made, body):
    assert not made[0].requests[0].is_right(body)


def test_a_wrong_second_output_is_wrong(made):
    assert not made[2].requests[0].is_right(answer([{"scores": SCORES[0].tolist(), "best": 1}]))
    assert not made[2].requests[0].is_right(answer([{"scores": SCORES[0].tolist()}]))


def test_a_model_that_was_not_exported_is_named(declare):
    with pytest.raises(EnvironmentFault, match="tiny has no examples") as raised:
        declared_lines(declare(TEXT))
    assert raised.value.problems[0].fix == "run `invoke export`"
