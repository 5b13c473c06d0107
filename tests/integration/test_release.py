"""A release as its user makes it: every gate on a real server, under real load, and what comes of it."""

from __future__ import annotations

import json
import shutil
from datetime import date, timedelta
from pathlib import Path

import pytest
import yaml

from launchpad import files, pipeline, runfolder
from launchpad.errors import EnvironmentFault
from launchpad.exclusive import exclusive
from launchpad.release import command, record
from launchpad.release.candidate import Candidate
from launchpad.release.gates import measured, rehearsal

REPOSITORY = Path(__file__).parents[2]
LATER = date.today() + timedelta(days=30)
TIMED = ("cold-start", "objectives")
"""Gates that a busy machine may fail."""
ABSENT = ("image", "digest", "manifests", "vulnerabilities", "capacity", "regression")
"""Gates that a machine without engine and registry, a first release and a declaration without a target cannot pass."""

UNTRAINED = """
import keras

def build(seed):
    return keras.Sequential([keras.Input((784,), name="pixels"), keras.layers.Dense(10, activation="softmax")])
"""


@pytest.fixture(scope="module")
def released(shared_checkout):
    """A checkout whose version 1.0.0 was released, each state of the rehearsal held for a moment only."""
    waivers = [{"gate": gate, "reason": "not here", "expires": LATER} for gate in (*ABSENT, *TIMED)]
    shared_checkout.declare(
        release={"profile": "smoke", "soak": {"duration_s": 10, "memory_mib_per_hour": 100000}, "waivers": waivers},
        objectives={"p99_ms": 100, "error_rate": 0.001},  # without a target no capacity search, which takes a minute
    )
    shutil.copy2(REPOSITORY / "requirements.txt", shared_checkout.root)
    for task in ("build", "schema"):
        shared_checkout.invoke(task)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rehearsal, "HOLD_S", 0.4)
        command.release(shared_checkout.root, "1.0.0")
    return shared_checkout


def evidence(checkout, version="1.0.0"):
    return json.loads((record.folder(checkout.layout, version) / record.EVIDENCE).read_text())


def test_a_release_passes_its_gates_and_leaves_the_evidence(released):
    kept = evidence(released)
    assert kept["passed"]
    verdicts = {row["gate"]: row["verdict"] for row in kept["gates"]}
    assert [gate for gate, verdict in verdicts.items() if verdict != "passed" and gate not in (*ABSENT, *TIMED)] == []
    assert all(verdicts[gate] != "not run" for gate in TIMED)
    for row in kept["gates"]:
        assert all((released.root / path).exists() for path in row["evidence"]), row
    text = (record.folder(released.layout, "1.0.0") / record.CHECKLIST).read_text()
    assert f"waived until {LATER}: not here" in text and "image built of what is here: not run: " in text


def test_the_rehearsal_went_back_moved_labels_and_met_a_broken_version_with_no_request_lost(released):
    rehearsed = json.loads((record.folder(released.layout, "1.0.0") / "rehearsal.json").read_text())
    for model in ("digits-mlp", "digits-cnn"):
        steps = [step["what"] for step in rehearsed["steps"] if step["model"] == model]
        assert steps[1:] == [
            "withdrew 2",
            "a canary beside the stable version",
            "the canary is stable",
            "back to the stable version",
            "withdrew the canary",
            "published a version that cannot be loaded",
        ]
    assert all(step["held"] for step in rehearsed["steps"])
    assert rehearsed["requests by label"] > 50 and not rehearsed["failures by label"] and not rehearsed["errors"]
    status = released.invoke("status", check=True).stdout
    assert "AVAILABLE" in status  # and it serves what it served before
    home = record.folder(released.layout, "1.0.0") / "rehearsal"
    loaded = {row["second"] for row in runfolder.read_history(home)}
    assert max(loaded) >= max(step["at_s"] for step in rehearsed["steps"])  # from its first step to its last
    assert all((run / "summary.json").exists() for run in released.runs())


