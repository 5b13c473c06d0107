"""A stage runs what is due and nothing else, says why, and never leaves an artifact half written."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launchpad import files, stage
from launchpad.configure.stage import Configure
from launchpad.declaration import Declaration
from launchpad.export.stage import Export
from launchpad.stage import ArtifactStage, Context, Unit, spread

TWO_MODELS = """\
name: tiny
models:
  one:
    source: one/model.py:build
    batching: off
  two:
    source: two/model.py:build{own}
    acceptance: {{parity: {parity}}}
serving:
  ready_timeout_s: {ready_timeout_s}
  flags: {flags}
  batching: {{max_batch_size: {batch}, batch_timeout_micros: {timeout}, num_batch_threads: 1}}
"""
DECLARED = {"batch": 4, "timeout": 500, "parity": "1e-5", "ready_timeout_s": 60, "own": "", "flags": "{}"}


class Copy(ArtifactStage):
    """Copies each source to two artifacts. What it does in between can be replaced."""

    name = "export"
    summary = "copy"

    def __init__(self, names: tuple[str, ...] = ("a", "b")) -> None:
        self.names = names
        self.ran: list[str] = []

    def folder(self, layout) -> Path:
        return layout.root / "out"

    def between(self, name: str) -> None:
        """Called when the first of two artifacts has been written."""

    def units(self, context: Context) -> Iterator[Unit]:
        root = context.layout.root
        for name in self.names:
            source, writes = root / f"{name}.txt", (root / "out" / name, root / "out" / f"{name}.copy")

            def work(place, name=name, source=source, writes=writes) -> None:
                self.ran.append(name)
                place(writes[0]).mkdir()
                (place(writes[0]) / "content").write_text(source.read_text())
                self.between(name)
                place(writes[1]).write_text(source.read_text())

            yield Unit(name, {"name": context.declaration.pipeline.name}, (source,), writes, work)


@pytest.fixture
def context(declare, tmp_path) -> Context:
    declared = declare()
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("first")
    return Context(declared)


def artifacts(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root / "out").as_posix(): path.read_text()
        for path in sorted((root / "out").rglob("*"))
        if path.is_file() and path.name != "stage.lock"
    }


FIRST = {"a/content": "first", "a.copy": "first", "b/content": "first", "b.copy": "first"}


def reasons(of: ArtifactStage, context: Context) -> dict[str, str]:
    return {plan.what: plan.reason for plan in of.plan(context) if plan.reason}


def test_everything_is_due_at_first_and_nothing_afterwards(context, tmp_path):
    copy = Copy()
    assert reasons(copy, context) == {"a": "never run", "b": "never run"}
    assert copy.run(context).status == "done"
    assert artifacts(tmp_path) == FIRST
    assert reasons(copy, context) == {}
    assert copy.run(context).status == "up to date"
    assert copy.ran == ["a", "b"]


def test_a_changed_source_makes_its_own_unit_due_and_no_other(context, tmp_path):
    copy = Copy()
    copy.run(context)
    (tmp_path / "b.txt").write_text("second")
    assert reasons(copy, context) == {"b": "changed: b.txt"}
    assert copy.run(context).detail == "b"
    assert artifacts(tmp_path) == FIRST | {"b/content": "second", "b.copy": "second"}


def test_a_changed_part_of_the_declaration_is_named(context, declare):
    copy = Copy()
    copy.run(context)
    changed = Context(declare("name: other\nmodels:\n  tiny: {source: model.py:build}\n"))
    assert reasons(copy, changed) == {"a": "changed: name", "b": "changed: name"}


@pytest.mark.parametrize("harm", ["touch", "remove", "add"])
def test_an_artifact_that_is_not_as_it_was_written_makes_its_unit_due(context, tmp_path, harm):
    copy = Copy()
    copy.run(context)
    content = tmp_path / "out" / "a" / "content"
    if harm == "touch":
        content.write_text("by hand")
    elif harm == "remove":
        content.unlink()
    else:
        content.with_name("more").write_text("by hand")
    lost = "more" if harm == "add" else "content"
    assert reasons(copy, context) == {"a": f"artifacts differ from stage.lock: out/a/{lost}"}
    copy.run(context)
    assert artifacts(tmp_path) == FIRST


def test_force_makes_everything_due_and_says_so(context):
    copy = Copy()
    copy.run(context)
    forced = dataclasses.replace(context, force=True)
    assert reasons(copy, forced) == {"a": "forced", "b": "forced"}
    copy.run(forced)
    assert copy.ran == ["a", "b", "a", "b"]


def test_a_plan_changes_nothing(context, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    Copy().plan(context)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_change_of_the_stages_own_code_makes_it_due(context, monkeypatch, tmp_path):
    copy = Copy()
    copy.run(context)
    code = tmp_path / "code" / "export"
    code.mkdir(parents=True)
    (code / "stage.py").write_text("# other code")
    monkeypatch.setattr(stage, "__file__", str(tmp_path / "code" / "stage.py"))
    assert reasons(copy, context) == {"a": "changed: code of export", "b": "changed: code of export"}


def test_a_unit_that_is_no_longer_declared_leaves_the_lock(context, tmp_path):
    Copy().run(context)
    (tmp_path / "b.txt").write_text("second")
    Copy(("b",)).run(context)
    assert list(files.read_json(tmp_path / "out" / "stage.lock")) == ["b"]


def test_a_lock_file_that_is_cut_short_counts_as_never_run(context, tmp_path):
    copy = Copy()
    copy.run(context)
    (tmp_path / "out" / "stage.lock").write_text('{"a": {"inp')
    assert reasons(copy, context) == {"a": "never run", "b": "never run"}
    copy.run(context)
    assert reasons(copy, context) == {}


class Broken(Copy):
    def __init__(self, fault: BaseException) -> None:
        super().__init__()
        self.fault = fault

    def between(self, name: str) -> None:
        raise self.fault


@pytest.mark.parametrize("fault", [RuntimeError("out of luck"), KeyboardInterrupt()])
def test_work_that_is_interrupted_leaves_the_old_artifacts_and_nothing_else(context, tmp_path, fault):
    Copy().run(context)
    (tmp_path / "a.txt").write_text("second")
    with pytest.raises(type(fault)):
        Broken(fault).run(context)
    assert artifacts(tmp_path) == FIRST
    assert reasons(Copy(), context) == {"a": "changed: a.txt"}
    Copy().run(context)
    assert artifacts(tmp_path)["a.copy"] == "second"


KILLED = """
import pathlib, sys
from launchpad import declaration
from launchpad.stage import Context
from tests.unit.test_stage import Copy

