"""Gates on what is rendered from the declaration: nothing doubtful in it, nothing committed that differs from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml

from launchpad.errors import GateFailed, Problem
from launchpad.release.candidate import Candidate, Finding, count

SCHEMAS = "1.31"
"""Version of Kubernetes whose schemas judge the manifests."""


def lint(candidate: Candidate) -> Finding:
    """The lint of the configuration has no warning."""
    from launchpad.configure.stage import warnings

    found = [f"{problem.where}: {problem.what}" for problem in warnings(candidate.context)]
    return count("warnings", found, [candidate.layout.root / "pipeline.yaml"])


def artifacts(candidate: Candidate) -> Finding:
    """Every committed artifact is what the declaration and the sources give."""
    from launchpad import pipeline
    from launchpad.configure.stage import Configure
    from launchpad.housekeeping import write_schema
    from launchpad.image.stage import Build

    context = candidate.context
    found = [f"{plan.what}: {plan.reason}" for plan in pipeline.stage("export").plan(context) if plan.reason]
    for check in (
        lambda: Configure().check(context),
        lambda: Build().check(context),
        lambda: write_schema(context.layout.root, check=True),
    ):
        try:
            check()
        except GateFailed as error:
            found += [_line(problem) for problem in error.problems]
    evidence = [candidate.layout.root / "models" / "stage.lock", candidate.layout.serving / "stage.lock"]
    return count("artifacts that differ", found, evidence)


def manifests(candidate: Candidate) -> Finding:
    """The Kubernetes manifests are what declaration and capacity give, and what Kubernetes' own schemas allow."""
    from launchpad.kubernetes import stage

    found, notes = [], []
    try:
        notes.append(stage.check(candidate.context))
    except GateFailed as error:
        found += [_line(problem) for problem in error.problems]
    folder = candidate.layout.kubernetes
    checked, unknown = 0, set()
    for path in sorted(folder.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if not isinstance(document, dict) or "kind" not in document:
                continue
            fault = _fault(document)
            if fault is None:
                unknown.add(document["kind"])
                continue
            checked += 1
            found += [f"{candidate.layout.relative(path)}: {fault}"] if fault else []
    notes.append(f"{checked} manifests validated; no schema here for {', '.join(sorted(unknown)) or 'none'}")
    finding = count("manifests that differ or are not valid", found, [folder])
    return replace(finding, notes=[*found, *notes])


def _fault(manifest: dict[str, Any]) -> str | None:
    """Return what Kubernetes' schema says against a manifest; None where there is no schema of its kind."""
    import kubernetes_validate

    try:
        kubernetes_validate.validate(manifest, SCHEMAS, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return None
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


def _line(problem: Problem) -> str:
    return f"{problem.where}: {problem.what.splitlines()[0]}".removeprefix(": ")
