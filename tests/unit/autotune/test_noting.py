"""What autotune leaves behind of a change."""

from __future__ import annotations

import pytest

from launchpad import notes
from launchpad.spec import BatchQueue
from launchpad.tune.autotune.control import Decision, Observation
from launchpad.tune.autotune.journal import Journal
from launchpad.tune.autotune.tuner import Entry

TEXT = "name: tiny\nmodels:\n  tiny: {source: m.py:f}\nstore: sqlite:///store.db\n"
SMALL, LARGE = BatchQueue(max_batch_size=4), BatchQueue(max_batch_size=8)


def entry(outcome: str) -> Entry:
    decision = Decision("change", LARGE, "a reason")
    return Entry(1.7e9, "a server", "tiny", 2, SMALL, decision, Observation(1.0, 10.0, 100, 0, p99_ms=20.0), outcome)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("applied", "`models.tiny.batching.max_batch_size`"),
        ("applied, though not to the end: it does not let go", "`models.tiny.batching.max_batch_size`"),
        ("could not be applied: no answer", "It was not applied: could not be applied: no answer"),
    ],
)
def test_a_note_says_what_changed_or_why_nothing_did(declare, outcome, said):
    declared = declare(TEXT)
    Journal(declared, "threshold").keep(entry(outcome))
    (note,) = (path for path in (declared.root / "reports" / "notes").glob("*.md") if path.name != notes.INDEX)
    text = note.read_text()
    assert said in text and "refused" not in text


def test_a_disk_that_is_full_ends_nothing(declare, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(notes, "record", full)
    Journal(declare(TEXT), "threshold").keep(entry("applied"))
    assert "no note of it could be written: No space left" in capsys.readouterr().out
