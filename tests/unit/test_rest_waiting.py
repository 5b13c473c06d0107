"""Requests that wait for a request thread of the embedded server."""

from __future__ import annotations

from typing import Any

import pytest

from launchpad.modelserver.http import Response
from launchpad.modelserver.metrics import Metrics
from launchpad.modelserver.rest import RestApi

THREADS, REQUESTS = 4, 3000


@pytest.fixture
def api() -> RestApi:
    nothing: Any = None
    return RestApi(nothing, nothing, Metrics(batching=False), threads=1000, timeout_ms=0, cors=False, metrics_path=None)


def test_any_number_of_short_runs_may_wait_for_a_long_one(api):
    """Each gives its thread to the next; that must not pile up calls until the interpreter refuses more."""
    api._free = THREADS
    held, answers = [], []

    def predict(route, body, deadline, answer) -> None:
        held.append(answer) if len(held) < THREADS else answer(b"short")

    api._methods["predict"] = predict
    for _ in range(REQUESTS):
        api.handle("POST", "/v1/models/digits:predict", b"{}", answers.append)
    assert not answers

    held[0](b"long")

    assert len(answers) == REQUESTS - THREADS + 1
    assert {answer.status for answer in answers if isinstance(answer, Response)} == {200}
    assert api._free == 1
