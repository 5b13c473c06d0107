"""A policy computed in a process of its own, which gives way to the server and to whoever asks it.

What the simulator takes of a processor within a second is what the 99th percentile of that second is made of, where
the server has no processor to spare.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from launchpad.children import end_with_parent, give_way
from launchpad.errors import EnvironmentFault
from launchpad.tune.autotune.control import Wish
from launchpad.tune.autotune.simulated import Simulated
from launchpad.tune.autotune.tuner import Situation

NICENESS = 19

_policy: Simulated | None = None
"""The policy, in the process that computes it."""


class Aside:
    """The policy, to be called as it is itself. Raises EnvironmentFault when its process has ended."""

    def __init__(self, policy: Simulated) -> None:
        """Start the process and have the simulator compiled there."""
        context = multiprocessing.get_context("fork")  # what runs here cannot be imported a second time
        self._process = ProcessPoolExecutor(1, context, initializer=_begin, initargs=(policy,))
        self._process.submit(os.getpid).result()

    def __call__(self, name: str, situation: Situation) -> Wish:
        try:
            return self._process.submit(_wish, name, situation).result()
        except BrokenProcessPool:
            fix = "start `invoke autotune` again"
            raise EnvironmentFault("the process that simulates has ended", fix=fix) from None

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process once it has computed what it is at."""
        self._process.shutdown(cancel_futures=True)


def _begin(policy: Simulated) -> None:
    global _policy
    os.setsid()
    end_with_parent()
    give_way(NICENESS)
    policy.prepare()
    _policy = policy


def _wish(name: str, situation: Situation) -> Wish:
    assert _policy is not None
    return _policy(name, situation)
