"""The server's log on the screen."""

from __future__ import annotations

from pathlib import Path

from launchpad import console
from launchpad.backends import BACKENDS, of
from launchpad.errors import EnvironmentFault
from launchpad.layout import Layout
from launchpad.server import Server


def show(root: Path, lines: int, follow: bool) -> None:
    """Print the end of the log, and with `follow` what comes. Raises EnvironmentFault if there is no log."""
    layout = Layout(root)
    server = Server.load(layout)
    backend = of(server) if server else BACKENDS["embedded"]  # the log of a server that was ended is a file
    tail = backend.log_tail(layout, lines)
    if not tail and not layout.server_log.exists():
        raise EnvironmentFault("there is no server log", layout.relative(layout.server_log), "run `invoke launch`")
    if follow:
        backend.follow_log(layout, lines)
        return
    for line in tail:
        console.out.out(line, highlight=False)
