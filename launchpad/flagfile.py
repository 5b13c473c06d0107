"""`server.flags`: the server's command line as a file that a review can read. One flag a line, `#` starts a comment."""

from __future__ import annotations

from pathlib import Path


def read(path: Path) -> list[str]:
    """Return the flags of a file, in order, without comments."""
    lines = (line.partition("  #")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]
