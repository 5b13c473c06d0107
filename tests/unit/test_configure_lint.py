"""Each rule of the lint speaks up for its fault, and keeps silent without it."""

from __future__ import annotations

import pytest

from launchpad.batching import effective
from launchpad.configure.lint import lint
from launchpad.configure.stage import warnings
from launchpad.files import write_json
from launchpad.stage import Context

SOUND = """\
name: tiny
models:
  tiny:
    source: m.py:f{own}
serving:
  image: {image}
  backend: {backend}
  ports: {{rest: {rest}, grpc: {grpc}}}
  batching: {{max_batch_size: 8, num_batch_threads: 1, max_enqueued_batches: {enqueued}, batch_timeout_micros: {wait}}}
  flags: {{rest_api_num_threads: {rest_threads}, grpc_max_threads: {grpc_threads}{flags}}}
  monitoring: {{enabled: {monitoring}}}
loadtest: {{profile: p, profiles: {{p: {{users: 16, duration_s: 1}}, q: {{users: 32, duration_s: 1}}}}}}
objectives: {{p99_ms: 100}}
"""
VALUES = {
    "own": "",
    "image": "tensorflow/serving:2.20.0",
    "backend": "auto",
    "rest": 8501,
    "grpc": 8500,
    "enqueued": 64,
    "wait": 500,
    "rest_threads": 32,
    "grpc_threads": 32,
    "flags": "",
    "monitoring": "true",
}


def found(declare, exporters=None, **changes) -> list[str]:
    declared = declare(SOUND.format(**VALUES | changes))
    return [".".join(w.key) for w in lint(declared.pipeline, effective(declared), exporters or {})]


def test_a_sound_declaration_gives_no_warning(declare):
    assert found(declare, {"tiny": "2.20.1"}) == []


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rest_threads": 31}, "serving.flags.rest_api_num_threads"),
        ({"grpc_threads": 31}, "serving.flags.grpc_max_threads"),
        (
            {"flags": ", tensorflow_session_parallelism: 2, tensorflow_inter_op_parallelism: 2"},
            "serving.flags.tensorflow_session_parallelism",
        ),
        ({"enqueued": 10_000}, "serving.batching.max_enqueued_batches"),
        ({"wait": 100_000}, "serving.batching.batch_timeout_micros"),
        (
            {"own": "\n    batching: {max_batch_size: 4, max_enqueued_batches: 1000000}"},
            "models.tiny.batching.max_enqueued_batches",
        ),
        (
            {"own": "\n    batching: {max_batch_size: 4, batch_timeout_micros: 200000}"},
            "models.tiny.batching.batch_timeout_micros",
        ),
        ({"image": "tensorflow/serving"}, "serving.image"),
        ({"image": "tensorflow/serving:latest"}, "serving.image"),
        ({"image": "tensorflow/serving:latest-gpu"}, "serving.image"),
        ({"image": "localhost:5000/tensorflow/serving"}, "serving.image"),
        ({"rest": 0}, "serving.monitoring"),
        (
            {"backend": "embedded", "flags": ", prefer_tflite_model: true"},
            "serving.flags.prefer_tflite_model",
        ),
    ],
)
def test_a_fault_is_found_at_its_key(declare, changes, key):
    assert found(declare, **changes) == [key]


@pytest.mark.parametrize(
    "changes",
    [
        {"enqueued": 9_999},
        {"wait": 99_999},
        {"rest": 0, "rest_threads": 1, "monitoring": "false"},
        {"grpc": 0, "grpc_threads": 1},
        {"own": "\n    batching: off", "enqueued": 10_000},
        {"image": "tensorflow/serving@sha256:" + "0" * 64},
        {"image": "localhost:5000/tensorflow/serving:2.20.0"},
        {"flags": ", prefer_tflite_model: true"},
        {"flags": ", tensorflow_session_parallelism: 2"},
        {"flags": ", tensorflow_intra_op_parallelism: 2, tensorflow_inter_op_parallelism: 2"},
        {"backend": "embedded", "flags": ", enable_grpc_healthcheck_service: true"},
    ],
)
def test_what_is_sound_is_left_alone(declare, changes):
    assert found(declare, **changes) == []


def test_all_three_flags_of_parallelism_are_said_to_fail_the_start(declare):
    flags = "".join(f", tensorflow_{kind}_parallelism: 2" for kind in ("session", "intra_op", "inter_op"))
    declared = declare(SOUND.format(**VALUES | {"flags": flags}))
    (finding,) = lint(declared.pipeline, effective(declared), {})
    assert finding.what.endswith(": the server does not start")


@pytest.mark.parametrize(
    "image", ["tensorflow/serving:2.20.0", "tensorflow/serving:2.20.0-gpu", "host:5000/serving:2.20"]
)
@pytest.mark.parametrize(
    ("exporter", "newer"), [("2.21.0", True), ("3.0.0", True), ("2.20.5", False), ("2.9.0", False), ("nightly", False)]
)
def test_an_exporter_must_not_be_newer_than_the_server(declare, image, exporter, newer):
    assert found(declare, {"tiny": exporter}, image=image) == (["serving.image"] if newer else [])


def test_the_stage_reads_the_exporter_from_the_manifest_and_gives_the_line(declare, tmp_path):
    context = Context(declare(SOUND.format(**VALUES)))
    write_json(tmp_path / "models/tiny/evidence/1/manifest.json", {"tensorflow": "2.21.0"})
    (problem,) = warnings(context)
    assert problem.where == "pipeline.yaml:6"
    assert problem.what.startswith("tiny was exported with TensorFlow 2.21.0, newer than the server image")
