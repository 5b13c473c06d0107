"""`python -m launchpad.tune.interruptions SECONDS`: for how long this machine takes the processor from who computes.

Other programs, the kernel's own threads and, on a virtual machine, its host do. One process for each core does nothing
but look at the clock; what it did not see is printed, in s, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

LEAST_S = 0.0003
"""Shorter ones do not show among the latencies."""
WATCH_S = 2.0


def watch(seconds: float) -> list[float]:
    """Return the lengths in s of the interruptions of this process."""
    found = []
    last = time.perf_counter()
    end = last + seconds
    while last < end:
        now = time.perf_counter()
        if now - last > LEAST_S:
            found.append(now - last)
        last = now
    return found


def measure(cores: int) -> tuple[tuple[float, ...], float]:
    """Return (lengths in s, how many there are in a second of processor time), of all cores at once."""
    command = [sys.executable, "-m", __spec__.name, str(WATCH_S)]
    watching = [subprocess.Popen([*command, str(core)], stdout=subprocess.PIPE) for core in range(cores)]
    lengths = [length for process in watching for length in json.loads(process.communicate()[0])]
    watched_s = cores * WATCH_S - sum(lengths)
    return tuple(sorted(lengths)), len(lengths) / max(watched_s, 0.1)


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(sys.argv[2]) % len(cores)]})
    print(json.dumps(watch(float(sys.argv[1]))))
