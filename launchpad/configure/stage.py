"""The configure stage: renders `serving/config/`, warns of what is doubtful, and can check for drift."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from launchpad import batching, console, files, tuned, versions
from launchpad.configure.lint import lint
from launchpad.configure.render import render
from launchpad.errors import GateFailed, Problem
from launchpad.layout import Layout
from launchpad.stage import ArtifactStage, Context, Outcome, Unit, spread

WHERE_IT_RUNS = ("backend", "ready_timeout_s", "gpu", "models", "binary", "container")
"""Keys of `serving` that the server's own files do not depend on."""


class Configure(ArtifactStage):
    name = "configure"
    kernel = ("batching.py", "pbtxt.py")
    summary = "render and lint the server's configuration files and flags"

    def folder(self, layout: Layout) -> Path:
        return layout.root / "serving"

    def units(self, context: Context) -> Iterator[Unit]:
        pipeline = context.declaration.pipeline
        parts = ("version_policy", "version_labels", "batching")
        models = {name: model.model_dump(mode="json", include=set(parts)) for name, model in pipeline.models.items()}
        tuned = context.layout.tuned
        yield Unit(
            name="config",
            reads={
                "name": pipeline.name,
                **spread("serving", pipeline.serving.model_dump(mode="json", exclude=set(WHERE_IT_RUNS))),
                **spread("models", models),
                "autotune": pipeline.autotune is not None,
            },
            sources=(tuned,) if tuned.exists() else (),
            writes=(context.layout.serving_config,),
            work=functools.partial(_write, context),
        )

    def run(self, context: Context) -> Outcome:
        outcome = super().run(context)
        for warning in warnings(context):
            console.say(f"  ! {warning}", "yellow")
        return outcome

    def check(self, context: Context) -> Outcome:
        """Compare the committed files with what the declaration gives. Raises GateFailed, with a diff, on drift."""
        wanted, there = rendered(context), _there(context)
        problems = [
            Problem(_diff(there.get(name, ""), wanted.get(name, "")), f"serving/config/{name}")
            for name in _differing(wanted, there)
        ]
        if problems:
            last = Problem("serving/config differs from what pipeline.yaml gives", fix="run `invoke configure`")
            raise GateFailed([*problems, last])
        return Outcome(
            "up to date", f"{len(wanted)} files are what pipeline.yaml gives", (context.layout.serving_config,)
        )

    def drifted(self, context: Context) -> list[str]:
        return [f"serving/config/{name}" for name in _differing(rendered(context), _there(context))]


def rendered(context: Context) -> dict[str, str]:
    return render(context.declaration.pipeline, batching.effective(context.declaration))


def warnings(context: Context) -> list[Problem]:
    """Return the lint's warnings, each with its line in the declaration, and doubts of what was tuned."""
    declaration = context.declaration
    found = lint(
        declaration.pipeline, batching.effective(declaration), versions.exporters(context.layout, declaration.pipeline)
    )
    warned = [Problem(warning.what, declaration.where(*warning.key), warning.fix) for warning in found]
    return warned + tuned.doubts(declaration)


def _write(context: Context, place: Callable[[Path], Path]) -> None:
    folder = place(context.layout.serving_config)
    for name, text in rendered(context).items():
        files.write_text(folder / name, text)


def _there(context: Context) -> dict[str, str]:
    folder = context.layout.serving_config
    return {name: (folder / name).read_text(encoding="utf-8") for name in files.names(folder)}


def _differing(wanted: dict[str, str], there: dict[str, str]) -> list[str]:
    return sorted(name for name in wanted.keys() | there.keys() if there.get(name) != wanted.get(name))


def _diff(before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "committed", "rendered", lineterm="", n=1)
    return "\n    ".join(["differs", *lines])
