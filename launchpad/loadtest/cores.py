"""Cores of their own for the load generator, where it shares a machine with the server.

Linux likes to wake a thread on the core of the one that wakes it, since what they share is in its cache. A generator
and the event loop of the embedded server wake each other all the time, so that for tenths of a second they take turns
on one core while another is free, and the 99th percentile is that of their waiting for each other: 2.0 ms where it is
1.3 ms apart (digits-mlp, 2,268 requests/s, two cores). Other servers have a thread for each request, which may run
anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from launchpad.server import Server


def of_generator(worker: int, processes: int, cores: set[int]) -> set[int]:
    """Return the cores for one of the generator's processes: one from the last on; all where there is none to spare."""
    return {sorted(cores)[-1 - worker]} if 0 <= worker < processes < len(cores) else cores


def keep_to(worker: int, processes: int) -> None:
    """Keep this process of the generator to its core."""
    os.sched_setaffinity(0, of_generator(worker, processes, os.sched_getaffinity(0)))


@contextmanager
def apart(server: Server, processes: int) -> Iterator[None]:
    """Keep an embedded server's event loop off the cores of so many generator processes while the block runs."""
    cores = os.sched_getaffinity(0)
    taken = set[int]().union(*(of_generator(worker, processes, cores) for worker in range(processes)))
    if server.backend != "embedded" or not server.pid or not cores - taken:
        yield
        return
    with suppress(OSError):  # it has ended, or is another user's
        os.sched_setaffinity(server.pid, cores - taken)  # of its first thread alone, which is the loop's
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(server.pid, cores)
