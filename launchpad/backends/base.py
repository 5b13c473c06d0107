"""What every backend can do with a server: start it, find it again, tell how it is and how it ended, end it."""

from __future__ import annotations

import subprocess
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from launchpad.errors import Problem
from launchpad.layout import Layout
from launchpad.server import Server
from launchpad.spec import Serving
from launchpad.stage import Context

AT_ONCE = "max_num_load_retries"
"""The flag that makes a server give up a model that it cannot load, in place of minutes of silent retries."""


class Backend(ABC):
    """A way to run the server. `name` is what `serving.backend` calls it; `merit` is why `auto` takes it."""

    name: ClassVar[str]
    merit: ClassVar[str]

    @abstractmethod
    def obstacle(self, context: Context) -> Problem | None:
        """Return why this backend cannot work here and what to do about it; None when it can. Takes seconds at most."""

    @abstractmethod
    def identity(self, context: Context) -> str:
        """Return what names the server program and what it is granted; another identity is another server.

        Raises EnvironmentFault where what the backend runs has not been made.
        """

    @abstractmethod
    def command(self, context: Context) -> list[str]:
        """Return the command that `start` runs."""

    def warnings(self, context: Context) -> list[Problem]:
        """Return what is doubtful about running the declared models here."""
        return []

    @abstractmethod
    def start(self, context: Context, draft: Server) -> Server:
        """Start the server on the published deployment; return `draft` with what is needed to find it again.

        Raises EnvironmentFault, with nothing left running, if it does not even start.
        """

    @abstractmethod
    def is_running(self, server: Server) -> bool:
        """Tell whether this very start of the server still runs."""

    def unready(self, server: Server) -> str:
        """Return why the backend itself holds a server that answers for not ready; empty when it does not."""
        return ""

    def settle(self, context: Context, server: Server) -> None:  # noqa: B027 (most have nothing left to do)
        """Do what is left to do once a started server is ready."""

    @abstractmethod
    def ending(self, server: Server) -> str:
        """Return how a server that no longer runs has ended, such as `exit code 1`."""

    @abstractmethod
    def find(self, layout: Layout) -> list[str]:
        """Return the running servers of this checkout, recorded or not, each in words that let a user find it."""

    @abstractmethod
    def stop(self, layout: Layout) -> int:
        """End every running server of this checkout, recorded or not; return how many there were."""

    @abstractmethod
    def describe(self, server: Server) -> str:
        """Return what the server is to the machine, such as `process 4711`."""

    def log_tail(self, layout: Layout, lines: int) -> list[str]:
        """Return the last lines of the server's log; none if there is none."""
        return tail(layout.server_log, lines)

    def follow_log(self, layout: Layout, lines: int) -> None:
        """Print the end of the log and what comes, until the log ends or the user interrupts."""
        subprocess.run(["tail", f"--lines={lines}", "--follow=name", str(layout.server_log)], check=False)


@dataclass(frozen=True)
class Choice:
    """The backend to run on, and a line on why it is that one."""

    backend: Backend
    why: str


def first_start(serving: Serving) -> list[str]:
    """Return the flags that a launch adds: a model that cannot be loaded is told at once, unless declared otherwise."""
    return [] if AT_ONCE in serving.flags else [f"--{AT_ONCE}=0"]


def tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log; none if there is no log."""
    try:
        with path.open(encoding="utf-8", errors="replace") as log:
            return [line.rstrip("\n") for line in deque(log, lines)]
    except FileNotFoundError:
        return []
