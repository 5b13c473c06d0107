"""A policy computed in a process of its own, which gives way to the server and to whoever asks it.

What the simulator takes of a processor within a second is what the 99th percentile of that second is made of, where
the server has no processor to spare. Such a machine leaves little to the simulator, too, so nobody waits for long.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection

from launchpad.children import end_with_parent, give_way
from launchpad.errors import EnvironmentFault
from launchpad.tune.autotune.control import Wish
from launchpad.tune.autotune.simulated import Simulated
from launchpad.tune.autotune.tuner import Situation

NICENESS = 19
NICENESS_AT_FIRST = 10
"""While the simulator is compiled, which takes seconds where it never was: about a tenth of what a process gets that
gives way to nobody."""


class Aside:
    """The policy, to be called as it is itself. Raises EnvironmentFault when its process has ended."""

    def __init__(self, policy: Simulated, patience_s: float) -> None:
        """Start the process, which first has the simulator compiled. An answer is waited for `patience_s`."""
        self._patience_s = patience_s
        self._pending = False
        context = multiprocessing.get_context("fork")  # what runs here cannot be imported a second time
        self._questions, answers = context.Pipe()
        self._process = context.Process(target=_serve, args=(policy, answers), daemon=True)
        self._process.start()
        answers.close()

    def __call__(self, name: str, situation: Situation) -> Wish:
        """Return what the policy wants; what there is, where it does not come to an end in time.

        The answer to a question that is no longer asked is let go, not lost: the policy knows it when it is asked the
        same again.
        """
        try:
            if self._pending:
                if not self._questions.poll(self._patience_s):
                    return self._late(name, situation)
                self._questions.recv()
            self._questions.send((name, situation))
            self._pending = not self._questions.poll(self._patience_s)
            wish: Wish = self._late(name, situation) if self._pending else self._questions.recv()
            return wish
        except (EOFError, ConnectionError):
            fix = "start `invoke autotune` again"
            raise EnvironmentFault("the process that simulates has ended", fix=fix) from None

    def _late(self, name: str, situation: Situation) -> Wish:
        why = f"the simulator has not come to an end within {self._patience_s:g} s: the machine is busy"
        return Wish(situation.settings[name], why)

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._process.join()


def _serve(policy: Simulated, questions: Connection) -> None:
    os.setsid()
    end_with_parent()
    give_way(NICENESS_AT_FIRST)
    policy.prepare()
    give_way(NICENESS)
    while True:
        questions.send(policy(*questions.recv()))
