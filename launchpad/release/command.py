"""`invoke release`: every gate evaluated on what is here, written down, and the verdict.

A release stands above the stages: it has them launch, warm and load the server, and judges what they leave.
"""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path
from typing import Any

from launchpad import console, files, machine, pipeline
from launchpad.client import ServerError
from launchpad.errors import DeclarationError, GateFailed, LaunchpadError, Problem
from launchpad.gates import Gate
from launchpad.release import checklist, record
from launchpad.release.candidate import Candidate, Finding, Line, count
from launchpad.release.gates.models import exported
from launchpad.release.table import GATES
from launchpad.server import Server
from launchpad.stage import Context
from launchpad.store import attempt


def release(root: Path, version: str, force: bool = False, dry_run: bool = False) -> None:
    """Evaluate every gate and write `reports/releases/<version>/`.

    force: replace the checklist of a version that was released. dry_run: list the gates and their waivers only.
    Raises GateFailed for each gate that blocks, DeclarationError for a version that is none or was released.
    """
    context = pipeline.context(root)
    published = record.folder(context.layout, version)
    today = datetime.date.today()
    if dry_run:
        _show_plan(context, today)
        return
    known = files.read_json(published / record.EVIDENCE)
    if known and known.get("passed") and not force:
        where = context.layout.relative(published)
        raise DeclarationError(f"{version} was released already", where, "give another version, or --force")
    with pipeline.locked(context):  # another release of it would have the same folder
        folder = files.staged(published)
        try:
            folder.mkdir()
            candidate = Candidate(context, version, folder, published, record.previous(context.layout, version))
            lines = _evaluate(candidate, today)
            said = _said(candidate)
            evidence = checklist.document(candidate, lines, said)
            files.write_json(folder / record.EVIDENCE, evidence)
            files.write_text(folder / record.CHECKLIST, checklist.markdown(candidate, lines, said))
            files.publish(published)
        finally:
            files.discard(published)
    attempt(context.declaration, lambda opened: opened.add_gates(version, record.rows(evidence), now()))
    _show(candidate, lines)
    blocking = [line for line in lines if line.blocks]
    if blocking:
        raise GateFailed([_problem(candidate, line) for line in blocking])


def show_difference(root: Path, before: str, after: str) -> None:
    """Print how two releases differ. Raises DeclarationError where one is not there."""
    layout = pipeline.context(root).layout
    sides = [record.load(layout, version) for version in (before, after)]
    rows = record.differences(*sides)
    if not rows:
        console.say(f"{before} and {after} differ in nothing that a release measures")
        return
    console.table(f"{before} → {after}", ("what", before, after), rows)


def _evaluate(candidate: Candidate, today: datetime.date) -> list[Line]:
    waivers = {waiver.gate: waiver for waiver in candidate.pipeline.release.waivers}
    lines = []
    for number, (name, (title, gate)) in enumerate(GATES.items(), 1):
        console.heading(number, len(GATES), name, title)
        lines.append(Line(name, title, _find(candidate, title, gate), waivers.get(name), today))
        style = {"passed": "green", "failed": "bold red", "not run": "yellow"}[lines[-1].finding.verdict]
        console.say(f"  {lines[-1].words}", style)
    return lines


def _find(candidate: Candidate, title: str, gate: Any) -> Finding:
    """Evaluate a gate; what keeps it from being evaluated is why it was not run.

    A check of its own that fails on the way, such as that any rate holds, is one that the gate allows none of.
    """
    try:
        return gate(candidate)
    except LaunchpadError as error:
        problems = [f"{problem.where}: {problem.what}".removeprefix(": ") for problem in error.problems]
        if isinstance(error, GateFailed):
            return count(title, problems)
        why = "; ".join(problems)
    except ServerError as error:
        why = str(error)
    return Finding([Gate(title, None, "<=", None, why=why.replace("\n", " "))])


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _said(candidate: Candidate) -> dict[str, Any]:
    server = Server.load(candidate.layout)
    return {
        "made": now().isoformat(timespec="seconds"),
        "revision": _revision(candidate.layout.root),
        "configuration": server.content if server else "no server",
        "backend": f"{server.backend} ({server.why})" if server else "none",
        "machine": machine.describe(),
        "models": exported(candidate.layout, candidate.pipeline),
    }


def _revision(root: Path) -> str:
    """Return the source's revision, marked where the working tree differs; `unknown` outside of git."""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+changes", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _show_plan(context: Context, today: datetime.date) -> None:
    waivers = {waiver.gate: waiver for waiver in context.declaration.pipeline.release.waivers}
    rows = []
    for name, (title, gate) in GATES.items():
        waiver = waivers.get(name)
        until = f"{'expired' if waiver.expires < today else 'waived until'} {waiver.expires}" if waiver else ""
        rows.append((name, title, (gate.__doc__ or "").splitlines()[0], until))
    console.table("What would be evaluated", ("gate", "", "holds when", "waiver"), rows)


def _show(candidate: Candidate, lines: list[Line]) -> None:
    rows = [
        (
            line.gate,
            gate.name,
            gate.measured,
            gate.required if gate.limit is not None else "–",
            console.verdict(gate.passed),
        )
        for line in lines
        for gate in line.finding.gates
    ]
    console.say("")
    console.table(f"Release {candidate.version}", ("gate", "what", "measured", "required", ""), rows)
    for line in lines:
        if line.waiver:
            console.say(f"  {line.gate}: {line.words}", "yellow")
    console.say(f"  {candidate.layout.relative(candidate.published / record.CHECKLIST)}")


def _problem(candidate: Candidate, line: Line) -> Problem:
    gates = [gate for gate in line.finding.gates if gate.passed is not True]
    required = [f", must be {gate.required}" if gate.value is not None else "" for gate in gates]
    what = "; ".join(f"{gate.name}: {gate.measured}{need}" for gate, need in zip(gates, required, strict=True))
    where = f"gate {line.gate}"
    if line.expired and line.waiver:
        return Problem(f"{what}; its waiver expired on {line.waiver.expires}", where, "mend it, or renew the waiver")
    if line.finding.verdict == "not run":
        fix = f"make it run, or waive it: release.waivers: [{{gate: {line.gate}, reason: ..., expires: YYYY-MM-DD}}]"
        return Problem(what, where, fix)
    return Problem(what, where, "; ".join(line.finding.notes[:2]))
