"""The rendered files say to TensorFlow Serving what the declaration says to us."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from launchpad import batching, flagfile, pbtxt
from launchpad.configure.render import BATCHING, FLAGS_FILE, MODEL_BATCHING, MODELS, MONITORING, render
from launchpad.configure.stage import Configure
from launchpad.declaration import load
from launchpad.errors import GateFailed
from launchpad.modelserver import flags, protos
from launchpad.spec import Batching, Pipeline
from launchpad.stage import Context


def parse(text: str, message):
    return text_format.Parse(text, message)


def pipeline(**parts) -> Pipeline:
    return Pipeline.model_validate({"name": "tiny", "models": {"tiny": {"source": "model.py:build"}}} | parts)


def render_alone(declared: Pipeline) -> dict[str, str]:
    """Render a pipeline whose models have no batching of their own."""
    server = declared.serving.batching if isinstance(declared.serving.batching, Batching) else None
    shared = server and batching.BatchQueue.model_validate(batching.queue_parameters(server))
    return render(declared, batching.Effective(server, dict.fromkeys(declared.models, shared)))


@st.composite
def server_batching(draw) -> Batching:
    largest = draw(st.integers(1, 512))
    splitting = draw(st.booleans())
    run = draw(st.none() | st.integers(1, largest)) if splitting else None
    smaller = draw(st.sets(st.integers(1, run or largest), max_size=4))
    allowed = draw(st.just(()) | st.just(tuple(sorted(smaller | {run or largest}))))
    return Batching(
        max_batch_size=largest,
        batch_timeout_micros=draw(st.integers(0, 10**7)),
        max_enqueued_batches=draw(st.integers(1, 10**6)),
        num_batch_threads=draw(st.integers(1, 256)),
        allowed_batch_sizes=allowed,
        enable_large_batch_splitting=splitting,
        max_execution_batch_size=run,
        pad_variable_length_inputs=draw(st.booleans()),
        thread_pool_name=draw(st.from_regex(r"[a-z_]{1,12}", fullmatch=True)),
    )


@given(server_batching())
def test_a_queues_own_parameters_survive_the_way_into_a_file_and_back(tmp_path_factory, declared):
    queue = batching.BatchQueue.model_validate(batching.queue_parameters(declared))
    path = tmp_path_factory.getbasetemp() / "batching_params.pbtxt"
    path.write_text(pbtxt.batching_parameters(queue))
    read = pbtxt.read_queue(path)
    assert (read.batch_sizes, read.max_batch_size) == (queue.batch_sizes, queue.max_batch_size)
    same = {"batch_timeout_micros", "max_enqueued_batches", "enable_large_batch_splitting", "execution_size"}
    assert all(getattr(read, name) == getattr(queue, name) for name in same)


def test_a_file_of_parameters_that_is_none_is_named_with_its_line(tmp_path):
    path = tmp_path / "batching_params.pbtxt"
    path.write_text("max_batch_size { value: 4 }\nbatch_timeout\n")
    with pytest.raises(ValueError, match=r"batching_params.pbtxt:2:"):
        pbtxt.read_queue(path)


@given(server_batching())
def test_batching_parameters_are_read_back_as_they_were_declared(declared):
    text = render_alone(pipeline(serving={"batching": declared}))[BATCHING]
    read = parse(text, protos.BatchingParameters())
    for name in ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"):
        assert read.HasField(name)
        assert getattr(read, name).value == getattr(declared, name)
    assert tuple(read.allowed_batch_sizes) == declared.allowed_batch_sizes
    assert read.thread_pool_name.value == declared.thread_pool_name
    assert read.pad_variable_length_inputs == declared.pad_variable_length_inputs
    assert read.enable_large_batch_splitting.value == declared.enable_large_batch_splitting
    if declared.enable_large_batch_splitting:
        assert read.max_execution_batch_size.value == declared.execution_size
    else:
        assert not read.HasField("max_execution_batch_size")


def test_models_are_read_back_with_their_policies_and_labels():
    declared = pipeline(
        models={
            "newest": {"source": "m.py:f"},
            "two": {"source": "m.py:f", "version_policy": {"latest": 2}},
            "some": {
                "source": "m.py:f",
                "version_policy": {"specific": (1, 3)},
                "version_labels": {"stable": 1, "canary": 3},
            },
            "all": {"source": "m.py:f", "version_policy": {"all": True}},
        }
    )
    read = parse(render_alone(declared)[MODELS], protos.ModelServerConfig()).model_config_list.config
    assert [(config.name, config.base_path, config.model_platform) for config in read] == [
        (name, f"/models/{name}", "tensorflow") for name in ("newest", "two", "some", "all")
    ]
    newest, two, some, every = (config.model_version_policy for config in read)
    assert newest.WhichOneof("policy_choice") is None
    assert two.latest.num_versions == 2
    assert list(some.specific.versions) == [1, 3]
    assert every.WhichOneof("policy_choice") == "all"
    assert dict(read[2].version_labels) == {"stable": 1, "canary": 3}


def options(texts: dict[str, str], tmp_path) -> flags.Options:
    path = tmp_path / FLAGS_FILE
    path.write_text(texts[FLAGS_FILE])
    return flags.parse(flagfile.read(path))


def test_the_flags_are_read_back_by_the_servers_own_parser(tmp_path):
    declared = pipeline(
        serving={
            "ports": {"rest": 9001, "grpc": 9000},
            "batching": {"max_batch_size": 4, "num_batch_threads": 1},
            "flags": {"grpc_max_threads": 48, "enable_model_warmup": False, "saved_model_tags": "serve"},
        }
    )
    read = options(render_alone(declared), tmp_path)
    assert (read.port, read.rest_api_port) == (9000, 9001)
    assert read.model_config_file == "/config/models.config"
    assert read.enable_batching
    assert read.batching_parameters_file == "/config/batching_parameters.pbtxt"
    assert read.monitoring_config_file == "/config/monitoring.config"
    assert (read.grpc_max_threads, read.enable_model_warmup, read.saved_model_tags) == (48, False, "serve")
    assert not read.enable_per_model_batching_parameters
    assert not read.allow_version_labels_for_unavailable_models


def test_a_server_whose_grpc_is_off_is_given_a_socket_without_which_it_refuses_to_start(tmp_path):
    off = {"ports": {"rest": 9001, "grpc": 0}}
    read = options(render_alone(pipeline(serving=off)), tmp_path)
    assert read.port == 0 and read.grpc_socket_path.startswith("/tmp/")

    declared = pipeline(serving={**off, "flags": {"grpc_socket_path": "/run/own.sock"}})
    assert options(render_alone(declared), tmp_path).grpc_socket_path == "/run/own.sock"
    assert not options(render_alone(pipeline()), tmp_path).grpc_socket_path


def test_without_batching_and_monitoring_there_are_neither_files_nor_flags(tmp_path):
    texts = render_alone(pipeline(serving={"batching": "off", "monitoring": {"enabled": False}}))
    assert set(texts) == {MODELS, FLAGS_FILE}
    read = options(texts, tmp_path)
    assert not read.enable_batching
    assert read.monitoring_config_file == ""


def test_labels_bring_the_flag_that_they_need_at_start_up(tmp_path):
    declared = pipeline(models={"tiny": {"source": "m.py:f", "version_labels": {"stable": 1}}})
    assert options(render_alone(declared), tmp_path).allow_version_labels_for_unavailable_models


def test_the_metrics_page_is_where_it_is_declared():
    text = render_alone(pipeline(serving={"monitoring": {"path": "/metrics"}}))[MONITORING]
    config = parse(text, protos.MonitoringConfig()).prometheus_config
    assert (config.enable, config.path) == (True, "/metrics")


MIXED = """\
name: tiny
models:
  plain: {source: m.py:f}
  own: {source: m.py:f, batching: {max_batch_size: 4}}
  none: {source: m.py:f, batching: off}
