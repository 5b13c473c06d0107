"""What tests need and what takes long to make, kept in the user's cache from one run to the next."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from launchpad import files


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` has filled, now or in an earlier run; the name says all that it depends on."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfs-launchpad-tests"
    folder, whole = cache / name, cache / name / "whole"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            files.remove(folder)
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder
