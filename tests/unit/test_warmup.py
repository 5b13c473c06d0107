"""What the warmup says of the first request, and of requests that fail."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from launchpad import exported
from launchpad.client import ServerError
from launchpad.errors import EnvironmentFault, GateFailed
from launchpad.examples import Examples
from launchpad.layout import Layout
from launchpad.warmup.stage import Warmed, _outcome, _warm

PIXELS = np.arange(6, dtype=np.float32).reshape(3, 2)
EXAMPLES = Examples({"s": {"x": PIXELS}}, {"s": {"y": PIXELS * 2}}, None)
WARM = Warmed("tiny", "s", "REST", 50, {}, first_ms=2.0, steady_ms=1.0)


class Doubling:
    """A client whose server doubles what it is sent; `faults` are raised or returned instead, in turn."""

    def __init__(self, name: str = "y", faults: tuple[object, ...] = ()) -> None:
        self.name, self.faults = name, list(faults)

    def predict(self, model, signature, inputs):
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Exception):
            raise fault
        return {self.name: inputs["x"] * 2 if fault is None else fault}


def warm(client: Doubling, count: int = 6) -> Warmed:
    return _warm("REST", client, "tiny", "s", EXAMPLES, count)


@pytest.mark.parametrize("name", ["y", ""])
def test_right_answers_are_timed(name):
    result = warm(Doubling(name))
    assert (result.requests, result.failures) == (6, {})
    assert result.first_ms > 0 and result.steady_ms > 0


def test_failures_are_counted_by_kind_and_do_not_stop_the_warmup():
    faults = (ServerError("HTTP 503", "full"), PIXELS[:1] + 1, ServerError("HTTP 503", "full"))
    result = warm(Doubling(faults=faults))
    assert result.failures == {"HTTP 503": 2, "wrong answer": 1}
    assert result.first_ms is None
    assert result.met_cold_server is None
    assert _outcome([result]).status == "done"
    assert _outcome([result]).detail == "6 requests, 3 failed; no first request met a cold server"


def test_a_signature_that_answers_nothing_fails_the_stage():
    result = warm(Doubling(faults=(ServerError("timeout", ""),) * 6))
    with pytest.raises(GateFailed, match=r"tiny s over REST: every request failed: \{'timeout': 6\}"):
        _outcome([WARM, result])


@pytest.mark.parametrize(
    ("first_ms", "steady_ms", "cold"),
    [(500.0, 2.0, True), (4.9, 1.0, False), (15.0, 1.0, False), (100.0, 50.0, False), (None, 1.0, None)],
)
def test_a_server_was_cold_when_its_first_answer_took_much_longer_than_the_steady_ones(first_ms, steady_ms, cold):
    assert dataclasses.replace(WARM, first_ms=first_ms, steady_ms=steady_ms).met_cold_server is cold


def test_a_cold_server_is_named():
    cold = dataclasses.replace(WARM, first_ms=900.0)
    assert _outcome([WARM, cold]).detail == "100 requests, 0 failed; the first client met a cold server: tiny s REST"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_examples_that_are_not_whole_are_told_with_what_to_do(tmp_path, content):
    path = Layout(tmp_path).examples("tiny", 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(EnvironmentFault, match="the examples of tiny are not whole") as raised:
        exported.examples(Layout(tmp_path), "tiny", 1)
    assert raised.value.problems[0].fix == "run `invoke export`"
