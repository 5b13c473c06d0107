"""Backends: which one `auto` takes and why, what the docker backend grants, what a native server is refused for."""

from __future__ import annotations

import os

import pytest

from launchpad import engine
from launchpad.backends import choose, container, program
from launchpad.backends.base import first_start
from launchpad.errors import EnvironmentFault, Problem
from launchpad.layout import Layout
from launchpad.stage import Context
from tests.conftest import MINIMAL

VERSION = "#!/bin/sh\necho 'TensorFlow ModelServer: {0}-rc0+dev.sha.x'\necho 'TensorFlow Library: {0}'\n"


@pytest.fixture
def context(declare):
    def declared(serving: str = "") -> Context:
        return Context(declare(MINIMAL + f"serving:\n  backend: auto\n{serving}"))

    return declared


@pytest.fixture
def no_engine(monkeypatch):
    monkeypatch.setattr(engine, "obstacle", lambda: Problem("no engine", fix="start it"))


@pytest.fixture
def binary(tmp_path, monkeypatch):
    """Put a tensorflow_model_server of some version on the PATH."""

    def put(version: str = "2.19.1", text: str = VERSION) -> str:
        path = tmp_path / "bin" / "tensorflow_model_server"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(version))
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        program.version_of.cache_clear()
        return str(path)

    return put


def test_auto_takes_docker_first(context, monkeypatch):
    monkeypatch.setattr(container.Docker, "obstacle", lambda *_: None)
    choice = choose(context())
    assert (choice.backend.name, choice.why) == ("docker", "a Docker engine answers")


def test_auto_takes_native_without_an_engine(context, no_engine, binary):
    binary()
    choice = choose(context())
    assert (choice.backend.name, choice.why) == ("native", "docker: no engine; tensorflow_model_server is installed")


def test_auto_takes_embedded_last_and_says_in_one_line_what_it_passed_over(context, no_engine):
    choice = choose(context("  binary: no-such-server\n"))
    assert choice.backend.name == "embedded"
    assert choice.why == (
        "docker: no engine; native: there is no no-such-server on the PATH; the embedded server always works"
    )


def test_a_required_gpu_is_not_to_be_had_from_the_embedded_server(context, no_engine):
    with pytest.raises(EnvironmentFault) as raised:
        choose(context("  gpu: require\n  image: tensorflow/serving:2.20.0-gpu\n  binary: no-such-server\n"))
    assert [problem.what.partition(":")[0] for problem in raised.value.problems] == ["docker", "native", "embedded"]


def test_a_declared_backend_that_cannot_work_is_the_environments_fault_at_its_line(declare, no_engine):
    with pytest.raises(EnvironmentFault) as raised:
        choose(Context(declare(MINIMAL + "serving:\n  backend: docker\n")))
    (problem,) = raised.value.problems
    assert (problem.what, problem.where, problem.fix) == ("docker: no engine", "pipeline.yaml:5", "start it")


def test_a_native_server_may_be_named_by_path(context, no_engine, binary, tmp_path):
    path = binary()
    (tmp_path / "mine").symlink_to(path)
    assert choose(context("  binary: ./mine\n")).backend.name == "native"


@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho hello\n", "not a program\n"])
def test_a_program_that_is_no_model_server_is_passed_over(context, no_engine, binary, text):
    path = binary(text=text)
    choice = choose(context())
    assert choice.backend.name == "embedded" and f"{path} --version does not answer" in choice.why


def test_an_export_of_a_newer_release_than_the_native_server_is_warned_of(context, binary, tmp_path):
    binary("2.18.1")
    given = context()
    manifest = Layout(tmp_path).evidence("tiny", 1) / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"tensorflow": "2.20.0"}')
    (warning,) = program.Native().warnings(given)
    assert "tiny was exported with TensorFlow 2.20.0, newer than tensorflow_model_server 2.18.1" in warning.what
    binary("2.20.0")
    assert not program.Native().warnings(given)


def test_a_first_start_gives_up_at_once_unless_declared_otherwise(context):
    assert first_start(context().declaration.pipeline.serving) == ["--max_num_load_retries=0"]
    declared = context("  flags: {max_num_load_retries: 2}\n").declaration.pipeline.serving
    assert first_start(declared) == []


def test_a_container_is_granted_what_is_declared(context, tmp_path):
    given = context(
        "  models: mounted\n  container: {memory: 512m, cpus: 1.5, log_files: 2, sysctls: {net.core.a: 1}}\n"
    )
    arguments = container.run_arguments(Layout(tmp_path), given.declaration.pipeline, with_gpus=True)
    words = container.run_words("name", "image:1", arguments)
    assert arguments["mem_limit"] == arguments["memswap_limit"] == "512m"
    assert (
        arguments["device_requests"][0]["Capabilities"] == [["gpu"]] and arguments["device_requests"][0]["Count"] == -1
    )
    for word in (
        "--publish=127.0.0.1:8501:8501",
        "--publish=127.0.0.1:8500:8500",
        "--read-only",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges:true",
        "--sysctl=net.core.a=1",
        "--memory=512m",
        "--cpus=1.5",
        "--log-opt=max-file=2",
        f"--volume={tmp_path}/.launchpad/deployment/models:/models:ro",
        "--gpus=all",
    ):
        assert word in words
    assert words[-1] == "image:1"


@pytest.mark.parametrize(
    ("declared", "policy"),
    [
        ("never", {"Name": "no"}),
        ("on-failure", {"Name": "on-failure", "MaximumRetryCount": 3}),
        ("unless-stopped", {"Name": "unless-stopped"}),
    ],
)
def test_restart_policies_are_the_engines(context, declared, policy):
    pipeline = context(f"  container: {{restart: {declared}}}\n").declaration.pipeline
    assert container.restart_policy(pipeline) == policy


@pytest.mark.parametrize(
    ("gpu", "image", "offered", "given"),
    [
        ("prefer", "tensorflow/serving:2.20.0-gpu", True, True),
        ("prefer", "tensorflow/serving:2.20.0-gpu", False, False),
        ("prefer", "tensorflow/serving:2.20.0", True, False),
        ("require", "registry.example/own:1", True, True),
        ("none", "tensorflow/serving:2.20.0-gpu", True, False),
    ],
)
def test_a_container_gets_gpus_where_they_are_wanted_of_use_and_offered(
    context, monkeypatch, gpu, image, offered, given
):
    monkeypatch.setattr(engine, "gpus", lambda _: (offered, "found"))
    assert container._gpus(context(f"  gpu: {gpu}\n  image: {image}\n"), None) is given


def test_the_image_for_cpus_cannot_require_a_gpu(declare):
    from launchpad.errors import DeclarationError

    with pytest.raises(DeclarationError, match="the one for GPUs ends in -gpu"):
        declare(MINIMAL + "serving: {gpu: require}\n")
