"""An error that a user can act on. It carries what is wrong, where, and what to do, and it knows its exit code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    what: the fault, in one sentence.
    where: a place the user can open, such as `pipeline.yaml:41`; empty when there is none.
    fix: what to do about it; empty when `what` already says it.
    """

    what: str
    where: str = ""
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return place + self.what + (f"\n    {self.fix}" if self.fix else "")


class LaunchpadError(Exception):
    """Anything the user is told instead of a traceback. Subclasses set the exit code."""

    exit_code = 1

    def __init__(self, what: str | list[Problem], where: str = "", fix: str = "") -> None:
        self.problems = what if isinstance(what, list) else [Problem(what, where, fix)]
        super().__init__("\n".join(map(str, self.problems)))


class GateFailed(LaunchpadError):
    """A gate or an objective was evaluated and does not hold, or a run did not complete."""

    exit_code = 1


class DeclarationError(LaunchpadError):
    """`pipeline.yaml`, something it names, or an argument is wrong."""

    exit_code = 2


class EnvironmentFault(LaunchpadError):
    """The machine does not give what is needed: a port is taken, the disk is full, a server does not start."""

    exit_code = 3
