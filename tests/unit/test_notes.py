"""Notes: what changed, why, and what came of it, in files that people and this project read."""

from __future__ import annotations

import datetime
import json
import sqlite3

import pytest

from launchpad import files, machine, notes
from launchpad.errors import DeclarationError
from launchpad.layout import Layout

TEXT = """\
name: tiny
models:
  tiny: {{source: m.py:f}}
serving:
  batching: {batching}
store: sqlite:///store.db
"""
SMALL = "{max_batch_size: 16, num_batch_threads: 2}"
LARGE = "{max_batch_size: 32, num_batch_threads: 2}"


@pytest.fixture
def ran(declare):
    """Have a run made with batching parameters; gives the declaration."""

    def run(name: str, batching: str = SMALL, p99_ms: float = 10.0, **changes):
        declared = declare(TEXT.format(batching=batching))
        folder = Layout(declared.root).results(name)
        summary = {
            "run": name,
            "status": "completed",
            "started": f"2099-01-01T00:00:0{name[-1]}+00:00",
            "machine": machine.describe(),
            "profile": {"name": "steady"},
            "totals": {"throughput_rps": 1234.5, "p50_ms": 1.0, "p95_ms": 2.0, "p99_ms": p99_ms, "success_rate": 1.0},
        }
        files.write_json(folder / "summary.json", summary | changes)
        files.write_text(folder / "pipeline.yaml", TEXT.format(batching=batching))
        return declared

    return run


def the_note(declared) -> tuple[notes.Note, str]:
    (note,) = notes.read_all(Layout(declared.root))
    return note, (Layout(declared.root).notes / note.name).read_text()


def test_a_change_by_hand_is_noted_by_the_next_run_with_the_figures_of_both(ran):
    ran("run-1", p99_ms=20.0)
    notes.after_run(ran("run-2", LARGE, p99_ms=12.5), "run-2")
    note, text = the_note(ran("run-2", LARGE, p99_ms=12.5))
    assert note.source == "hand" and dict(note.what) == {"serving.batching.max_batch_size": (16, 32)}
    assert (note.run_before, note.run_after) == ("run-1", "run-2")
    assert "| p99, ms | 20.0 | 12.5 |" in text and "[run-2](../../loadtests/results/run-2/summary.json)" in text
    assert "`invoke compare run-1 run-2` says whether the difference is noise." in text
    assert notes.UNGIVEN in text


def test_runs_of_the_same_declaration_leave_no_note(ran):
    ran("run-1")
    assert notes.after_run(ran("run-2"), "run-2") == []


def test_batching_that_is_turned_on_is_told_from_batching_that_was_off(ran):
    ran("run-1", "off")
    notes.after_run(ran("run-2"), "run-2")
    note, text = the_note(ran("run-2"))
    assert note.what["serving.batching"] == ("off", None)
    assert note.what["serving.batching.max_batch_size"] == (None, 16)
    assert "| `serving.batching.max_batch_size` | – | `16` |" in text


def test_a_persons_words_are_the_reason_of_what_they_just_changed(ran, declare):
    ran("run-1")
    changed = declare(TEXT.format(batching=LARGE))
    notes.add(changed, "the evening's peak fills batches of 16")
    notes.after_run(ran("run-2", LARGE), "run-2")
    note, text = the_note(changed)
    assert note.source == "hand" and note.why == "the evening's peak fills batches of 16"
    assert note.run_after == "run-2" and "**Why:** the evening's peak" in text


def test_a_note_without_a_change_is_a_note_of_its_own(ran):
    declared = ran("run-1")
    notes.add(declared, "Looked at the p99 | at night\nIt was the backup.")
    note, text = the_note(declared)
    assert note.source == "person" and "It was the backup." in text and not note.what
    notes.after_run(ran("run-2"), "run-2")
    assert the_note(declared)[0].run_after is None
    assert "Looked at the p99 \\| at night" in (Layout(declared.root).notes / notes.INDEX).read_text()


def test_a_note_of_nothing_is_refused(ran):
    with pytest.raises(DeclarationError, match="without a word"):
        notes.add(ran("run-1"), "  ")


def test_a_change_by_a_tuner_waits_for_its_figures_and_the_store_has_it_too(ran):
    declared = ran("run-1", p99_ms=20.0)
    path = notes.record(declared, "tune", {"models.tiny.batching": ("off", [1, 2])}, "p99 fell in the search")
    assert "The next load test adds the figures after." in path.read_text()
    assert notes.after_run(ran("run-2", p99_ms=10.0), "run-2") == [path]
    assert "| p99, ms | 20.0 | 10.0 |" in path.read_text()
    with sqlite3.connect(declared.root / "store.db") as store:
        seen = store.execute("select source, why, run_before, run_after, what, note from config_history").fetchone()
    assert seen[:4] == ("tune", "p99 fell in the search", "run-1", "run-2")
    assert json.loads(seen[4]) == {"models.tiny.batching": ["off", [1, 2]]} and seen[5] == path.name


