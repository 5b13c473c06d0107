"""Notes on changes of configuration: what, why, and the figures before and after, as Markdown in `reports/notes/`.

A note's head, between `---`, is YAML that this module reads again; what people add below OWN is kept. The notes are the
truth, the store's table `changes` follows from them.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from launchpad import declaration, files, machine
from launchpad.declaration import FILE, Declaration
from launchpad.errors import DeclarationError, LaunchpadError
from launchpad.layout import Layout
from launchpad.runfolder import SUMMARY
from launchpad.stage import spread

Source = Literal["hand", "tune", "autotune", "person"]
"""Who changed it: someone in pipeline.yaml, `invoke tune`, `invoke autotune`; `person` is a note without a change."""

INDEX = "README.md"
OWN = "<!-- What stands below this line is kept. -->"
WATCHED = ("models", "serving", "objectives", "autotune", "kubernetes")
"""Parts of the declaration whose changes are noted; the others say how to measure, not what is served."""
UNGIVEN = "no reason was given"


@dataclass(frozen=True)
class Note:
    """A note, in the file `name`.

    what: {dotted key: (before, after)}. evidence: Markdown, for figures that are no run's. own: what people added.
    """

    name: str
    at: datetime.datetime
    source: Source
    title: str
    what: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    why: str = ""
    run_before: str | None = None
    run_after: str | None = None
    evidence: str = ""
    own: str = ""

    def row(self) -> dict[str, Any]:
        """Return the note as a row of the store's table `changes`."""
        kept = ("at", "source", "title", "why", "run_before", "run_after")
        what = {key: list(pair) for key, pair in self.what.items()}
        return {**{key: getattr(self, key) for key in kept}, "note": self.name, "what": what}


def record(
    declared: Declaration,
    source: Source,
    what: Mapping[str, tuple[Any, Any]],
    why: str,
    *,
    title: str = "",
    run_before: str | None = None,
    run_after: str | None = None,
    evidence: str = "",
) -> Path:
    """Note a change of configuration, in a file, in the index and in the store; return the file.

    what: {dotted key: (before, after)}. run_before: the newest run on this machine unless given. A note without
    `run_after` gets it from the next load test. Where the store is away a warning says so.
    """
    layout = Layout(declared.root)
    at = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    before = run_before or _newest_run(layout, machine.describe())
    note = Note("", at, source, title or _title(what), dict(what), why, before, run_after, evidence)
    note = dataclasses.replace(note, name=_free_name(layout.notes, at, source))
    _keep(declared, [note])
    return layout.notes / note.name


def add(declared: Declaration, text: str) -> Path:
    """Write a person's note; return its file. Where pipeline.yaml was changed since the last run, it is the reason why.

    Raises DeclarationError for a text of nothing, and for bytes that are no text.
    """
    text = text.strip()
    if not text:
        raise DeclarationError("a note without a word says nothing", fix='invoke note "what you saw or did, and why"')
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DeclarationError(
            "the note is not UTF-8 text", fix="type it again, in a terminal that sends UTF-8"
        ) from None
    layout = Layout(declared.root)
    before = _newest_run(layout, machine.describe())
    what = _unnoted(layout, declared, before)
    if what:
        return record(declared, "hand", what, text, run_before=before)
    title, _, rest = text.partition("\n")
    return record(declared, "person", {}, rest.strip(), title=title, run_before=before)


def after_run(declared: Declaration, run: str) -> list[Path]:
    """Note what was changed by hand since the run before, and give open notes their figures after; return the files.

    A run that did not complete says nothing of a configuration, and leaves the notes open.
    """
    layout = Layout(declared.root)
    summary = files.read_mapping(layout.results(run) / SUMMARY)
    if summary.get("status") != "completed":
        return []
    written = []
    before = _newest_run(layout, summary.get("machine"), other_than=run)
    what = _unnoted(layout, declared, before)
    if what:
        written.append(record(declared, "hand", what, UNGIVEN, run_before=before, run_after=run))
    started = moment(summary["started"])
    opened = [note for note in read_all(layout) if note.source != "person" and note.run_after is None]
    closed = [dataclasses.replace(note, run_after=run) for note in opened if note.at <= started]
    if closed:
        _keep(declared, closed)
    return written + [layout.notes / note.name for note in closed]


def refresh(layout: Layout, run: str) -> None:
    """Write the notes with figures of a run again, which has a report now."""
    for note in read_all(layout):
        if note.source != "person" and run in (note.run_before, note.run_after):
            files.write_text(layout.notes / note.name, render(note, layout))


def read_all(layout: Layout) -> list[Note]:
    """Return the notes that can be read, the oldest first."""
    found = (_read(path) for path in sorted(layout.notes.glob("*.md")) if path.name != INDEX)
    return sorted((note for note in found if note), key=lambda note: (note.at, note.name))


