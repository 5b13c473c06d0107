"""The requests of a load test: real examples, and a judge of the answers."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from launchpad.errors import EnvironmentFault
from launchpad.examples import Examples
from launchpad.layout import Layout
from launchpad.loadtest.traffic import REQUESTS, lines

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
    return lines(declare(TEXT), "p")


def test_each_declared_line_has_its_name_path_weight_and_requests(made):
    assert [(line.name, line.path, line.weight) for line in made] == [
        ("tiny serving_default", "/v1/models/tiny:predict", 3),
        ("tiny bytes x2", "/v1/models/tiny:predict", 1),
        ("tiny two", "/v1/models/tiny:predict", 1),
    ]
    assert {len(line.requests) for line in made} == {REQUESTS}


def test_requests_send_the_examples_in_turn(made):
    sent = [json.loads(request.body) for request in made[0].requests[:4]]
    assert [body["signature_name"] for body in sent] == ["serving_default"] * 4
    assert [body["instances"] for body in sent] == [PIXELS[[row]].tolist() for row in (0, 1, 2, 0)]


def test_strings_are_sent_as_b64_objects_and_batches_hold_as_many_examples_as_declared(made):
    sent = [json.loads(request.body)["instances"] for request in made[1].requests[:2]]
    decoded = [[base64.b64decode(instance["b64"]) for instance in instances] for instances in sent]
    assert decoded == [[b"one", b"two"], [b"three", b"one"]]


def test_several_inputs_are_sent_by_name(made):
    (instance,) = json.loads(made[2].requests[1].body)["instances"]
    assert instance == {"a": PIXELS[1].tolist(), "b": {"b64": base64.b64encode(b"y").decode()}}


def answer(predictions) -> bytes:
    return json.dumps({"predictions": predictions}).encode()


def test_the_exporters_answer_is_right(made):
    assert made[0].requests[0].is_right(answer(SCORES[[0]].tolist()))
    assert made[1].requests[0].is_right(answer(SCORES[[0, 1]].tolist()))
    assert made[2].requests[0].is_right(answer([{"scores": SCORES[0].tolist(), "best": 0}]))


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
        lines(declare(TEXT), "p")
    assert raised.value.problems[0].fix == "run `invoke export`"
