"""What the recorder writes is what happened, second by second, and it survives whatever ends the run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launchpad import runfolder
from launchpad.loadtest.recorder import Recorder

LINES = ["one serving_default", "two bytes x8, odd/name"]
LATENCIES = st.lists(st.integers(1, 30_000_000), max_size=40)


def record(folder: Path, seconds: list[dict[str, list[float]]]) -> None:
    recorder = Recorder(folder, LINES)
    for second in seconds:
        for line, latencies in second.items():
            for latency_us in latencies:
                recorder.answered(line, latency_us)
        recorder.flush()
    recorder.close()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.fixed_dictionaries({line: LATENCIES for line in LINES}), min_size=1, max_size=4))
def test_the_intervals_merged_are_the_histogram_of_the_whole(seconds):
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder), seconds)
        merged = {line: runfolder.histogram() for line in LINES}
        for line, _, histogram in runfolder.read_histograms(Path(folder)):
            merged[line].add(histogram)
    for line in LINES:
        whole = runfolder.histogram()
        for second in seconds:
            for latency_us in second[line]:
                whole.record_value(latency_us)
        assert merged[line].get_total_count() == whole.get_total_count()
        assert merged[line].get_max_value() == whole.get_max_value()
        assert [merged[line].get_value_at_percentile(p) for p in (50, 90, 99, 99.9)] == [
            whole.get_value_at_percentile(p) for p in (50, 90, 99, 99.9)
        ]


def test_history_has_a_row_for_each_second_and_line(tmp_path):
    recorder = Recorder(tmp_path, LINES)
    recorder.answered(LINES[0], 1500)
    recorder.answered(LINES[0], 2500.9)
    recorder.failed(LINES[0], "HTTP 503", "full")
    assert recorder.flush() == {"second": 0, "requests": 3, "failures": 1}
    assert recorder.flush() == {"second": 1, "requests": 0, "failures": 0}
    recorder.close()
    rows = runfolder.read_history(tmp_path)
    assert [(row["second"], row["line"]) for row in rows] == [(s, line) for s in (0, 1) for line in LINES]
    first = rows[0]
    assert (first["requests"], first["failures"]) == (3, 1)
    assert float(first["p50_ms"]) == 1.5
    assert float(first["max_ms"]) == pytest.approx(2.5, rel=1e-3)
    assert {row["max_ms"] for row in rows[1:]} == {""}


def test_latencies_beyond_the_histogram_are_counted_at_its_ends(tmp_path):
    record(tmp_path, [{LINES[0]: [0.2, 1e12]}])
    ((_, _, histogram),) = runfolder.read_histograms(tmp_path)
    assert histogram.get_total_count() == 2
    assert histogram.get_min_value() == runfolder.LOWEST_US
    assert histogram.get_max_value() >= runfolder.HIGHEST_US


def test_percentiles_are_within_the_histograms_three_digits(tmp_path):
    latencies = np.random.default_rng(7).lognormal(8, 1, 5000)
    record(tmp_path, [{LINES[0]: list(latencies)}])
    ((_, _, histogram),) = runfolder.read_histograms(tmp_path)
    for percentile in (50, 90, 99, 99.9):
        low, high = (np.percentile(latencies.astype(int), percentile, method=which) for which in ("lower", "higher"))
        assert low * 0.999 <= histogram.get_value_at_percentile(percentile) <= high * 1.001


def test_the_log_is_one_that_other_readers_of_the_format_can_read(tmp_path):
    record(tmp_path, [{LINES[1]: [1500]}])
    *_, interval = (tmp_path / runfolder.HISTOGRAMS).read_text().splitlines()
    fields = interval.split(",")
    assert len(fields) == 5
    assert fields[0].startswith("Tag=") and " " not in fields[0]
    assert fields[1:4] == ["0.000", "1.000", "1.500"]


def test_errors_are_added_up_over_the_run_the_most_frequent_first(tmp_path):
    recorder = Recorder(tmp_path, LINES)
    recorder.failed(LINES[0], "HTTP 503", 'the "queue"\nis full, again')
    recorder.flush()
    for example in ("first", "second", "x" * 5000):
        recorder.failed(LINES[1], "wrong answer", example)
    recorder.flush()
    recorder.close()
    assert runfolder.read_errors(tmp_path) == [
        {"line": LINES[1], "kind": "wrong answer", "count": 3, "example": "first"},
        {"line": LINES[0], "kind": "HTTP 503", "count": 1, "example": 'the "queue"\nis full, again'},
    ]


def test_a_second_is_on_disk_as_soon_as_it_is_flushed(tmp_path):
    recorder = Recorder(tmp_path, LINES)
    recorder.answered(LINES[0], 1500)
    recorder.failed(LINES[1], "timeout", "")
    recorder.flush()
    assert len(runfolder.read_history(tmp_path)) == 2
    assert len(list(runfolder.read_histograms(tmp_path))) == 1
    assert len(runfolder.read_errors(tmp_path)) == 1
    recorder.close()


def test_files_that_were_cut_short_are_read_up_to_their_last_whole_row(tmp_path):
    record(tmp_path, [{LINES[0]: [1500], LINES[1]: [1500]}] * 3)
    for name in (runfolder.HISTORY, runfolder.HISTOGRAMS):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-20])
    assert len(runfolder.read_history(tmp_path)) == 5
    assert len(list(runfolder.read_histograms(tmp_path))) == 5
