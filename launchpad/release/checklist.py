"""The checklist of a release as Markdown for people, and as JSON for the release after it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launchpad.gates import Gate
from launchpad.release.candidate import Candidate, Line

SIGNS = ("owner of the models", "operator of the servers", "reviewer")
MARKS = {"passed": "✅", "failed": "❌", "not run": "⚪"}


def document(candidate: Candidate, lines: Sequence[Line], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the evidence: every measured value with its limit, and what the next release is compared with.

    said: what is known of the release as a whole: when, revision, machine, configuration, models.
    """
    root = candidate.layout.root
    return {
        "version": candidate.version,
        "passed": not any(line.blocks for line in lines),
        **said,
        "previous": candidate.previous["version"] if candidate.previous else None,
        "profile": candidate.profile,
        "runs": candidate.runs,
        "gates": [
            {
                "gate": line.gate,
                "title": line.title,
                "verdict": line.finding.verdict,
                "blocks": line.blocks,
                "waiver": line.waiver.model_dump(mode="json") if line.waiver else None,
                "measured": [gate.as_dict() for gate in line.finding.gates],
                "notes": list(line.finding.notes),
                "evidence": [path.relative_to(root).as_posix() for path in line.finding.evidence],
                **line.finding.facts,
            }
            for line in lines
        ],
    }


def markdown(candidate: Candidate, lines: Sequence[Line], said: Mapping[str, Any]) -> str:
    """Return the checklist."""
    blocking = [line for line in lines if line.blocks]
    waived = [line for line in lines if line.waived]
    passed = sum(line.finding.verdict == "passed" for line in lines)
    verdict = (
        f"**{len(blocking)} of {len(lines)} gates block the release**" if blocking else "**No gate blocks the release**"
    )
    verdict += f": {passed} passed, {len(waived)} are waived"
    text = [
        f"# Release {candidate.version}",
        "",
        f"{verdict}. Made {said['made']}, revision `{said['revision']}`, configuration "
        f"`{said['configuration'][:16]}`, profile `{candidate.profile}`, previous release: "
        f"{candidate.previous['version'] if candidate.previous else 'none'}.",
        "",
        f"Measured on {_machine(said['machine'])}, server: {said['backend']}.",
        "",
        "| | gate | measured | limit | evidence |",
        "| --- | --- | --- | --- | --- |",
    ]
    for line in lines:
        text += _rows(candidate, line)
    text += ["", "## What was seen", ""]
    for line in lines:
        text.append(f"- **{line.gate}** ({line.title}): {line.words}.")
        text += [f"  - {_escaped(note)}" for note in line.finding.notes]
    text += ["", "## Waivers", ""]
    declared = [line for line in lines if line.waiver]
    text += [f"- {line.gate}: {line.words}" for line in declared] or ["None."]
    text += ["", "## Models", "", "| model | version | content |", "| --- | ---: | --- |"]
    text += [f"| {name} | {model['version']} | `{model['content'][:16]}` |" for name, model in said["models"].items()]
    text += ["", "## Signed off", ""]
    text += [f"- [ ] {who}: ______________________ on ____________" for who in SIGNS]
    return "\n".join(text) + "\n"


def _rows(candidate: Candidate, line: Line) -> list[str]:
    links = ", ".join(_link(candidate, path) for path in line.finding.evidence)
    rows = []
    for index, gate in enumerate(line.finding.gates):
        sign = MARKS[_verdict(gate)] + (" waived" if line.waived and gate.passed is not True else "")
        evidence = links if index == 0 else ""
        rows.append(
            f"| {sign} | {line.gate} | {_escaped(gate.name)}: {_escaped(gate.measured)} | "
            f"{'–' if gate.limit is None else gate.required} | {evidence} |"
        )
    return rows


def _verdict(gate: Gate) -> str:
    return {True: "passed", False: "failed", None: "not run"}[gate.passed]


def _link(candidate: Candidate, path: Path) -> str:
    return f"[{path.name}]({Path(os.path.relpath(path, candidate.published)).as_posix()})"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _machine(machine: Mapping[str, Any]) -> str:
    return f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"
