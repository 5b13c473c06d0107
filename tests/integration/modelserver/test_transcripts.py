"""What a real TensorFlow Serving answered is what the embedded server answers."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from prometheus_client.parser import text_string_to_metric_families

from launchpad.modelserver import protos

from .conftest import FIXTURES, Server, call

_TYPES = {
    "Predict": ("PredictionService", protos.PredictRequest, protos.PredictResponse),
    "Classify": ("PredictionService", protos.ClassificationRequest, protos.ClassificationResponse),
    "Regress": ("PredictionService", protos.RegressionRequest, protos.RegressionResponse),
    "MultiInference": ("PredictionService", protos.MultiInferenceRequest, protos.MultiInferenceResponse),
    "GetModelMetadata": ("PredictionService", protos.GetModelMetadataRequest, protos.GetModelMetadataResponse),
    "GetModelStatus": ("ModelService", protos.GetModelStatusRequest, protos.GetModelStatusResponse),
}


def _transcripts(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FIXTURES / name).read_text().splitlines()]


def _canonical(text: str) -> Any:
    """The JSON value (NaN comparable), or the text where it is none."""
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except ValueError:
        return text


@pytest.mark.parametrize("seen", _transcripts("rest_transcripts.jsonl"), ids=lambda t: f"{t['method']} {t['path']}")
def test_a_rest_request_is_answered_as_by_the_real_server(probe: Server, seen: dict[str, Any]) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{probe.rest_port}{seen['path']}",
        None if seen["body"] is None else seen["body"].encode(),
        method=seen["method"],
    )
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        response = error
    body = response.read().decode("utf-8", "replace")

    assert response.status == seen["status"], body
    assert response.headers["Content-Type"] == seen["content_type"]
    assert _canonical(body) == _canonical(seen["response"])


@pytest.mark.parametrize("seen", _transcripts("grpc_transcripts.jsonl"), ids=lambda t: t["rpc"])
def test_a_grpc_call_is_answered_as_by_the_real_server(probe: Server, seen: dict[str, Any]) -> None:
    service, request_type, response_type = _TYPES[seen["rpc"]]
    request = json_format.ParseDict(seen["request"], request_type())
    try:
        with probe.channel() as channel:
            response = call(channel, f"{service}/{seen['rpc']}", request, response_type)
        answer = ("OK", "", json_format.MessageToDict(response, preserving_proto_field_name=True))
    except grpc.RpcError as error:
        answer = (error.code().name, error.details(), None)

    assert answer == (seen["code"], seen["details"], seen["response"])


def test_the_metrics_page_has_the_names_labels_and_buckets_of_the_real_one(probe: Server) -> None:
    probe.rest("/v1/models/probe:predict", {"instances": [1.0]})
    with probe.channel() as channel:
        for rpc in ("Predict", "Classify", "Regress", "MultiInference"):
            seen = next(t for t in _transcripts("grpc_transcripts.jsonl") if t["rpc"] == rpc and t["code"] == "OK")
            service, request_type, response_type = _TYPES[rpc]
            call(channel, f"{service}/{rpc}", json_format.ParseDict(seen["request"], request_type()), response_type)
    _, page = probe.rest("/monitoring/prometheus/metrics")

    ours, theirs = _series(page), _series((FIXTURES / "metrics.prom").read_text())
    ours_types, their_types = _types(page), _types((FIXTURES / "metrics.prom").read_text())
    served = {name for name in their_types if name.startswith(":tensorflow:serving:")}
    unknown_here = {":tensorflow:serving:mlmd_map", ":tensorflow:serving:request_log_count"}
    assert {name: ours_types[name] for name in served - unknown_here} == {
        name: their_types[name] for name in served - unknown_here
    }
    for name in (":tensorflow:serving:request_latency", ":tensorflow:serving:runtime_latency"):
        assert ours[name] >= {series for series in theirs[name] if _is_grpc_or_runtime(series)}
    assert ours[":tensorflow:serving:request_example_counts"] == theirs[":tensorflow:serving:request_example_counts"]


def _is_grpc_or_runtime(series: tuple[str, frozenset[tuple[str, str]]]) -> bool:
    labels = dict(series[1])
    return labels.get("entrypoint", "GRPC") == "GRPC" and labels.get("API") in ("Predict", "Classify", "Regress")


def _types(page: str) -> dict[str, str]:
    return {line.split()[2]: line.split()[3] for line in page.splitlines() if line.startswith("# TYPE")}


def _series(page: str) -> dict[str, set[tuple[str, frozenset[tuple[str, str]]]]]:
    return {
        family.name: {(sample.name, frozenset(sample.labels.items())) for sample in family.samples}
        for family in text_string_to_metric_families(page)
    }
