"""The seconds of several processes become one run folder, whatever their order and whatever ends the run."""

from __future__ import annotations

import itertools
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launchpad import runfolder
from launchpad.loadtest.recorder import Recorder
from launchpad.loadtest.writer import LATENESS_S, RunWriter

LINES = ["one serving_default", "two bytes x8, odd/name"]
LATENCIES = st.fixed_dictionaries({line: st.lists(st.integers(1, 30_000_000), max_size=15) for line in LINES})


def part(latencies_us: dict[str, list[int]], failures: dict[str, list[tuple[str, str]]] | None = None) -> dict:
    """Return what a process hands over of a second."""
    recorder = Recorder(LINES, open_loop=True)
    for line, values in latencies_us.items():
        for value in values:
            recorder.answered(line, 0, 250_000, 250_000 + value * 1000)
    for line, kinds in (failures or {}).items():
        for kind, example in kinds:
            recorder.failed(line, kind, example, 0, 7_000_000)
    return recorder.take()


def write(folder: Path, parts: list[tuple[int, dict[str, Any]]]) -> None:
    writer = RunWriter(folder)
    for second, lines in parts:
        writer.add(second, lines)
    writer.close()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.lists(LATENCIES, min_size=1, max_size=3), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_intervals_merged_are_the_histogram_of_the_whole(seconds, chance: random.Random):
    """seconds: for each second, what each process measured. Within a second processes come in any order."""
    parts = [(n, part(one)) for n, second in enumerate(seconds) for one in chance.sample(second, len(second))]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), parts)
        merged = {line: runfolder.histogram() for line in LINES}
        for line, _, histogram in runfolder.read_histograms(Path(folder), runfolder.SERVICE):
            merged[line].add(histogram)
        history = runfolder.read_history(Path(folder))
    for line in LINES:
        values = [value for second in seconds for one in second for value in one[line]]
        whole = runfolder.histogram()
        for value in values:
            whole.record_value(value)
        assert sum(row["requests"] for row in history if row["line"] == line) == len(values)
        assert merged[line].get_total_count() == len(values)
        assert merged[line].get_max_value() == whole.get_max_value()
        assert [merged[line].get_value_at_percentile(p) for p in (50, 90, 99, 99.9)] == [
            whole.get_value_at_percentile(p) for p in (50, 90, 99, 99.9)
        ]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_second_has_one_row_a_line_whatever_process_comes_first(tmp_path, order):
    """Processes 0, 1, 2 hand over seconds 0, 1 and 2, each a second behind the one before it at most."""
    parts = sorted((second, place, order[place]) for second in range(3) for place in range(3))
    write(tmp_path, [(second, part({LINES[0]: [1000 * (process + 1)]})) for second, _, process in parts])
    rows = runfolder.read_history(tmp_path)
    assert [(row["second"], row["line"]) for row in rows] == [(s, line) for s in range(3) for line in LINES]
    assert {row["requests"] for row in rows if row["line"] == LINES[0]} == {3}
    assert {row["max_ms"] for row in rows if row["line"] == LINES[1]} == {""}


def test_a_process_that_is_late_by_less_than_the_lateness_joins_its_second(tmp_path):
    late = part({LINES[0]: [2000]})
    on_time = [(second, part({LINES[0]: [1000]})) for second in range(LATENESS_S)]
    write(tmp_path, [*on_time, (0, late), (LATENESS_S, part({LINES[0]: [1000]}))])
    rows = [row for row in runfolder.read_history(tmp_path) if row["line"] == LINES[0]]
    assert [(row["second"], row["requests"]) for row in rows] == [(0, 2), *((n, 1) for n in range(1, LATENESS_S + 1))]


def test_nothing_is_lost_of_a_process_that_is_later_than_that(tmp_path):
    write(tmp_path, [(second, part({LINES[0]: [1000]})) for second in (0, 1, 2, 3, 4, 0, 5)])
    rows = [row for row in runfolder.read_history(tmp_path) if row["line"] == LINES[0]]
    assert sum(row["requests"] for row in rows) == 7
    assert sum(h.get_total_count() for _, _, h in runfolder.read_histograms(tmp_path)) == 7


