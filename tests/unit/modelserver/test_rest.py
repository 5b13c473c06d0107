"""Paths of the REST API, and what is answered where one does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from launchpad.modelserver.http import Response
from launchpad.modelserver.manager import ManagerOptions, ModelManager
from launchpad.modelserver.metrics import Metrics
from launchpad.modelserver.rest import RestApi


@pytest.fixture
def api() -> RestApi:
    """An API that has no model."""
    nothing: Any = None
    manager = ModelManager(nothing, ManagerOptions())
    metrics = Metrics(batching=False)
    return RestApi(manager, nothing, metrics, threads=1, timeout_ms=0, cors=False, metrics_path="/metrics")


def _ask(api: RestApi, method: str, path: str) -> Response:
    answers: list[Response] = []
    api.handle(method, path, b"", answers.append)
    (answer,) = answers
    return answer


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("POST", "/v1/models/m:predict?x=1", 400, "Malformed request: POST /v1/models/m:predict?x=1"),
        ("GET", "/v1/models/m?x=1", 404, "Could not find any versions of model m?x=1"),
        ("GET", "/v1/models/m/metadata?x=1", 400, "Malformed request: GET /v1/models/m/metadata?x=1"),
    ],
)
def test_a_query_belongs_to_the_path(api: RestApi, method: str, path: str, status: int, error: str) -> None:
    answer = _ask(api, method, path)
    assert (answer.status, answer.content_type) == (status, "application/json")
    assert answer.body.decode() == f'{{\n    "error": "{error}"\n}}'


def test_the_metrics_page_takes_no_query(api: RestApi) -> None:
    answer = _ask(api, "GET", "/metrics?x=1")
    assert (answer.status, answer.content_type) == (400, "text/plain")
    assert answer.body == b"Unexpected path: /metrics?x=1. Should be /metrics"
    assert _ask(api, "GET", "/metricsx").status == 404


@pytest.mark.parametrize(("method", "suffix"), [("GET", ""), ("GET", "/metadata"), ("POST", ":predict")])
def test_a_version_that_is_too_large_is_refused_without_a_word(api: RestApi, method: str, suffix: str) -> None:
    answer = _ask(api, method, f"/v1/models/m/versions/{1 << 63}{suffix}")
    assert (answer.status, answer.content_type, answer.body) == (400, "application/json", b"")
    assert api._metrics.request_count.value("m", "INVALID_ARGUMENT") == 1


def test_only_small_letters_name_what_is_asked_of_a_model(api: RestApi) -> None:
    """Other letters match the path: they then ask for the status, or for nothing that there is."""
    assert b"Could not find any versions of model m" in _ask(api, "GET", "/v1/models/m/METADATA").body
    assert b"Servable not found for request: Latest(m)" in _ask(api, "GET", "/v1/models/m/metadata").body
    assert b"Malformed request: POST /v1/models/m:PREDICT" in _ask(api, "POST", "/v1/models/m:PREDICT").body
    assert api._metrics.request_count.value("m", "INVALID_ARGUMENT") == 1
