"""Publishing refuses what cannot work before it touches anything, and keeps a configuration's meaning."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from google.protobuf import text_format

from launchpad import files, publishing
from launchpad.backends import Docker, Embedded
from launchpad.errors import EnvironmentFault
from launchpad.layout import Layout
from launchpad.modelserver import protos
from launchpad.publishing import Publisher
from launchpad.server import Server
from launchpad.spec import BatchQueue

SERVER = Server(
    instance="i",
    backend="embedded",
    why="",
    content="",
    command=["--enable_batching=true", "--enable_per_model_batching_parameters=true"],
    rest_port=1,
    grpc_port=2,
    metrics_path=None,
    models=["tiny"],
    ready_s=1.0,
)
MINIMAL = "name: tiny\nmodels:\n  tiny: {source: model.py:build}\n"


@pytest.fixture
def launched(declare, tmp_path, monkeypatch):
    """Record a server that counts as running, in a checkout with the given declaration; return its publisher."""
    monkeypatch.setattr(Embedded, "is_running", lambda self, server: True)

    def make(text: str = MINIMAL, **facts) -> Publisher:
        declaration = declare(text)
        replace(SERVER, **facts).save(Layout(tmp_path))
        return Publisher(declaration)

    return make


def test_nothing_is_published_where_no_server_was_launched(declare):
    with pytest.raises(EnvironmentFault, match="no server has been launched"):
        Publisher(declare())


def test_models_baked_into_an_image_are_refused_with_the_way_out(launched, monkeypatch):
    monkeypatch.setattr(Docker, "is_running", lambda self, server: True)
    with pytest.raises(EnvironmentFault, match="baked into the server's image") as raised:
        launched(MINIMAL + "serving:\n  models: baked\n", backend="docker")
    assert raised.value.problems[0].where == "pipeline.yaml:5"
    assert "serving.models: mounted" in raised.value.problems[0].fix
    assert launched(MINIMAL + "serving:\n  models: mounted\n", backend="docker").server.backend == "docker"


def test_a_server_without_rest_is_refused(launched):
    with pytest.raises(EnvironmentFault, match="over REST, which is off"):
        launched(rest_port=0)


def test_a_server_that_never_looks_for_versions_is_refused(launched):
    with pytest.raises(EnvironmentFault, match="does not look for new versions") as raised:
        launched(MINIMAL + "serving:\n  flags:\n    file_system_poll_wait_seconds: 0\n")
    assert raised.value.problems[0].where == "pipeline.yaml:6"


@pytest.mark.parametrize("flag", ["enable_batching", "enable_per_model_batching_parameters"])
def test_parameters_that_the_server_would_not_read_are_refused(launched, flag):
    publisher = launched(command=[word for word in SERVER.command if flag not in word])
    with pytest.raises(EnvironmentFault, match=f"without --{flag}"):
        publisher.publish("tiny", batching=BatchQueue(max_batch_size=4))


def test_a_prepared_version_has_the_same_weights_and_parameters_of_its_own(tmp_path):
    source = tmp_path / "3"
    source.mkdir()
    (source / "saved_model.pb").write_text("graph")
    (source / "batching_params.pbtxt").write_text("max_batch_size { value: 99 }\n")
    for batching, text in (
        (BatchQueue(max_batch_size=4), "max_batch_size { value: 4 }"),
        ("as it is", "max_batch_size { value: 99 }"),
        ("off", None),
    ):
        Publisher._prepare(tmp_path / "4", source, batching, "a reason")
        place = tmp_path / ".4.new"
        assert os.path.samefile(place / "saved_model.pb", source / "saved_model.pb")
        assert files.read_json(place / "published.json")["weights of"] == 3
        parameters = place / "batching_params.pbtxt"
        assert (parameters.read_text().splitlines()[0] if parameters.exists() else None) == text
    assert (source / "batching_params.pbtxt").read_text() == "max_batch_size { value: 99 }\n"
    assert not (tmp_path / "4").exists()
    Publisher._prepare(tmp_path / "5", tmp_path / ".4.new", "off", "")
    assert files.read_json(tmp_path / ".5.new" / "published.json")["weights of"] == 3


def config(text: str):
    return text_format.Parse(text, protos.ModelServerConfig())


@pytest.mark.parametrize(
    ("policy", "follows"),
    [
        ("", True),
        ("model_version_policy { latest { num_versions: 1 } }", True),
        ("model_version_policy { latest { num_versions: 2 } }", False),
        ("model_version_policy { all {} }", False),
        ("model_version_policy { specific { versions: 1 } }", False),
        ('version_labels { key: "stable" value: 1 }', False),
    ],
)
def test_a_server_goes_over_by_itself_only_where_it_serves_the_newest_and_no_label_stays_behind(policy, follows):
    declared = config(f'model_config_list {{ config {{ name: "m" {policy} }} }}')
    assert publishing._follows_the_newest(declared.model_config_list.config[0]) is follows


def test_the_version_that_takes_over_takes_labels_and_its_place_in_the_policy():
    declared = config(
        'model_config_list { config { name: "m" model_version_policy { specific { versions: 1 versions: 2 } } '
        'version_labels { key: "stable" value: 2 } version_labels { key: "old" value: 1 } } }'
    )
    entry = declared.model_config_list.config[0]
    publishing._rename(entry, 2, 5)
    assert list(entry.model_version_policy.specific.versions) == [1, 5]
    assert dict(entry.version_labels) == {"stable": 5, "old": 1}