def test_history_tells_requests_failures_and_response_percentiles(tmp_path):
    write(tmp_path, [(0, part({LINES[0]: [1250, 2250]}, {LINES[0]: [("HTTP 503", "full")]}))])
    first, second = runfolder.read_history(tmp_path)
    assert (first["requests"], first["failures"]) == (3, 1)
    assert float(first["p50_ms"]) == 1.5
    assert float(first["max_ms"]) == pytest.approx(2.5, rel=1e-3)
    assert (second["requests"], second["p50_ms"]) == (0, "")


@pytest.mark.parametrize(
    ("kind", "ms"),
    [(runfolder.RESPONSE, 1.5), (runfolder.SERVICE, 1.25), (runfolder.LAG, 0.25), (runfolder.FAILED, 7.0)],
)
def test_each_kind_of_latency_is_kept_by_itself(tmp_path, kind, ms):
    write(tmp_path, [(0, part({LINES[1]: [1250]}, {LINES[1]: [("HTTP 503", "full")]}))])
    ((line, second, histogram),) = runfolder.read_histograms(tmp_path, kind)
    assert (line, second, histogram.get_total_count()) == (LINES[1], 0.0, 1)
    assert histogram.get_max_value() / 1000 == pytest.approx(ms, rel=1e-3)


def test_percentiles_are_within_the_histograms_three_digits(tmp_path):
    latencies = np.random.default_rng(7).lognormal(8, 1, 5000).astype(int)
    write(tmp_path, [(0, part({LINES[0]: latencies.tolist()}))])
    ((_, _, histogram),) = runfolder.read_histograms(tmp_path, runfolder.SERVICE)
    for percentile in (50, 90, 99, 99.9):
        low, high = (np.percentile(latencies, percentile, method=which) for which in ("lower", "higher"))
        assert low * 0.999 <= histogram.get_value_at_percentile(percentile) <= high * 1.001


def test_the_log_is_one_that_other_readers_of_the_format_can_read(tmp_path):
    write(tmp_path, [(3, part({LINES[1]: [1250]}))])
    lines = (tmp_path / runfolder.HISTOGRAMS).read_text().splitlines()
    assert lines[0] == "#[Histogram log format version 1.2]"
    fields = next(line for line in lines if line.startswith("Tag=response")).split(",")
    assert len(fields) == 5
    assert fields[0].startswith("Tag=") and " " not in fields[0]
    assert fields[1:4] == ["3.000", "1.000", "1.500"]


def test_errors_are_added_up_over_processes_and_the_run_the_most_frequent_first(tmp_path):
    odd = 'the "queue"\nis full, again'
    wrong = [("wrong answer", "first"), ("wrong answer", "second"), ("wrong answer", "x" * 5000)]
    parts = [(0, part({}, {LINES[0]: [("HTTP 503", odd)]})), (1, part({}, {LINES[1]: wrong}))]
    write(tmp_path, [*parts, (1, part({}, {LINES[1]: wrong[:1]}))])
    assert runfolder.read_errors(tmp_path) == [
        {"line": LINES[1], "kind": "wrong answer", "count": 4, "example": "first"},
        {"line": LINES[0], "kind": "HTTP 503", "count": 1, "example": odd},
    ]


def test_a_second_is_on_disk_as_soon_as_no_process_is_waited_for(tmp_path):
    writer = RunWriter(tmp_path)
    writer.add(0, part({LINES[0]: [1500]}, {LINES[1]: [("timeout", "")]}))
    assert runfolder.read_history(tmp_path) == []
    writer.add(LATENESS_S, part({}))
    assert len(runfolder.read_history(tmp_path)) == 2
    assert len(list(runfolder.read_histograms(tmp_path))) == 1
    assert len(runfolder.read_errors(tmp_path)) == 1
    writer.close()


@pytest.mark.parametrize("lost", [1, 20, 60])
def test_files_that_were_cut_short_are_read_up_to_their_last_whole_row(tmp_path, lost):
    write(tmp_path, [(n, part({line: [1500] for line in LINES})) for n in range(3)])
    intervals = len(list(runfolder.read_histograms(tmp_path, runfolder.LAG)))
    for name in (runfolder.HISTORY, runfolder.HISTOGRAMS):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-lost])
    assert len(runfolder.read_history(tmp_path)) in ((6, 5) if lost == 1 else (5, 4))
    assert len(list(runfolder.read_histograms(tmp_path, runfolder.LAG))) == intervals - 1
