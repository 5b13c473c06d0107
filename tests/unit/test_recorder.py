"""The recorder keeps what happened since it was last asked, by line of traffic, in a form that JSON carries."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launchpad.loadtest.latencies import unpacked
from launchpad.loadtest.recorder import Recorder

ONE, TWO = "one serving_default", "two bytes x8, odd/name"
MS = 1_000_000
NOTHING = {"answered": 0, "held": 0, "failures": [], "latencies": {}}


@pytest.fixture
def recorder() -> Recorder:
    return Recorder([ONE, TWO], open_loop=True)


def taken(recorder: Recorder, line: str = ONE) -> dict[str, Any]:
    """Return what was kept of a line as it arrives behind a pipe, its latencies in µs as lists."""
    part = json.loads(json.dumps(recorder.take()))[line]
    return part | {"latencies": {kind: unpacked(text).tolist() for kind, text in part["latencies"].items()}}


def test_in_an_open_loop_response_counts_from_due_service_from_sent_and_the_lag_lies_between(recorder):
    recorder.answered(ONE, due_ns=10 * MS, sent_ns=10 * MS + 200_000, ended_ns=11 * MS)
    assert taken(recorder)["latencies"] == {"response": [1000], "service": [800], "lag": [200]}


def test_in_a_closed_loop_there_is_one_latency():
    recorder = Recorder([ONE], open_loop=False)
    recorder.answered(ONE, due_ns=0, sent_ns=0, ended_ns=MS)
    assert taken(recorder)["latencies"] == {"response": [1000]}


def test_a_request_that_waited_for_a_connection_is_counted_and_has_no_send_lag(recorder):
    recorder.answered(ONE, due_ns=0, sent_ns=5 * MS, ended_ns=6 * MS, held=True)
    part = taken(recorder)
    assert (part["answered"], part["held"]) == (1, 1)
    assert part["latencies"] == {"response": [6000], "service": [1000]}


def test_failures_are_counted_by_kind_with_their_latencies_apart(recorder):
    recorder.answered(ONE, 0, 0, 1 * MS)
    recorder.failed(ONE, "HTTP 503", "full", 0, 2 * MS)
    recorder.failed(ONE, "HTTP 503", "full", 0, 2 * MS)
    recorder.failed(ONE, "wrong answer", "x" * 5000, 0, 3 * MS)
    part = taken(recorder)
    assert part["answered"] == 1
    assert sorted(part["failures"]) == [["HTTP 503", "full", 2], ["wrong answer", "x" * 200, 1]]
    assert (part["latencies"]["response"], part["latencies"]["failed"]) == ([1000], [2000, 2000, 3000])


def test_lines_are_kept_apart_and_every_line_is_there_even_without_a_request(recorder):
    recorder.answered(TWO, 0, 0, MS)
    lines = recorder.take()
    assert list(lines) == [ONE, TWO]
    assert lines[ONE] == NOTHING
    assert lines[TWO]["answered"] == 1


def test_what_was_taken_is_not_handed_over_again(recorder):
    recorder.answered(ONE, 0, 0, MS)
    recorder.failed(ONE, "timeout", "", 0, MS)
    recorder.take()
    assert recorder.take()[ONE] == NOTHING
