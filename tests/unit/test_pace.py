"""The pace of a machine: how its slices are counted, and which core's counts."""

from __future__ import annotations

import json
import sys
import time

import pytest

from launchpad.tune import pace


def test_a_piece_is_counted_to_the_slices_that_it_lasted_over():
    slices = [0.0] * 4
    pace._share_out(slices, 0.5 * pace.SLICE_S, 2.5 * pace.SLICE_S)
    assert slices == pytest.approx([0.25, 0.5, 0.25, 0.0])


def test_slices_begin_when_all_processes_have_started():
    """What was done before does not count."""
    begin = time.monotonic() + 0.05
    slices = pace.watch(0.02, begin)
    assert time.monotonic() >= begin + 0.02
    assert len(slices) == round(0.02 / pace.SLICE_S)
    assert sum(slices) > 10


COUNTS = [[10.0, 10.0, 10.0, 2.0], [20.0, 5.0, 20.0, 19.0]]
"""Of two cores, the one twice as fast as the other: in the second slice it is held up, in the last the first is."""


def test_all_cores_are_watched_at_once(monkeypatch):
    script = f"import json, sys; print(json.dumps({json.dumps(COUNTS)}[int(sys.argv[1])]))"
    begins = set()

    def popen(command, **options):
        seconds, core, begin = command[3:]
        assert float(seconds) == 0.5
        begins.add(begin)
        return real([sys.executable, "-c", script, core], **options)

    real = pace.subprocess.Popen
    monkeypatch.setattr(pace.subprocess, "Popen", popen)
    assert pace.measure(2, 0.5) == COUNTS
    assert len(begins) == 1


def test_the_slowest_core_of_a_slice_is_the_machines_pace():
    slowest = [min(10 / 8, 20 / 16), 5 / 16, min(10 / 8, 20 / 16), 2 / 8]
    mean = sum(slowest) / 4
    assert pace.paces(COUNTS) == pytest.approx([value / mean for value in slowest], abs=0.006)


def test_a_machine_that_gave_nothing_at_all_still_has_a_pace():
    assert pace.paces([[5.0, 10.0, 0.0]]) == (1.0, 2.0, pace.LEAST)


def test_stretches_are_joined_core_by_core():
    assert pace.joined([[[1.0], [2.0]], [[3.0, 4.0], [5.0, 6.0]]]) == [[1.0, 3.0, 4.0], [2.0, 5.0, 6.0]]
