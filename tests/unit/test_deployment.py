"""The deployment folder: the artifacts by hard link, the configuration with local paths, and never the other way."""

from __future__ import annotations

import os

import pytest

from launchpad import files, flagfile
from launchpad.errors import EnvironmentFault
from launchpad.launch import deployment
from launchpad.layout import Layout


def assemble(layout, models):
    deployment.prepare(layout, models)
    files.publish(layout.deployment)


@pytest.fixture
def layout(tmp_path) -> Layout:
    layout = Layout(tmp_path)
    for version in (1, 2, 10):
        folder = layout.version("tiny", version)
        (folder / "variables").mkdir(parents=True)
        (folder / "saved_model.pb").write_text(f"graph {version}")
        (folder / "variables" / "data").write_text("weights")
    config = layout.serving_config
    config.mkdir(parents=True)
    (config / "models.config").write_text('base_path: "/models/tiny"  # not "/elsewhere/models/x"\n')
    (config / "server.flags").write_text("# heading\n--model_config_file=/config/models.config  # models\n--port=1\n")
    return layout


def test_artifacts_are_hard_links_and_not_copies(layout):
    assemble(layout, ["tiny"])
    for name in ("1/saved_model.pb", "2/saved_model.pb", "10/variables/data"):
        assert os.path.samefile(layout.deployment / "models/tiny" / name, layout.versions("tiny") / name)


def test_configuration_names_the_deployments_own_folders(layout):
    assemble(layout, ["tiny"])
    text = (layout.deployment / "config" / "models.config").read_text()
    assert text == f'base_path: "{layout.deployment}/models/tiny"  # not "/elsewhere/models/x"\n'
    assert flagfile.read(layout.deployment / "config" / "server.flags") == [
        f"--model_config_file={layout.deployment}/config/models.config",
        "--port=1",
    ]


def test_the_committed_configuration_stays_as_it_is(layout):
    before = files.tree(layout.root)
    assemble(layout, ["tiny"])
    assert files.tree(layout.root) == before


def test_only_whole_numbers_are_versions(layout):
    (layout.versions("tiny") / "draft").mkdir()
    (layout.versions("tiny") / ".3.new").mkdir()
    assemble(layout, ["tiny"])
    assert sorted(os.listdir(layout.deployment / "models" / "tiny")) == ["1", "10", "2"]


def test_a_models_own_batching_parameters_go_into_each_of_its_versions(layout):
    own = layout.serving_config / "tiny" / deployment.MODEL_BATCHING
    own.parent.mkdir()
    own.write_text("max_batch_size { value: 4 }\n")
    assemble(layout, ["tiny"])
    for version in ("1", "2", "10"):
        there = layout.deployment / "models" / "tiny" / version / deployment.MODEL_BATCHING
        assert there.read_text() == own.read_text()
    assert not (layout.version("tiny", 1) / deployment.MODEL_BATCHING).exists()


def test_parameters_that_a_version_brought_along_are_replaced_in_the_deployment_alone(layout):
    brought = layout.version("tiny", 1) / deployment.MODEL_BATCHING
    brought.write_text("max_batch_size { value: 99 }\n")
    own = layout.serving_config / "tiny" / deployment.MODEL_BATCHING
    own.parent.mkdir()
    own.write_text("max_batch_size { value: 4 }\n")
    assemble(layout, ["tiny"])
    assert (layout.deployment / "models/tiny/1" / deployment.MODEL_BATCHING).read_text() == own.read_text()
    assert brought.read_text() == "max_batch_size { value: 99 }\n"


def test_an_earlier_deployment_is_replaced_whole(layout):
    assemble(layout, ["tiny"])
    files.remove(layout.version("tiny", 1))
    assemble(layout, ["tiny"])
    assert sorted(os.listdir(layout.deployment / "models" / "tiny")) == ["10", "2"]


def test_a_model_without_versions_is_named_and_the_old_deployment_stays(layout):
    assemble(layout, ["tiny"])
    before = files.tree(layout.deployment)
    with pytest.raises(EnvironmentFault, match="other has no exported version") as raised:
        assemble(layout, ["tiny", "other"])
    assert raised.value.problems[0].fix == "run `invoke export`"
    assert files.tree(layout.deployment) == before


def test_a_configuration_that_was_never_rendered_is_asked_for(layout):
    (layout.serving_config / "server.flags").unlink()
    with pytest.raises(EnvironmentFault, match="no rendered configuration") as raised:
        assemble(layout, ["tiny"])
    assert raised.value.problems[0].fix == "run `invoke configure`"


@pytest.mark.parametrize("changed", ["models/tiny/versions/2/saved_model.pb", "serving/config/server.flags"])
def test_the_content_hash_follows_what_is_served(layout, changed):
    before = deployment.content(layout, ["tiny"])
    assert deployment.content(layout, ["tiny"]) == before
    (layout.root / changed).write_text("other")
    assert deployment.content(layout, ["tiny"]) != before


def test_a_folder_that_is_named_otherwise_is_no_version(layout):
    layout.versions("tiny").joinpath("²").mkdir()
    assemble(layout, ["tiny"])
    assert {path.name for path in layout.deployed("tiny").iterdir()} == {"1", "2", "10"}
