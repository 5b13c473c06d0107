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


def test_the_slowest_core_of_a_slice_is_the_machines_pace(monkeypatch):
    counts = {"0": [10, 10, 10, 2], "1": [20, 5, 20, 19]}
    script = f"import json, sys; print(json.dumps({json.dumps(counts)}[sys.argv[1]]))"

    def popen(command, **options):
        core = command[4]
        return real([sys.executable, "-c", script, core], **options)

    real = pace.subprocess.Popen
    monkeypatch.setattr(pace.subprocess, "Popen", popen)
    slowest = [min(10 / 8, 20 / 16), 5 / 16, min(10 / 8, 20 / 16), 2 / 8]
    mean = sum(slowest) / 4
    assert pace.measure(2) == pytest.approx([value / mean for value in slowest], abs=0.006)