serving:
  batching: {max_batch_size: 16, num_batch_threads: 2}
"""


def test_models_that_differ_get_a_file_each_and_an_unbatched_one_gets_none(declare, tmp_path):
    declared = declare(MIXED)
    texts = render(declared.pipeline, batching.effective(declared))
    assert {name for name in texts if "/" in name} == {f"plain/{MODEL_BATCHING}", f"own/{MODEL_BATCHING}"}
    assert options(texts, tmp_path).enable_per_model_batching_parameters
    own = parse(texts[f"own/{MODEL_BATCHING}"], protos.BatchingParameters())
    assert own.max_batch_size.value == 4
    assert not own.HasField("num_batch_threads")
    assert "# models.own.batching.max_batch_size" in texts[f"own/{MODEL_BATCHING}"]
    assert "# serving.batching.max_batch_size" in texts[f"plain/{MODEL_BATCHING}"]


def test_every_value_says_which_key_it_is_from(declare):
    declared = declare(MIXED)
    for name, text in render(declared.pipeline, batching.effective(declared)).items():
        for line in text.splitlines()[1:]:
            settled = (
                line.strip() in ("model_config_list {", "config {", "prometheus_config {", "}")
                or "base_path" in line
                or "platform" in line
            )
            assert settled or "  # " in line, f"{name}: {line}"


def test_the_committed_configuration_is_what_the_declaration_gives(repository):
    assert Configure().check(Context(load(repository))).status == "up to date"


def test_check_shows_how_a_committed_file_differs(declare, tmp_path):
    context = Context(declare(MIXED))
    Configure().run(context)
    config = tmp_path / "serving" / "config"
    text = (config / BATCHING).read_text()
    (config / BATCHING).write_text(text.replace("value: 16", "value: 17"))
    (config / MONITORING).unlink()
    (config / "stray").write_text("x\n")
    with pytest.raises(GateFailed) as raised:
        Configure().check(context)
    *differences, last = raised.value.problems
    assert [problem.where for problem in differences] == [
        f"serving/config/{name}" for name in (BATCHING, MONITORING, "stray")
    ]
    assert "-max_batch_size { value: 17 }" in differences[0].what
    assert "+max_batch_size { value: 16 }" in differences[0].what
    assert last.fix == "run `invoke configure`"
