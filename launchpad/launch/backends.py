"""Where a model server can run. Every backend starts it with the same flags on the same files."""

from __future__ import annotations

import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from launchpad import children, files
from launchpad.declaration import Declaration
from launchpad.errors import DeclarationError
from launchpad.layout import Layout


class Backend(ABC):
    """A way to run the server. `name` is what `serving.backend` calls it."""

    name: ClassVar[str]

    @abstractmethod
    def obstacle(self) -> str:
        """Return why this backend cannot work on this machine; empty when it can."""

    @abstractmethod
    def identity(self) -> str:
        """Return what names the server program itself; another program is another server."""

    @abstractmethod
    def command(self, flags: list[str]) -> list[str]:
        """Return the command that runs the server with `flags`."""

    def start(self, layout: Layout, flags: list[str]) -> subprocess.Popen[bytes]:
        """Start the server in the background, its output in the log; return its process."""
        layout.server_log.parent.mkdir(parents=True, exist_ok=True)
        with layout.server_log.open("wb") as log:
            return subprocess.Popen(
                self.command(flags),
                cwd=layout.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=children.environment(),
            )


class Embedded(Backend):
    """This project's own server, in this Python. Always works."""

    name = "embedded"
    PACKAGE = Path(__file__).parent.parent / "modelserver"

    def obstacle(self) -> str:
        return ""

    def identity(self) -> str:
        return files.digest(files.tree(self.PACKAGE))

    def command(self, flags: list[str]) -> list[str]:
        return [sys.executable, "-m", "launchpad.modelserver", "--host=127.0.0.1", *flags, "--max_num_load_retries=0"]


BACKENDS: list[Backend] = [Embedded()]
"""In the order in which `auto` tries them."""


def choose(declaration: Declaration) -> tuple[Backend, str]:
    """Return the declared backend, or with `auto` the first that can work, and a line on why.

    Raises DeclarationError where the declared one cannot work.
    """
    wanted = declaration.pipeline.serving.backend
    passed_over: list[str] = []
    for backend in BACKENDS:
        obstacle = backend.obstacle()
        if wanted == backend.name and not obstacle:
            return backend, "declared"
        if wanted == "auto" and not obstacle:
            return backend, "; ".join(passed_over) or "the one that always works"
        passed_over.append(f"{backend.name}: {obstacle}")
    known = ", ".join(["auto", *(backend.name for backend in BACKENDS)])
    reason = next((line for line in passed_over if line.startswith(f"{wanted}:")), f"no backend {wanted} here")
    raise DeclarationError(
        f"serving.backend: {reason}", declaration.where("serving", "backend"), f"this release starts: {known}"
    )
