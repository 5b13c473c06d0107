"""What is to be released, and what its gates find: the candidate, findings, waivers, verdicts."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from launchpad.gates import Gate
from launchpad.layout import Layout
from launchpad.spec import Pipeline, Waiver
from launchpad.stage import Context

Verdict = Literal["passed", "failed", "not run"]


@dataclass(frozen=True)
class Finding:
    """What a gate found: measured values against limits, where the evidence lies, and what a reader should know.

    facts: what the evidence file keeps beside, for a later release to compare with.
    """

    gates: Sequence[Gate]
    evidence: Sequence[Path] = ()
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        verdicts = [gate.passed for gate in self.gates]
        if False in verdicts:
            return "failed"
        return "passed" if verdicts and None not in verdicts else "not run"


def not_run(name: str, why: str) -> Finding:
    """A gate that could not be evaluated."""
    return Finding([Gate(name, None, "<=", None, why=why)])


def count(name: str, found: Sequence[str], evidence: Sequence[Path] = (), **facts: Any) -> Finding:
    """A gate that allows none of something; what was found is noted."""
    return Finding([Gate(name, len(found), "<=", 0)], evidence, found, facts)


@dataclass(frozen=True)
class Line:
    """A line of the checklist: a gate's finding, and the waiver that was declared for it."""

    gate: str
    title: str
    finding: Finding
    waiver: Waiver | None
    today: datetime.date

    @property
    def waived(self) -> bool:
        return bool(self.waiver) and self.finding.verdict != "passed" and not self.expired

    @property
    def expired(self) -> bool:
        return self.waiver is not None and self.waiver.expires < self.today

    @property
    def blocks(self) -> bool:
        """Whether the release may not go out for it."""
        return self.finding.verdict != "passed" and not self.waived

    @property
    def words(self) -> str:
        """The verdict for people, the waiver included."""
        verdict = self.finding.verdict
        if self.waiver is None:
            return verdict
        until = self.waiver.expires.isoformat()
        if verdict == "passed":
            return f"passed; the waiver until {until} is not needed"
        if self.expired:
            return f"{verdict}; the waiver expired on {until} ({self.waiver.reason})"
        return f"{verdict}, waived until {until}: {self.waiver.reason}"


@dataclass
class Candidate:
    """A release in the making. Gates run in order, and leave to later ones what they measured.

    folder: where evidence of this release alone is prepared; published: where it will lie.
    previous: evidence of the newest release before this one; None for the first.
    runs: {what it was for: run id}; measured: the summary of the run that objectives were judged by.
    """

    context: Context
    version: str
    folder: Path
    published: Path
    previous: Mapping[str, Any] | None
    runs: dict[str, str] = field(default_factory=dict)
    measured: Mapping[str, Any] | None = None

    @property
    def layout(self) -> Layout:
        return self.context.layout

    @property
    def pipeline(self) -> Pipeline:
        return self.context.declaration.pipeline

    @property
    def profile(self) -> str:
        """The load-test profile that the release is judged by."""
        return self.pipeline.release.profile or self.pipeline.loadtest.profile

    def keep(self, name: str) -> tuple[Path, Path]:
        """Return where to write a file of evidence, and where it will lie."""
        return self.folder / name, self.published / name
