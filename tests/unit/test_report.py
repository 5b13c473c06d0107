"""The report of a run: what it says, what it compares with, and what it does when files are missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launchpad.layout import Layout
from launchpad.loadtest import summary
from launchpad.loadtest.recorder import Recorder
from launchpad.loadtest.writer import RunWriter
from launchpad.report import charts, facts
from launchpad.report.stage import write
from launchpad.spec import Objectives

LINE = "tiny serving_default"
SERVER = {
    "began": "2026-01-01T00:00:01+00:00",
    "use": [[0, None, 400.0, None, None], [1, 1.5, 410.0, None, None], [2, 1.0, 405.0, None, None]],
    "answered": 600,
    "failed": 0,
    "refused": 0,
    "restarted": False,
    "latency_mean_ms": 8.0,
    "runtime_mean_ms": 7.0,
    "queued": 300,
    "queueing_mean_ms": 4.0,
    "queueing_p99_ms": 9.0,
    "batches": {"bounds": [1, 2, 4, 8, 16], "counts": [0, 10, 30, 0, 60, 0], "mean": 7.5},
    "padding": 0.0,
    "trouble": "",
}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def keep(layout: Layout, run: str, latency_ms: float = 10.0, **changes) -> dict:
    """Write the folder of a run whose latencies rise a little from a base; return its summary."""
    folder = layout.results(run)
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "server.flags").write_text("--port=1\n")
    recorder, writer = Recorder([LINE], open_loop=False), RunWriter(folder)
    for second in range(3):
        for index in range(200):
            recorder.answered(LINE, 0, 0, int((latency_ms + (index % 20) / 10) * 1e6))
        writer.add(second, recorder.take())
    writer.close()
    measured = summary.of_folder(folder, {LINE: "tiny"}, 3.0)
    gates = summary.objectives(measured, Objectives(p99_ms=100.0))
    document = {
        **{"run": run, "status": "completed", "why": "", "started": "2026-01-01T00:00:00+00:00", "warmup": []},
        "profile": {"name": "steady", "title": "4 users", "loop": "closed", "users": 4, "duration_s": 3.0},
        "traffic": [{"model": "tiny"}],
        "configuration": "c" * 64,
        "server": {"backend": "embedded", "why": "declared", "instance": "i", "ready_s": 1.0},
        "machine": {"processor": "P", "cores": 2, "memory_gib": 4, "system": "L", "python": "3", "tensorflow": "2"},
        "generator": summary.generator_health(folder, 1, {0: 0.4}, 0),
        "objectives": [gate.as_dict() for gate in gates],
        **measured,
    } | changes
    (folder / "summary.json").write_text(json.dumps(document))
    (folder / "server.json").write_text(json.dumps(SERVER))
    return document


def page(layout: Layout, run: str, **how) -> str:
    write(layout, run, layout.report(run), **how)
    return (layout.report(run) / "report.html").read_text()


def test_the_page_stands_alone_and_every_chart_says_in_words_what_it_shows(layout):
    keep(layout, "run-1")
    text = page(layout, "run-1")
    assert len(text) < 1_000_000 and not re.search(r"(src|href)=\"(https?:)?//", text)
    drawn = set(re.findall(r'<figure role="img" aria-label="([^"]+)">', text))
    assert len(drawn) == text.count("<svg") == 7
    for words in (
        "100 batches of 7.50 examples on average; 60% had 8–15.",
        "queueing 2.00 ms, compute 5.00 ms, decoding and encoding 1.00 ms, sockets, network, client 2.9",
        "The server used 1.25 of 2 cores on average, 1.50 at most.",
        "Resident memory went from 400 to 405 MiB, 410 MiB at most.",
    ):
        assert any(words in said for said in drawn), words
    markdown = (layout.report("run-1") / "report.md").read_text()
    assert "](batches.svg)" in markdown and "100 batches of 7.50 examples" in markdown


def test_the_curve_goes_no_further_than_so_many_requests_can_tell(layout):
    gathered = facts.gather(layout, "run-1", keep(layout, "run-1"))
    assert gathered.percentiles["tiny"][-1][0] == 99.5  # of 600 requests 3 lie above it, not one above p99.9


def test_a_run_is_compared_with_the_one_before_under_the_same_load(layout):
    keep(layout, "run-1", latency_ms=10.0)
    keep(layout, "run-2", latency_ms=90.0, traffic=[{"model": "tiny", "batch": 8}])
    keep(layout, "run-3", latency_ms=90.0, profile={"name": "other", "title": "", "loop": "closed", "users": 64})
    keep(layout, "run-3-interrupted", latency_ms=90.0, status="interrupted")
    document = keep(layout, "run-4", latency_ms=20.0)
    (beside,) = facts.gather(layout, "run-4", document).comparisons
    assert beside.run == "run-1" and {row.verdict for row in beside.rows} == {"slower"}
    assert "p99 of tiny is slower" in beside.words


def test_what_is_within_the_interval_is_called_noise(layout):
    keep(layout, "run-1")
    (beside,) = facts.gather(layout, "run-2", keep(layout, "run-2")).comparisons
    assert beside.words == "Against run-1 no percentile moved by more than noise." and not beside.caution


def test_a_named_baseline_is_compared_with_too_and_another_machine_is_said(layout):
    keep(layout, "run-1", latency_ms=40.0, machine={"processor": "Q", "cores": 64})
    keep(layout, "run-2")
    keep(layout, "run-3")
    text = page(layout, "run-3", baseline="run-1")
    assert "With the run before <code>run-2</code>" in text and "With the baseline <code>run-1</code>" in text
    assert "The runs differ in machine too." in text and ">faster<" in text


def test_a_baseline_that_is_gone_is_said_to_be(layout):
    keep(layout, "run-1")
    assert "Run nowhere is not here: nothing to compare with." in page(layout, "run-1", baseline="nowhere")


def test_a_change_of_configuration_in_the_run_is_marked_and_one_outside_is_not(layout):
    document = keep(layout, "run-1")
    layout.notes.mkdir(parents=True)
    for name, at, after in (("a", "00:00:02", "null"), ("b", "00:10:00", "null"), ("before it", "00:00:02", "run-1")):
        note = f"at: 2026-01-01T{at}+00:00\nsource: hand\ntitle: change {name}\nwhat: {{serving.x: [1, 2]}}\n"
        note += f"run_after: {after}\n"
        (layout.notes / f"{name}.md").write_text(f"---\n{note}---\n")
    gathered = facts.gather(layout, "run-1", document)
    assert [(change.second, change.title) for change in gathered.changes] == [(1.0, "change a")]
    svg, words = charts.draw(gathered)["latency"]
    assert "configuration changed" in svg and "Configuration changed: change a at 1 s." in words


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        ("latency.hlog", {"throughput", "batches", "cpu"}),
        ("history.csv", {"percentiles", "batches", "cpu"}),
        ("server.json", {"latency", "throughput", "percentiles"}),
    ],
)
def test_a_missing_file_is_named_and_the_rest_is_shown(layout, file, shown):
    document = keep(layout, "run-1")
    (layout.results("run-1") / file).unlink()
    gathered = facts.gather(layout, "run-1", document)
    assert f"loadtests/results/run-1/{file}" in gathered.missing
    assert shown <= charts.draw(gathered).keys()
    assert f"loadtests/results/run-1/{file}" in page(layout, "run-1")


def test_a_file_that_is_no_csv_is_named(layout):
    document = keep(layout, "run-1")
    (layout.results("run-1") / "history.csv").write_bytes(b"second,line\n\xff\xfe,x\n")
    assert "loadtests/results/run-1/history.csv" in facts.gather(layout, "run-1", document).missing


def test_a_gpu_is_shown_where_there_was_one(layout):
    document = keep(layout, "run-1")
    use = [[second, 1.0, 400.0, 0.5, 2048.0] for second in range(3)]
    (layout.results("run-1") / "server.json").write_text(json.dumps(SERVER | {"use": use}))
    _, words = charts.draw(facts.gather(layout, "run-1", document))["gpu"]
    assert words == "The busiest GPU worked 50% of the time; GPU memory was 2,048 MiB at most."


def test_the_generators_part_is_told(layout):
    limited = {"processes": 2, "cpu": 0.99, "send_lag_p99_ms": 12.0, "held": 7, "limited": True, "why": "no core left"}
    text = page(layout, keep(layout, "run-1", generator=limited)["run"])
    assert "yes: no core left" in text and "99% of a core" in text and "12.00 ms" in text


def test_what_a_killed_export_left_is_no_version(layout):
    for name in ("1", "10", ".2.new", "²"):
        layout.evidence("a", 1).with_name(name).mkdir(parents=True)
    assert facts._manifest(layout, "a") == layout.evidence("a", 10) / "manifest.json"