def test_what_people_add_to_a_note_stays_when_its_figures_come(ran):
    declared = ran("run-1")
    path = notes.record(declared, "autotune", {"a.b": (1, 2)}, "load rose")
    path.write_text(path.read_text() + "\nI saw this too. — M.\n")
    notes.after_run(ran("run-2"), "run-2")
    text = path.read_text()
    assert text.endswith("I saw this too. — M.\n") and "results/run-2/" in text


def test_a_run_that_failed_or_began_before_the_change_closes_no_note(ran):
    declared = ran("run-1")
    path = notes.record(declared, "autotune", {"a.b": (1, 2)}, "load rose")
    assert notes.after_run(ran("run-2", status="failed"), "run-2") == []
    assert notes.after_run(ran("run-3", started="2020-01-01T00:00:00+00:00"), "run-3") == []
    assert "The next load test adds" in path.read_text()


def test_figures_that_do_not_compare_say_so_in_the_note_and_in_the_index(ran):
    ran("run-1", p99_ms=20.0)
    notes.after_run(ran("run-2", LARGE, profile={"name": "steady", "users": 2}), "run-2")
    declared = ran("run-2", LARGE, profile={"name": "steady", "users": 2})
    assert "different load: their figures do not compare" in the_note(declared)[1]
    assert "20.0 → 10.0 (other load)" in (Layout(declared.root).notes / notes.INDEX).read_text()


def test_runs_of_different_length_under_the_same_load_compare(ran):
    ran("run-1", profile={"name": "steady", "users": 2, "duration_s": 30})
    changes = {"profile": {"name": "steady", "users": 2, "duration_s": 5}}
    notes.after_run(ran("run-2", LARGE, **changes), "run-2")
    assert "`invoke compare run-1 run-2`" in the_note(ran("run-2", LARGE, **changes))[1]


def test_runs_of_another_machine_are_no_run_from_before(ran):
    ran("run-1", machine={"cores": 999})
    assert notes.after_run(ran("run-2", LARGE), "run-2") == []


def test_the_index_lists_notes_by_date_and_names_what_cannot_be_read(ran):
    declared = ran("run-1", p99_ms=20.0)
    layout = Layout(declared.root)
    for day in (1, 3, 2):
        at = datetime.datetime(2026, 1, day, tzinfo=datetime.UTC)
        note = notes.Note(f"{day}.md", at, "tune", f"change {day}", run_before="run-1")
        files.write_text(layout.notes / note.name, notes.render(note, layout))
    files.write_text(layout.notes / "mine.md", "no head\n")
    page = notes.index(layout)
    listed = [line.split(" | ")[2:4] for line in page.splitlines() if "[note]" in line]
    assert listed == [["change 3", "20.0 → –"], ["change 2", "20.0 → –"], ["change 1", "20.0 → –"]]
    assert "Without a head that can be read: mine.md" in page


def test_a_store_that_is_away_costs_no_note(ran, declare, capsys):
    ran("run-1")
    away = declare(TEXT.format(batching=SMALL).replace("sqlite:///store.db", "postgresql+psycopg://u@127.0.0.1:1/x"))
    path = notes.record(away, "tune", {"a.b": (1, 2)}, "why")
    assert path.exists() and "does not answer" in " ".join(capsys.readouterr().out.split())


def test_a_note_that_is_no_text_leaves_no_file(ran):
    declared = ran("run-1")
    with pytest.raises(DeclarationError, match="not UTF-8"):
        notes.add(declared, "caf\udce9")
    assert not list(Layout(declared.root).notes.glob("*.md"))


@pytest.mark.parametrize(
    "head",
    [
        *("title: 5", "source: me", "source: [hand]", "why: {a: 1}", "run_before: 7", "evidence: [x]", "what: [x]"),
        *("what: {a: [1]}", "what: {a: [1, 2, 3]}", "what: {a: [2026-01-01, 1]}", "what: {3: [1, 2]}", "more: 1"),
        "why: " + "[" * 2000,
    ],
)
def test_a_note_whose_head_was_edited_to_other_types_is_passed_over_and_named(ran, head):
    layout = Layout(ran("run-1").root)
    whole = {"at": "2026-01-01T00:00:00+00:00", "source": "hand", "title": "t"}
    lines = [f"{key}: {value}" for key, value in whole.items() if not head.startswith(key)]
    files.write_text(layout.notes / "edited.md", "\n".join(["---", *lines, head, "---", "", "# t", ""]))
    assert notes.read_all(layout) == []
    assert "Without a head that can be read: edited.md" in notes.index(layout)


def test_a_summary_of_another_shape_is_no_run(ran):
    declared = ran("run-1")
    files.write_json(Layout(declared.root).results("run-2") / "summary.json", [1])
    assert notes.after_run(declared, "run-2") == []
    notes.record(declared, "tune", {"a.b": (1, 2)}, "why")
    assert the_note(declared)[0].run_before == "run-1"