class Waiting(Copy):
    def between(self, name):
        print("half done", flush=True)
        sys.stdin.read()

Waiting().run(Context(declaration.load(pathlib.Path(sys.argv[1]))))
"""


def test_kill_9_in_the_middle_of_the_work_leaves_the_old_artifacts(context, tmp_path, repository):
    Copy().run(context)
    (tmp_path / "a.txt").write_text("second")
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=repository, text=True) as child:
        assert child.stdout.readline() == "half done\n"
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert {name: text for name, text in artifacts(tmp_path).items() if ".new" not in name} == FIRST
    Copy().run(context)
    assert artifacts(tmp_path) == FIRST | {"a/content": "second", "a.copy": "second"}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    place = tmp_path / "out"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small file system here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full_leaves_the_old_artifacts_and_no_litter(context, tmp_path, small_disk):
    Copy().run(context)
    (tmp_path / "a.txt").write_text("x" * 200_000)
    with pytest.raises(OSError, match="No space left"):
        Copy().run(context)
    assert artifacts(tmp_path) == FIRST
    assert not list(small_disk.glob(".*"))
    (tmp_path / "a.txt").write_text("second")
    Copy().run(context)
    assert artifacts(tmp_path)["a/content"] == "second"


# --- the real stages: who is due after which change -----------------------------------------------------------


@pytest.fixture
def two_models(declare, tmp_path):
    """A declaration of two models whose fingerprints are all recorded as up to date."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text("# builds\n")

    def load(**changes) -> Declaration:
        return declare(TWO_MODELS.format(**DECLARED | changes))

    declared = load()
    for real in (Export(), Configure()):
        note_as_done(real, Context(declared))
    return load


def note_as_done(real: ArtifactStage, context: Context) -> None:
    lock = {
        unit.name: {"inputs": real._inputs(unit, context.layout), "outputs": real._outputs(unit, context)}
        for unit in real.units(context)
    }
    files.write_json(real.folder(context.layout) / stage.LOCK_FILE, lock)


def due(declared: Declaration) -> list[str]:
    context = Context(declared)
    return [name for real in (Export(), Configure()) for name in reasons(real, context)]


def test_nothing_is_due_when_nothing_has_changed(two_models):
    assert due(two_models()) == []


def test_a_batching_parameter_that_leaves_batch_sizes_alone_makes_only_configure_due(two_models):
    assert due(two_models(timeout=900)) == ["config"]


def test_other_batch_sizes_make_the_warmup_requests_of_the_batched_model_due_too(two_models):
    assert due(two_models(batch=8)) == ["two warmup requests", "config"]


def test_a_models_own_batching_makes_its_warmup_requests_due_and_not_its_export(two_models):
    own = "\n    batching: {max_batch_size: 2}"
    assert due(two_models(own=own)) == ["two warmup requests", "config"]


def test_what_is_no_longer_declared_is_a_change_too(two_models):
    both = two_models(flags="{grpc_max_threads: 8, rest_api_num_threads: 8}")
    note_as_done(Configure(), Context(both))
    one = two_models(flags="{grpc_max_threads: 8}")
    assert reasons(Configure(), Context(one)) == {"config": "changed: serving.flags.rest_api_num_threads"}


def test_a_changed_source_file_makes_only_its_model_due(two_models, tmp_path):
    (tmp_path / "two" / "model.py").write_text("# builds otherwise\n")
    assert due(two_models()) == ["two"]


def test_a_module_beside_a_model_function_counts_as_its_source(two_models, tmp_path):
    (tmp_path / "one" / "layers.py").write_text("# imported\n")
    assert due(two_models()) == ["one"]


def test_an_acceptance_limit_makes_only_its_model_due(two_models):
    assert due(two_models(parity="1e-4")) == ["two"]


def test_what_no_artifact_depends_on_makes_nothing_due(two_models):
    assert due(two_models(ready_timeout_s=90)) == []


def test_the_reason_names_the_key_that_changed(two_models):
    assert reasons(Configure(), Context(two_models(timeout=900))) == {
        "config": "changed: serving.batching.batch_timeout_micros"
    }


def test_spread_gives_each_value_its_dotted_key():
    assert spread("a", {"b": {"c": 1, "d": []}, "e": {}}) == {"a.b.c": 1, "a.b.d": [], "a.e": {}}


def test_a_lock_file_of_another_shape_counts_as_never_run(context, tmp_path):
    copy = Copy()
    copy.run(context)
    (tmp_path / "out" / "stage.lock").write_text("[1]")
    assert copy.run(context).detail == "a, b"
    assert reasons(copy, context) == {}