def unread(layout: Layout, read: list[Note]) -> list[str]:
    """Return the names of the notes that are not among those that were read."""
    return sorted({path.name for path in layout.notes.glob("*.md")} - {note.name for note in read} - {INDEX})


def _read(path: Path) -> Note | None:
    """Return the note in a file; None where its head is not whole."""
    _, fence, rest = path.read_text(encoding="utf-8", errors="replace").partition("---\n")
    head, end, body = rest.partition("\n---\n")
    try:
        facts = yaml.safe_load(head) if fence and end else None
        assert isinstance(facts, dict)
        facts["what"] = {key: (before, after) for key, (before, after) in (facts.get("what") or {}).items()}
        own = body.partition(OWN)[2].strip()
        note = Note(name=path.name, own=own, **facts | {"at": moment(facts["at"])})
        return note if _is_whole(note) else None
    except (AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError, yaml.YAMLError):
        return None


def _is_whole(note: Note) -> bool:
    """Tell whether a head that people may have edited has what it says in the types that it is kept with."""
    runs = (run for run in (note.run_before, note.run_after) if run is not None)
    texts = (note.source, note.title, note.why, note.evidence, *runs, *note.what)
    return all(isinstance(text, str) for text in texts) and note.source in WORDS and bool(json.dumps(note.what))


def moment(value: Any) -> datetime.datetime:
    """Return a moment as files have it, ISO 8601, in UTC where it names no zone."""
    at = value if isinstance(value, datetime.datetime) else datetime.datetime.fromisoformat(str(value))
    return at if at.tzinfo else at.replace(tzinfo=datetime.UTC)


def _keep(declared: Declaration, notes: list[Note]) -> None:
    from launchpad.store import Store, attempt

    layout = Layout(declared.root)
    for note in notes:
        files.write_text(layout.notes / note.name, render(note, layout))
    files.write_text(layout.notes / INDEX, index(layout))

    def put(store: Store) -> None:
        for note in notes:
            store.put_change(note.row())

    attempt(declared, put)


def render(note: Note, layout: Layout) -> str:
    """Return a note as Markdown, with the figures of its runs as far as their folders are there."""
    head = {
        "at": note.at.isoformat(),
        "source": note.source,
        "title": note.title,
        "what": {key: list(pair) for key, pair in note.what.items()},
        "why": note.why,
        "run_before": note.run_before,
        "run_after": note.run_after,
        "evidence": note.evidence,
    }
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=110)
    parts = [f"---\n{text}---", f"# {note.title}", f"{note.at:%Y-%m-%d %H:%M} UTC, {WORDS[note.source]}."]
    parts += _changes(note)
    parts += [note.why] if note.source == "person" else [f"**Why:** {note.why or UNGIVEN}"]
    parts += [note.evidence] if note.evidence else []
    parts += _figures(note, layout) if note.source != "person" else []
    parts += [OWN, note.own]
    return "\n\n".join(part for part in parts if part) + "\n"


WORDS = {
    "hand": "changed by hand in pipeline.yaml",
    "tune": "changed by `invoke tune`",
    "autotune": "changed by `invoke autotune`",
    "person": "a note",
}


def _changes(note: Note) -> list[str]:
    rows = [f"| `{key}` | {_shown(before)} | {_shown(after)} |" for key, (before, after) in note.what.items()]
    return ["\n".join(["| what | before | after |", "| --- | --- | --- |", *rows])] if rows else []


def _figures(note: Note, layout: Layout) -> list[str]:
    runs = _runs(note, layout)
    names = [_linked(run, layout) if run else "–" for run in (note.run_before, note.run_after)]
    lines = ["| | before | after |", "| --- | ---: | ---: |", f"| run | {names[0]} | {names[1]} |"]
    for title, figure in FIGURES.items():
        lines.append(f"| {title} | {' | '.join(_figure(run, figure) for run in runs)} |")
    return ["\n".join(lines), _caution(note, *runs)]


def _linked(run: str, layout: Layout) -> str:
    """Return a run with a link to its report; to its figures where it has none."""
    report = layout.report(run) / "report.md"
    target = report if report.exists() else layout.results(run) / SUMMARY
    return f"[{run}]({Path(os.path.relpath(target, layout.notes)).as_posix()})"


