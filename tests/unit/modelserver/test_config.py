"""Configuration files are obeyed or refused with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchpad.modelserver import config
from launchpad.modelserver.config import ConfigError, VersionPolicy
from launchpad.modelserver.flags import parse
from launchpad.modelserver.protos import ConfigProto
from launchpad.modelserver.status import ServingError

_MODEL = 'config { name: "m" base_path: "/m" model_platform: "tensorflow" %s }'


def _read(folder: Path, text: str) -> dict[str, config.ModelSettings]:
    (folder / "models.config").write_text(text)
    return config.read_model_config(str(folder / "models.config"))


def test_models_are_read_with_policy_and_labels(tmp_path: Path) -> None:
    settings = _read(
        tmp_path,
        "model_config_list { "
        + _MODEL % 'model_version_policy { latest { num_versions: 2 } } version_labels { key: "a" value: 1 }'
        + " }",
    )["m"]
    assert (settings.base_path, settings.policy.latest, dict(settings.labels)) == ("/m", 2, {"a": 1})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model_config_list { config { nam: 1 } }", "models.config:1:"),
        ("model_config_list {", "models.config:"),
        ("model_config_list { " + _MODEL % "" + _MODEL % "" + "}", "Illegal to list model m multiple times"),
        (
            'model_config_list { config { name: "m" base_path: "/m" } }',
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform.",
        ),
        (
            "model_config_list { " + _MODEL % "model_type: TENSORFLOW" + "}",
            "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform.",
        ),
        (
            'model_config_list { config { name: "m" base_path: "/m" model_type: OTHER } }',
            "ModelServerConfig::model_type choice 2 not supported.",
        ),
        (
            'model_config_list { config { name: "m" base_path: "/m" model_platform: "torch" } }',
            "requests unsupported platform torch",
        ),
        (
            'model_config_list { config { name: "m" base_path: "m" model_platform: "tensorflow" } }',
            "to have an absolute path or URI; got base_path()=m",
        ),
    ],
)
def test_a_configuration_that_cannot_be_obeyed_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        _read(tmp_path, text)
    assert complaint in str(refused.value)


def test_policies_choose_versions() -> None:
    versions = {1, 2, 3, 10}
    assert VersionPolicy().choose(versions) == {10}
    assert VersionPolicy(latest=2).choose(versions) == {3, 10}
    assert VersionPolicy(latest=None).choose(versions) == versions
    assert VersionPolicy(specific=frozenset({1, 7})).choose(versions) == {1}


def test_batching_parameters_have_the_defaults_of_the_original(tmp_path: Path) -> None:
    defaults = config.batching_options(parse([]))
    assert (defaults.max_batch_size, defaults.batch_timeout_micros, defaults.max_enqueued_batches) == (1000, 0, 10)
    file = tmp_path / "batching.config"
    file.write_text(
        "max_batch_size { value: 8 } allowed_batch_sizes: 4 allowed_batch_sizes: 8 "
        'thread_pool_name { value: "p" } num_batch_threads { value: 3 }'
    )
    options = parse(["--enable_batching", f"--batching_parameters_file={file}"])
    assert config.batching_options(options).allowed_batch_sizes == (4, 8)
    assert config.batch_threads(options) == config.BatchThreads(3, "p")
    assert config.batch_threads(parse(["--enable_batching"])).name == "model_server_batch_threads"


def test_batching_parameters_without_batching_are_refused(tmp_path: Path) -> None:
    (tmp_path / "batching.config").write_text("max_batch_size { value: 8 }")
    options = parse([f"--batching_parameters_file={tmp_path / 'batching.config'}"])
    with pytest.raises(ConfigError, match=r"without setting server_options\.enable_batching"):
        config.batch_threads(options)


def test_a_file_that_is_empty_for_the_moment_does_not_take_the_place_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "models.config").write_text("")
    assert config.read_model_config(str(tmp_path / "models.config")) == {}
    with pytest.raises(ConfigError, match="only legal to transition from one ModelConfigList to another"):
        config.read_model_config(str(tmp_path / "models.config"), instead=True)
    (tmp_path / "models.config").write_text("model_config_list {}")
    assert config.read_model_config(str(tmp_path / "models.config"), instead=True) == {}


def test_per_model_parameters_are_those_in_the_versions_directory(tmp_path: Path) -> None:
    assert config.per_model_batching(str(tmp_path)) is None
    (tmp_path / "batching_params.pbtxt").write_text("max_batch_size { value: 3 }")
    found = config.per_model_batching(str(tmp_path))
    assert found is not None and found.max_batch_size == 3
    (tmp_path / "batching_params.pbtxt").write_text("max_batch_size: 3")
    with pytest.raises(ServingError):
        config.per_model_batching(str(tmp_path))


def test_the_metrics_page_is_where_the_file_says_or_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "monitoring.config"
    options = parse([f"--monitoring_config_file={file}"])
    assert config.metrics_path(parse([])) is None
    file.write_text("prometheus_config { enable: false }")
    assert config.metrics_path(options) is None
    file.write_text("prometheus_config { enable: true }")
    assert config.metrics_path(options) == "/monitoring/prometheus/metrics"
    file.write_text('prometheus_config { enable: true path: "/metrics" }')
    assert config.metrics_path(options) == "/metrics"


def test_parallelism_flags_set_the_sessions_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "schedulable_cpus", lambda: 8)

    def threads(*flags: str) -> tuple[int, int]:
        proto = ConfigProto.FromString(config.session_config(parse(list(flags))))
        return proto.intra_op_parallelism_threads, proto.inter_op_parallelism_threads

    assert threads("--tensorflow_session_parallelism=3") == (3, 3)
    assert threads("--tensorflow_session_parallelism=3", "--tensorflow_intra_op_parallelism=1") == (1, 0)
    assert threads("--tensorflow_session_parallelism=3", "--tensorflow_inter_op_parallelism=1") == (0, 1)
    assert threads("--tensorflow_intra_op_parallelism=2", "--tensorflow_inter_op_parallelism=1") == (2, 1)


def test_all_three_parallelism_flags_together_are_refused() -> None:
    flags = [f"--tensorflow_{kind}_parallelism=2" for kind in ("session", "intra_op", "inter_op")]
    with pytest.raises(ConfigError, match=r"^Either configure .* separately\. You cannot configure all\.$"):
        config.session_config(parse(flags))


@pytest.mark.parametrize(("processors", "threads"), [(1, 1), (2, 1), (3, 0)])
def test_an_operation_is_not_spread_over_a_small_machine(
    monkeypatch: pytest.MonkeyPatch, processors: int, threads: int
) -> None:
    monkeypatch.setattr(config, "schedulable_cpus", lambda: processors)
    proto = ConfigProto.FromString(config.session_config(parse([])))
    assert proto.intra_op_parallelism_threads == threads


def test_channel_arguments_limit_the_calls_of_a_connection() -> None:
    arguments = "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.max_concurrent_streams=7"
    assert config.max_concurrent_streams(parse([arguments])) == 7
    with pytest.raises(ConfigError):
        config.max_concurrent_streams(parse(["--grpc_channel_arguments=nonsense"]))
