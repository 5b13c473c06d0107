"""`python -m launchpad.tune.pace SECONDS CORE`: how evenly this machine computes.

Other programs, the kernel's own threads and, on a virtual machine, its host and neighbours take the processor away, or
share its caches and units, which nobody who only looks at the clock would notice. One process for each core does the
same piece of work over and over, all at once; how much of it each slice of time saw is printed as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

SLICE_S = 0.005
"""Long enough for some dozens of pieces; shorter differences do not show among the latencies."""
WATCH_S = 5.0
"""Slow stretches of a quarter of a second come every ten seconds or so on the machines that this was made on."""
LEAST = 0.01
"""Where the machine gave nothing at all: work that never ends could not be simulated."""
PIECE = json.dumps([0.5 + index / 1000 for index in range(784)])
"""Text that is read over and over: of the kind and size of what servers and load generators do."""


def watch(seconds: float) -> list[float]:
    """Return how many pieces of work were finished in each slice, in parts where one lasted over several."""
    slices = [0.0] * round(seconds / SLICE_S)
    start = time.perf_counter()
    at = 0.0
    while at < seconds:
        json.loads(PIECE)
        before, at = at, time.perf_counter() - start
        _share_out(slices, before, at)
    return slices


def _share_out(slices: list[float], begin: float, end: float) -> None:
    """Count one piece to the slices that it lasted over, to each by its part."""
    for index in range(int(begin / SLICE_S), min(int(end / SLICE_S), len(slices) - 1) + 1):
        part = min(end, (index + 1) * SLICE_S) - max(begin, index * SLICE_S)
        slices[index] += max(0.0, part) / (end - begin)


def measure(cores: int) -> tuple[float, ...]:
    """Return the pace in each SLICE_S of WATCH_S, one core after the other, each over its mean."""
    command = [sys.executable, "-m", __spec__.name, str(WATCH_S)]
    watching = [subprocess.Popen([*command, str(core)], stdout=subprocess.PIPE) for core in range(cores)]
    paces = []
    for process in watching:
        slices = json.loads(process.communicate()[0])
        mean = sum(slices) / len(slices)
        paces += [round(max(LEAST, count / mean), 3) for count in slices]
    return tuple(paces)


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(sys.argv[2]) % len(cores)]})
    print(json.dumps(watch(float(sys.argv[1]))))