def _runs(note: Note, layout: Layout) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the summaries of the runs before and after, as far as they are there."""
    before, after = (
        (files.read_mapping(layout.results(run) / SUMMARY) or None) if run else None
        for run in (note.run_before, note.run_after)
    )
    return before, after


FIGURES = {
    "profile": "profile",
    "requests/s": "throughput_rps",
    "p50, ms": "p50_ms",
    "p95, ms": "p95_ms",
    "p99, ms": "p99_ms",
    "success rate": "success_rate",
}


def _figure(summary: dict[str, Any] | None, name: str) -> str:
    if not summary:
        return "–"
    if name == "profile":
        return str(summary["profile"]["name"])
    value = (summary.get("totals") or {}).get(name)
    if value is None:
        return "–"
    return f"{value:.4%}" if name == "success_rate" else f"{value:,.1f}"


def _caution(note: Note, before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    if note.run_after is None:
        return "The next load test adds the figures after."
    if before is None or after is None:
        lacking = [run for run, found in ((note.run_before, before), (note.run_after, after)) if run and not found]
        return f"The folder of {' and '.join(lacking)} is not here." if lacking else "There is no run from before."
    if _load(before) != _load(after):
        return "The two runs had different load: their figures do not compare."
    if before.get("machine") != after.get("machine"):
        return "The two runs were made on different machines: their figures do not compare."
    return f"`invoke compare {note.run_before} {note.run_after}` says whether the difference is noise."


def _load(summary: dict[str, Any]) -> tuple[Any, Any]:
    """Return what load a run had; how long is no part of it, unless the load changes over that time."""
    profile = summary["profile"]
    left_out = () if profile.get("shape") else ("name", "duration_s")
    return {key: value for key, value in profile.items() if key not in left_out}, summary.get("traffic")


def index(layout: Layout) -> str:
    """Return the index page: the notes by date, the newest first."""
    notes = read_all(layout)
    lines = ["# Notes on changes of configuration", "", "The newest first; `invoke note` adds one.", ""]
    lines += ["| date (UTC) | by | what | p99, ms | |", "| --- | --- | --- | ---: | --- |"]
    for note in reversed(notes):
        p99 = "" if note.source == "person" else _p99(note, layout)
        cells = (f"{note.at:%Y-%m-%d %H:%M}", note.source, _cell(note.title), p99, f"[note]({note.name})")
        lines.append(f"| {' | '.join(cells)} |")
    lacking = unread(layout, notes)
    lines += ["", f"Without a head that can be read: {', '.join(lacking)}"] if lacking else []
    return "\n".join(lines) + "\n"


def _p99(note: Note, layout: Layout) -> str:
    """Return p99 before and after in a cell, with a word where the two do not compare."""
    before, after = _runs(note, layout)
    text = f"{_figure(before, 'p99_ms')} → {_figure(after, 'p99_ms')}"
    return f"{text} (other load)" if before and after and _load(before) != _load(after) else text


def _title(what: Mapping[str, tuple[Any, Any]]) -> str:
    """Return a change in a line, such as `max_batch_size 16 → 32`."""
    said = [f"{key.rpartition('.')[2]} {_plain(before)} → {_plain(after)}" for key, (before, after) in what.items()]
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def _shown(value: Any) -> str:
    return "–" if value is None else f"`{_cell(_plain(value))}`"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _free_name(folder: Path, at: datetime.datetime, source: str) -> str:
    """Return a file name that no note has, and take it."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        name = f"{at:%Y%m%d-%H%M%S}-{source}{f'-{number}' if number > 1 else ''}.md"
        try:
            (folder / name).touch(exist_ok=False)
            return name
        except FileExistsError:
            number += 1


def _newest_run(layout: Layout, measured_on: dict[str, Any] | None, other_than: str = "") -> str | None:
    """Return the newest run of a machine that completed; None if there is none."""
    for path in sorted(layout.results("x").parent.glob(f"*/{SUMMARY}"), reverse=True):
        summary = files.read_mapping(path)
        fits = summary.get("status") == "completed" and summary.get("machine") == measured_on
        if fits and path.parent.name != other_than:
            return path.parent.name
    return None


def _unnoted(layout: Layout, declared: Declaration, before: str | None) -> dict[str, tuple[Any, Any]]:
    """Return what differs in the declaration from the one of a run, without what a note says already."""
    if before is None or not (layout.results(before) / FILE).exists():
        return {}
    try:
        earlier = _flat(declaration.load(layout.results(before)))
    except LaunchpadError:  # written for another version of this project
        return {}
    now = _flat(declared)
    noted = [note.what for note in read_all(layout) if note.run_before == before]
    known = {key: pair[1] for what in noted for key, pair in what.items()}
    changed = {key: (earlier.get(key), now.get(key)) for key in earlier | now if earlier.get(key) != now.get(key)}
    return {key: pair for key, pair in changed.items() if key not in known or known[key] != pair[1]}


def _flat(declared: Declaration) -> dict[str, Any]:
    document = declared.pipeline.model_dump(mode="json")
    parts = {key: value for name in WATCHED for key, value in spread(name, document[name]).items()}
    return {key: value for key, value in parts.items() if value not in (None, {}, [])}
