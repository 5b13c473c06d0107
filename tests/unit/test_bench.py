"""The workbench: what is declared on it, what of the user's it sees, and that it leaves the user's alone."""

from __future__ import annotations

import shutil

import pytest

from launchpad import batching, declaration
from launchpad.errors import EnvironmentFault, GateFailed
from launchpad.spec import BatchQueue, Traffic
from launchpad.tune.bench import Bench

TEXT = """\
name: tiny
models:
  a: {source: m.py:f, batching: {max_batch_size: 4}}
  b: {source: m.py:f}
serving:
  ports: {rest: 8501, grpc: 8500}
  batching: {max_batch_size: 16, num_batch_threads: 2}
  flags: {rest_api_num_threads: 32}
objectives: {p99_ms: 50}
autotune: {policy: threshold}
release: {profile: steady}
"""


@pytest.fixture
def bench(declare, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "models" / name / "versions" / "1").mkdir(parents=True)
        (tmp_path / "models" / name / "evidence").mkdir()
    return Bench(declare(TEXT), tmp_path / ".launchpad" / "tune" / "bench", [Traffic(model="b")])


def test_only_the_model_in_question_is_batched(bench):
    bench.declare({"b": BatchQueue(max_batch_size=32, allowed_batch_sizes=(8, 32))}, 4)
    found = batching.effective(declaration.load(bench.layout.root))
    assert found.server and found.server.num_batch_threads == 4
    assert found.queues == {"a": None, "b": BatchQueue(max_batch_size=32, allowed_batch_sizes=(8, 32))}


def test_off_is_off_for_the_server(bench):
    bench.declare({"b": None}, 1)
    assert batching.effective(declaration.load(bench.layout.root)).server is None


def test_ports_and_store_are_its_own_and_flags_the_users_unless_others_are_asked_for(bench, tmp_path):
    bench.declare({}, 1, {"grpc_max_threads": 7})
    found = declaration.load(bench.layout.root).pipeline
    assert {found.serving.ports.rest, found.serving.ports.grpc}.isdisjoint({8501, 8500})
    assert found.serving.flags == {"rest_api_num_threads": 32, "grpc_max_threads": 7}
    assert found.autotune is None
    assert [line.model for line in found.traffic(found.loadtest.profiles[found.loadtest.profile])] == ["b"]
    assert (tmp_path / "pipeline.yaml").read_text() == TEXT


def test_another_version_of_one_model_stands_beside_the_users_of_the_rest(declare, tmp_path, bench):
    other = tmp_path / "frozen" / "1"
    other.mkdir(parents=True)
    (other / "saved_model.pb").write_text("frozen")
    again = Bench(declare(TEXT), tmp_path / "other-bench", [], {"b": other})
    assert (again.layout.version("b", 1) / "saved_model.pb").read_text() == "frozen"
    assert again.layout.versions("a").resolve() == tmp_path / "models" / "a" / "versions"
    assert not (tmp_path / "models" / "b" / "versions" / "1" / "saved_model.pb").exists()


def test_a_workbench_in_a_copied_checkout_is_the_copys(declare, tmp_path, bench):
    copy = tmp_path / "copy"
    shutil.copytree(bench.layout.root, copy / ".launchpad" / "tune" / "bench", symlinks=True)
    again = Bench(declare(TEXT, root=copy), copy / ".launchpad" / "tune" / "bench", [])
    assert (again.layout.root / "models").readlink() == copy / "models"


@pytest.mark.parametrize(("code", "kind"), [(3, EnvironmentFault), (1, GateFailed)])
def test_a_command_that_fails_is_told_with_what_it_said(bench, tmp_path, code, kind):
    (tmp_path / "tasks.py").write_text(
        "from invoke import Exit, task\n\n@task\ndef launch(_):\n"
        f"    print('the port is taken')\n    raise Exit(code={code})\n"
    )
    with pytest.raises(kind) as raised:
        bench.invoke("launch")
    assert "the port is taken" in str(raised.value)
    assert bench.invoke("launch", allowed=(0, code)) == code
