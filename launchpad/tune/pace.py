"""`python -m launchpad.tune.pace SECONDS CORE BEGIN`: how evenly this machine computes.

Other programs, the kernel's own threads and, on a virtual machine, its host and neighbours take the processor away, or
share its caches and units, which nobody who only looks at the clock would notice. One process for each core does the
same piece of work over and over, all at once; how much of it each slice of time saw is printed as JSON. A request needs
the server's core and the load generator's, so that the slowest core of a slice is the machine's pace.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from operator import truediv

SLICE_S = 0.001
"""As long as short stalls of a machine, and as latencies where nothing queues; enough for a dozen pieces and more."""
START_S = 0.3
"""What processes take to begin, with some to spare."""
WATCH_S = 5.0
"""Slow stretches of a quarter of a second come every ten seconds or so on the machines that this was made on."""
LEAST = 0.01
"""Where the machine gave nothing at all: work that never ends could not be simulated."""
PIECE = json.dumps([0.5 + index / 1000 for index in range(784)])
"""Text that is read over and over: of the kind and size of what servers and load generators do."""


def watch(seconds: float, begin: float) -> list[float]:
    """Return how many pieces of work were finished in each slice, in parts where one lasted over several.

    begin: of the first slice, on the monotonic clock, which all processes of a machine share.
    """
    slices = [0.0] * round(seconds / SLICE_S)
    at = time.monotonic() - begin
    while at < seconds:
        json.loads(PIECE)
        before, at = at, time.monotonic() - begin
        if before >= 0:
            _share_out(slices, before, at)
    return slices


def _share_out(slices: list[float], begin: float, end: float) -> None:
    """Count one piece to the slices that it lasted over, to each by its part."""
    for index in range(int(begin / SLICE_S), min(int(end / SLICE_S), len(slices) - 1) + 1):
        part = min(end, (index + 1) * SLICE_S) - max(begin, index * SLICE_S)
        slices[index] += max(0.0, part) / (end - begin)


def measure(cores: int) -> tuple[float, ...]:
    """Return the pace of the slowest core in each SLICE_S of WATCH_S, over its mean."""
    command, begin = [sys.executable, "-m", __spec__.name, str(WATCH_S)], str(time.monotonic() + START_S)
    watching = [subprocess.Popen([*command, str(core), begin], stdout=subprocess.PIPE) for core in range(cores)]
    counts = [json.loads(process.communicate()[0]) for process in watching]
    means = [sum(slices) / len(slices) for slices in counts]
    slowest = [min(map(truediv, slices, means)) for slices in zip(*counts, strict=True)]
    mean = sum(slowest) / len(slowest)
    return tuple(round(max(LEAST, pace / mean), 2) for pace in slowest)


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(sys.argv[2]) % len(cores)]})
    print(json.dumps(watch(float(sys.argv[1]), float(sys.argv[3]))))