def test_a_version_that_was_released_is_not_released_again_by_mistake(released):
    again = released.invoke("release", "1.0.0")
    assert again.returncode == 2 and "1.0.0 was released already" in again.stdout


def test_a_release_that_is_refused_leaves_alone_the_one_that_runs(released):
    under_way = files.staged(record.folder(released.layout, "1.0.1"))
    under_way.mkdir()
    with exclusive(released.layout.lock), pytest.raises(EnvironmentFault, match="another pipeline"):
        command.release(released.root, "1.0.1")
    assert under_way.exists()
    under_way.rmdir()


def test_the_next_release_is_held_against_this_one(released):
    before = evidence(released)
    context = pipeline.context(released.root)
    folder = record.folder(released.layout, "1.1.0")
    candidate = Candidate(context, "1.1.0", folder, folder, record.previous(released.layout, "1.1.0"))
    folder.mkdir()
    measured.objectives(candidate)
    finding = measured.regression(candidate)
    assert {gate.name for gate in finding.gates} >= {
        "p99 of digits-mlp surely slower",
        "p50 of digits-cnn surely slower",
    }
    assert before["runs"]["objectives"] in finding.notes[0]
    summary = dict(candidate.measured or {})
    candidate.measured = {**summary, "machine": {**summary["machine"], "cores": 64}}
    assert "not alike: machine" in measured.regression(candidate).gates[0].why


def test_two_releases_are_compared(released):
    other = {**evidence(released), "version": "0.9.0", "revision": "an earlier one", "made": "2020-01-01"}
    path = record.folder(released.layout, "0.9.0") / record.EVIDENCE
    path.parent.mkdir()
    path.write_text(json.dumps(other))
    done = released.invoke("release", "--diff", "0.9.0", "1.0.0", check=True)
    assert "an earlier one" in done.stdout
    gone = released.invoke("release", "--diff", "0.8.0", "1.0.0")
    assert gone.returncode == 2 and "0.8.0 is not there" in gone.stdout


def test_a_label_that_does_not_move_is_seen(released, monkeypatch):
    for name in ("_go_back", "_meet_broken"):  # they take no part in it
        monkeypatch.setattr(rehearsal, name, lambda *_: None)
    monkeypatch.setattr(rehearsal.Publisher, "label", lambda *_: None)
    monkeypatch.setattr(rehearsal, "HOLD_S", 0.4)
    context = pipeline.context(released.root)
    folder = record.folder(released.layout, "1.2.0")
    folder.mkdir()
    candidate = Candidate(context, "1.2.0", folder, folder, None)
    (missed, failed) = rehearsal.rollback(candidate).gates
    assert missed.value and failed.value  # labels that lead nowhere: requests by them fail


def test_going_back_to_other_weights_loses_no_request(released, monkeypatch):
    """Last in the module: from here on the checkout declares another version."""
    monkeypatch.setattr(rehearsal, "HOLD_S", 0.4)
    monkeypatch.setattr(rehearsal, "LEAST_RPS", 100.0)
    (released.root / "untrained.py").write_text(UNTRAINED)
    declared = yaml.safe_load((released.root / "pipeline.yaml").read_text())["models"]
    declared["digits-mlp"] |= {"source": "untrained.py:build", "version": 2, "acceptance": {}}
    released.declare(models=declared)
    for task in (("export",), ("configure",), ("launch", "--force")):
        released.invoke(*task, check=True)
    folder = record.folder(released.layout, "2.0.0")
    folder.mkdir()
    before = evidence(released)
    candidate = Candidate(pipeline.context(released.root), "2.0.0", folder, folder, before)

    finding = rehearsal.rollback(candidate)

    assert finding.verdict == "passed", finding
    assert "digits-mlp: back to version 1 of release 1.0.0" in finding.notes
    assert "digits-cnn: release 1.0.0 has version 1 too; rehearsed with it" in finding.notes
    rehearsed = json.loads((folder / "rehearsal.json").read_text())
    assert rehearsed["answers of earlier weights"]["digits-mlp"] > 10
