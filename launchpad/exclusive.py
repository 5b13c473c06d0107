"""One pipeline at a time in a checkout: a lock that the kernel lets go of, however its holder ends."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launchpad.errors import EnvironmentFault


@contextmanager
def exclusive(path: Path, what: str = "another pipeline runs in this checkout") -> Iterator[None]:
    """Hold the lock file `path` for the block.

    what: says of the lock, when it is held, what that means.
    Raises EnvironmentFault, which names the holder, when another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EnvironmentFault(
                f"{what}: {_holder(path)}",
                fix="wait for it to end, or stop it; its lock goes with it",
            ) from None
        file.truncate(0)
        command = " ".join(Path(word).name if index == 0 else word for index, word in enumerate(sys.argv))
        json.dump({"pid": os.getpid(), "command": command, "since": time.strftime("%H:%M:%S")}, file)
        file.flush()
        yield
        file.truncate(0)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"`{holder['command']}`, process {holder['pid']}, since {holder['since']}"
    except (ValueError, KeyError):
        return "it has just started"
