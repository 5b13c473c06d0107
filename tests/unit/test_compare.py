"""Comparing runs: what moved is found, what did not is called noise."""

from __future__ import annotations

import numpy as np
import pytest

from launchpad.compare import PERCENTILES, Seconds, compare, read
from launchpad.errors import DeclarationError
from launchpad.loadtest import comparing
from launchpad.loadtest.recorder import Recorder
from launchpad.loadtest.writer import RunWriter

VALUES = np.arange(1.0, 20_001.0)


def run(seed: int, factor: float = 1.0, seconds: int = 20) -> Seconds:
    """A run with exponential latencies of 2 ms times `factor`, 500 a second."""
    chance = np.random.default_rng(seed)
    counts = np.zeros((seconds, len(VALUES)))
    for second in range(seconds):
        drawn = chance.exponential(2000 * factor, 500).clip(1, len(VALUES)).astype(int)
        np.add.at(counts[second], drawn - 1, 1)
    return Seconds(VALUES, counts)


def test_a_run_that_is_slower_throughout_is_slower_at_every_percentile_that_its_length_supports():
    differences = compare("model", run(1), run(2, factor=1.5))

    assert [row.percentile for row in differences] == list(PERCENTILES)
    assert [row.verdict for row in differences[:3]] == ["slower"] * 3
    for row in differences:
        assert row.low_ms <= row.after_ms - row.before_ms <= row.high_ms


def test_the_other_way_round_it_is_faster():
    assert compare("model", run(2, factor=1.5), run(1))[0].verdict == "faster"


def test_two_runs_of_the_same_are_mostly_called_noise():
    verdicts = [row.verdict for seed in range(5) for row in compare("model", run(seed), run(seed + 100))]

    assert verdicts.count("noise") >= 0.85 * len(verdicts)


def test_one_bad_second_is_no_difference_in_the_median():
    disturbed = run(2)
    disturbed.counts[3] = 0
    disturbed.counts[3, -1] = 500

    assert compare("model", run(1), disturbed)[0].verdict == "noise"


def test_a_runs_latencies_are_read_from_its_folder_by_line(tmp_path):
    writer = RunWriter(tmp_path)
    for second in range(3):
        recorder = Recorder(["a", "b"], open_loop=False)
        recorder.answered("a", 0, 0, 1_000_000 * (second + 1))
        recorder.answered("b", 0, 0, 9_000_000)
        writer.add(second, recorder.take())
    writer.close()

    found = read(tmp_path, ["a"])

    assert found is not None
    assert found.values.tolist() == [1000, 2000, 3000] or np.allclose(found.values, [1000, 2000, 3000], rtol=1e-3)
    assert found.counts.sum() == 3 and found.counts.shape[0] == 3
    assert read(tmp_path, ["c"]) is None


def test_a_run_is_not_compared_with_itself(tmp_path):
    with pytest.raises(DeclarationError, match="20260101-000000 is one run"):
        comparing.show(tmp_path, "20260101-000000", "20260101-000000")
