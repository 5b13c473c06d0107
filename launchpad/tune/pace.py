"""`python -m launchpad.tune.pace SECONDS CORE BEGIN`: how evenly this machine computes.

Other programs, the kernel's own threads and, on a virtual machine, its host and neighbours take the processor away, or
share its caches and units, which nobody who only looks at the clock would notice. One process for each core does the
same piece of work over and over, all at once; how much of it each slice of time saw is printed as JSON. A request needs
the server's core and the load generator's, so that the slowest core of a slice is the machine's pace.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from operator import truediv

SLICE_S = 0.001
"""As long as short stalls of a machine, and as latencies where nothing queues; enough for some pieces."""
START_S = 0.3
"""What processes take to begin, with some to spare."""
LEAST = 0.01
"""Where the machine gave nothing at all: work that never ends could not be simulated."""
RECORDS = json.dumps([{f"name{index}": index * 1.5, "text": "x" * index, "none": None} for index in range(80)])
"""What is read and written over and over: work that a busy neighbour on the same core holds up as much as the embedded
server's. What it does while it is awake takes 1.7 times as long then, this 1.65 times; to read numbers, 1.3 times."""

Counts = list[list[float]]
"""[cores][slices] pieces of work finished, in parts where one lasted over several slices."""


def watch(seconds: float, begin: float) -> list[float]:
    """Return how many pieces of work were finished in each slice on one core.

    begin: of the first slice, on the monotonic clock, which all processes of a machine share.
    """
    slices = [0.0] * round(seconds / SLICE_S)
    at = time.monotonic() - begin
    while at < seconds:
        json.dumps(json.loads(RECORDS))
        before, at = at, time.monotonic() - begin
        if before >= 0:
            _share_out(slices, before, at)
    return slices


def _share_out(slices: list[float], begin: float, end: float) -> None:
    """Count one piece to the slices that it lasted over, to each by its part."""
    for index in range(int(begin / SLICE_S), min(int(end / SLICE_S), len(slices) - 1) + 1):
        part = min(end, (index + 1) * SLICE_S) - max(begin, index * SLICE_S)
        slices[index] += max(0.0, part) / (end - begin)


def measure(cores: int, seconds: float) -> Counts:
    """Return what all cores finish at once in so many seconds."""
    command, begin = [sys.executable, "-m", __spec__.name, str(seconds)], str(time.monotonic() + START_S)
    watching = [subprocess.Popen([*command, str(core), begin], stdout=subprocess.PIPE) for core in range(cores)]
    return [json.loads(process.communicate()[0]) for process in watching]


def joined(parts: Sequence[Counts]) -> Counts:
    """Return what was finished in some stretches of time as if it were one."""
    return [list(itertools.chain.from_iterable(part)) for part in zip(*parts, strict=True)]


def paces(counts: Counts) -> tuple[float, ...]:
    """Return the pace of the machine in each slice, that of its slowest core over the core's mean; 1 on average."""
    means = [sum(slices) / len(slices) for slices in counts]
    slowest = [min(map(truediv, slices, means)) for slices in zip(*counts, strict=True)]
    usual = sum(slowest) / len(slowest)
    return tuple(round(max(LEAST, pace / usual), 2) for pace in slowest)


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(sys.argv[2]) % len(cores)]})
    print(json.dumps(watch(float(sys.argv[1]), float(sys.argv[3]))))
