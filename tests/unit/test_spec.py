"""The rules that the declaration's objects keep by themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from launchpad.spec import (
    Batching,
    BatchQueue,
    Bounds,
    ClosedLoop,
    Model,
    OpenLoop,
    Pipeline,
    Step,
    Traffic,
    VersionPolicy,
)


def pipeline(**parts) -> Pipeline:
    return Pipeline.model_validate({"name": "tiny", "models": {"tiny": {"source": "model.py:build"}}} | parts)


def contradictions(**parts) -> list[str]:
    return [f"{'.'.join(map(str, path))}: {message}" for path, message in pipeline(**parts).contradictions()]


def test_objects_cannot_be_changed_after_reading():
    with pytest.raises(ValidationError, match="frozen"):
        pipeline().name = "other"


@pytest.mark.parametrize(
    ("source", "kind"),
    [("a/b.py:f", "function"), ("a/b.keras", "keras"), ("a/b", "saved_model"), ("models/x/1", "saved_model")],
)
def test_the_kind_of_a_source_follows_from_how_it_is_written(source, kind):
    assert Model(source=source).source_kind == kind


def test_a_step_without_settings_may_be_given_by_name():
    assert Step.model_validate("decode_base64") == Step.model_validate({"decode_base64": {}})


@pytest.mark.parametrize("value", [{}, {"normalize": {}, "decode_base64": {}}])
def test_a_step_has_exactly_one_key(value):
    with pytest.raises(ValidationError, match="exactly one of: decode_base64, parse_tensor"):
        Step.model_validate(value)


@pytest.mark.parametrize("value", [{}, {"latest": 1, "all": True}])
def test_a_version_policy_has_exactly_one_key(value):
    with pytest.raises(ValidationError, match="exactly one of: latest, specific, all"):
        VersionPolicy.model_validate(value)


@pytest.mark.parametrize("sizes", [(4, 2, 8), (2, 2, 8), (2, 4), (2, 16)])
def test_allowed_batch_sizes_increase_and_end_with_the_largest_batch(sizes):
    with pytest.raises(ValidationError, match="must increase and end with 8"):
        BatchQueue(max_batch_size=8, allowed_batch_sizes=sizes)


def test_with_splitting_allowed_batch_sizes_end_with_the_largest_batch_that_is_run():
    parts = {"max_batch_size": 32, "enable_large_batch_splitting": True, "max_execution_batch_size": 8}
    assert BatchQueue(**parts, allowed_batch_sizes=(4, 8)).batch_sizes == (4, 8)
    with pytest.raises(ValidationError, match="end with 8"):
        BatchQueue(**parts, allowed_batch_sizes=(4, 32))


def test_an_execution_size_needs_splitting_and_fits_the_batch():
    with pytest.raises(ValidationError, match="needs enable_large_batch_splitting"):
        BatchQueue(max_batch_size=8, max_execution_batch_size=4)
    with pytest.raises(ValidationError, match="must not exceed max_batch_size"):
        BatchQueue(max_batch_size=8, max_execution_batch_size=16, enable_large_batch_splitting=True)


@given(st.integers(1, 300))
def test_without_allowed_sizes_a_batch_may_have_any_size_up_to_the_largest(largest):
    sizes = BatchQueue(max_batch_size=largest).batch_sizes
    assert sizes == tuple(range(1, largest + 1))


@pytest.mark.parametrize("off", ["off", False])
def test_batching_off_is_understood_as_yaml_1_1_reads_it(off):
    assert pipeline(serving={"batching": off}).serving.batching == "off"


def test_batching_parameters_are_an_object_and_words_stay_words():
    assert isinstance(
        pipeline(serving={"batching": {"max_batch_size": 4, "num_batch_threads": 1}}).serving.batching, Batching
    )
    assert pipeline(serving={"batching": "tuned"}).serving.batching == "tuned"
    with pytest.raises(ValidationError, match="off"):
        pipeline(serving={"batching": "on"})


def test_a_profile_that_is_not_declared_is_a_contradiction():
    profiles = {"profile": "fast", "profiles": {"steady": {"users": 1, "duration_s": 1}}}
    assert contradictions(loadtest=profiles, release={"profile": "slow"}) == [
        "loadtest.profile: there is no profile 'fast'; declared: steady",
        "release.profile: there is no profile 'slow'; declared: steady",
    ]


def test_a_models_own_batching_needs_the_servers():
    models = {"tiny": {"source": "m.py:f", "batching": {"max_batch_size": 4}}}
    assert contradictions(models=models) == [
        "models.tiny.batching: needs serving.batching, which sets the batch threads"
    ]


@pytest.mark.parametrize(
    ("parts", "place"),
    [({"preprocessing": ("decode_base64",)}, "preprocessing"), ({"signatures": {"a": {"input": {}}}}, "signatures")],
)
def test_a_saved_model_takes_no_preprocessing(parts, place):
    (found,) = contradictions(models={"tiny": {"source": "some/folder", **parts}})
    assert found.startswith(f"models.tiny.{place}: a SavedModel keeps its own signatures")


def test_a_server_without_any_port_is_a_contradiction():
    assert contradictions(serving={"ports": {"rest": 0, "grpc": 0}})[0].startswith("serving.ports: REST and gRPC")


def test_rest_and_grpc_on_one_port_is_a_contradiction():
    assert "need a port each" in contradictions(serving={"ports": {"rest": 8500, "grpc": 8500}})[0]


def test_traffic_that_is_not_declared_goes_to_the_first_signature_of_every_model():
    models = {"a": {"source": "m.py:f"}, "b": {"source": "m.py:f", "signatures": {"bytes": {}, "image": {}}}}
    declared = pipeline(models=models)
    assert [(line.model, line.signature) for line in declared.traffic(ClosedLoop(users=1, duration_s=1))] == [
        ("a", "serving_default"),
        ("b", "bytes"),
    ]


def test_a_line_of_traffic_is_named_by_model_signature_protocol_and_batch():
    assert Traffic(model="m", signature="s").line == "m s"
    assert Traffic(model="m", signature="s", batch=8).line == "m s x8"
    assert Traffic(model="m", signature="s", protocol="grpc").line == "m s grpc"
    assert Traffic(model="m", signature="s", protocol="rest_columns", batch=2).line == "m s rest_columns x2"


def profile(**parts):
    return pipeline(loadtest={"profile": "p", "profiles": {"p": {"duration_s": 1, **parts}}}).loadtest.profiles["p"]


def test_a_profile_is_a_closed_loop_of_users_unless_it_says_open():
    assert isinstance(profile(users=3), ClosedLoop)
    assert profile(loop="open", rate_rps=50) == OpenLoop(loop="open", rate_rps=50, duration_s=1)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"loop": "both", "users": 1}, "'closed' or 'open'"),
        ({"loop": "open", "users": 1}, "rate_rps"),
        ({"loop": "open", "rate_rps": 0}, "greater than 0"),
        ({"users": 1, "rate_rps": 5}, "rate_rps"),
        ({"users": 1, "think_time_ms": -1}, "think_time_ms"),
        ({"users": 1, "shape": {"kind": "ramp", "low": 1, "high": 1}}, "low must be less than high"),
        ({"users": 1, "shape": {"kind": "steps", "steps": 1}}, "steps"),
        ({"users": 1, "shape": {"kind": "zigzag"}}, "kind"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(parts, message):
    with pytest.raises(ValidationError, match=message):
        profile(**parts)


def test_a_profile_s_title_names_its_loop():
    assert profile(users=3).title == "3 users in a closed loop"
    assert profile(loop="open", rate_rps=50).title == "50 requests/s in an open loop, poisson arrivals"
    assert "replayed" in profile(loop="open", rate_rps=50, arrivals="trace.txt").title


SERVED = {"batching": {"max_batch_size": 8, "num_batch_threads": 2}}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"autotune": {}, "serving": SERVED}, "autotune: needs a latency to hold"),
        ({"autotune": {"p99_ms": 50}}, "autotune: needs serving.batching"),
        (
            {"autotune": {"p99_ms": 50, "models": ("tiny", "other")}, "serving": SERVED},
            "autotune.models.1: there is no",
        ),
        (
            {"autotune": {"p99_ms": 50}, "serving": SERVED | {"monitoring": {"enabled": False}}},
            "needs the metrics page",
        ),
    ],
)
def test_an_autotuner_without_what_it_needs_is_a_contradiction(parts, message):
    (found,) = contradictions(**parts)
    assert message in found


def test_bounds_that_allow_nothing_are_refused():
    with pytest.raises(ValidationError, match="min must not exceed max"):
        Bounds.model_validate({"max_batch_size": {"min": 9, "max": 8}})
    with pytest.raises(ValidationError, match="at least 1"):
        Bounds.model_validate({"max_batch_size": {"min": 0, "max": 8}})


def test_what_a_cluster_cannot_give_is_a_contradiction():
    assert contradictions(
        kubernetes={"replicas": {"min": 1}, "sysctls": True, "canary": {"image": "registry/name:tag"}},
    ) == [
        "kubernetes.sysctls: serving.container.sysctls names none",
        "kubernetes.canary.image: name the image by digest, such as registry/name@sha256:...",
        "kubernetes.replicas.min: one replica cannot survive the loss of a zone (kubernetes.zones is 3)",
    ]


@pytest.mark.parametrize(("image", "reads"), [("2.6.2", True), ("2.7.0", False), ("2.20.0-gpu", False), ("own", True)])
def test_s3_is_refused_where_the_servers_image_cannot_read_it(image, reads):
    store = {"source": "bucket", "bucket": "s3://models/digits"}
    found = contradictions(serving={"image": f"tensorflow/serving:{image}"}, kubernetes={"models": store})
    assert bool(found) is not reads


@pytest.mark.parametrize(
    "value", [{"replicas": {"min": 5, "max": 4}}, {"demand": {"usual_rps": 2.0, "peak_rps": 1.0}}, {"drain_s": 0}]
)
def test_a_kubernetes_section_that_cannot_be_is_refused(value):
    with pytest.raises(ValidationError):
        pipeline(kubernetes=value)
