"""The server's log on the screen."""

from __future__ import annotations

import subprocess
from pathlib import Path

from launchpad import console
from launchpad.errors import EnvironmentFault
from launchpad.launch.stage import log_tail
from launchpad.layout import Layout


def show(root: Path, lines: int, follow: bool) -> None:
    """Print the end of the log, and with `follow` what comes. Raises EnvironmentFault if there is no log."""
    path = Layout(root).server_log
    if not path.exists():
        raise EnvironmentFault("there is no server log", Layout(root).relative(path), "run `invoke launch`")
    if follow:
        subprocess.run(["tail", f"--lines={lines}", "--follow=name", str(path)], check=False)
        return
    for line in log_tail(path, lines):
        console.out.out(line, highlight=False)
