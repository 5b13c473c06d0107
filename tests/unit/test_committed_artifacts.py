"""What is committed follows from the declaration and the code: nothing has drifted."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchpad import declaration, files
from launchpad.configure.stage import Configure, warnings
from launchpad.export.stage import Export
from launchpad.stage import Context

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def context() -> Context:
    return Context(declaration.load(REPOSITORY))


@pytest.mark.parametrize("stage", [Export(), Configure()], ids=lambda stage: stage.name)
def test_committed_artifacts_are_up_to_date(context, stage):
    due = {plan.what: plan.reason for plan in stage.plan(context) if plan.reason}
    assert not due


def test_committed_configuration_is_what_the_declaration_gives(context):
    Configure().check(context)


def test_the_committed_declaration_raises_no_warning(context):
    assert not warnings(context)


def test_a_real_run_with_its_report_is_committed():
    runs = {path.parent.name for path in (REPOSITORY / "loadtests/results").glob("*/summary.json")}
    reports = {path.parent.name for path in (REPOSITORY / "reports").glob("*/report.html")}
    assert runs & reports


def test_a_release_of_both_models_is_committed_with_all_its_evidence(context):
    releases = [files.read_json(path) for path in (REPOSITORY / "reports/releases").glob("*/evidence.json")]
    passed = [release for release in releases if release["passed"]]
    assert passed
    for release in passed:
        assert release["models"].keys() == context.declaration.pipeline.models.keys()
        missing = [path for line in release["gates"] for path in line["evidence"] if not (REPOSITORY / path).exists()]
        assert not missing
