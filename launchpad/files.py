"""Files that survive an interruption: content hashes, and writing that replaces the old only when the new is whole."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SETTLED_NS = 2_000_000_000
"""Age from which a file's times tell that it has not changed: file systems count in steps of up to two seconds."""


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes; a settled file is read once in a process."""
    found = path.stat()
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < SETTLED_NS:
        return _sha256(path)
    return _known_sha256(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _known_sha256(path: Path, *identity: int) -> str:
    return _sha256(path)


def digest(value: Any) -> str:
    """Return the hex SHA-256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def tree(path: Path, leave_out: Iterable[Path] = ()) -> dict[str, str]:
    """Return {relative path: SHA-256} of a folder's files, hidden ones and compiled Python apart.

    A file is its own tree, under the name `.`; a path that is not there has none. `leave_out`: folders to pass over.
    """
    if path.is_file():
        return {".": sha256(path)}
    return {name: sha256(path / name) for name in names(path, leave_out)}


def names(path: Path, leave_out: Iterable[Path] = ()) -> list[str]:
    """Return the relative paths of a folder's files, sorted; hidden ones and compiled Python apart."""
    skipped = set(leave_out)
    found = []
    for folder, folders, there in os.walk(path):
        here = Path(folder)
        folders[:] = [
            name for name in folders if not name.startswith((".", "__pycache__")) and here / name not in skipped
        ]
        for name in there:
            if not name.startswith(".") and (here / name).is_file():
                found.append((here / name).relative_to(path).as_posix())
    return sorted(found)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = _beside(path, "new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, indented, with a newline at its end."""
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Return a JSON file's value, or None when it is missing or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def read_mapping(path: Path) -> dict[str, Any]:
    """Return a JSON file's mapping; an empty one when the file is missing, not whole, or holds something else."""
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def staged(path: Path) -> Path:
    """Return a fresh place beside `path`, on the same file system, in which to prepare what shall replace it."""
    new = _beside(path, "new")
    remove(new)
    new.parent.mkdir(parents=True, exist_ok=True)
    return new


def publish(path: Path) -> None:
    """Put what was prepared in `staged(path)` in place of `path`; `recover` undoes a swap that was cut short."""
    old = _beside(path, "old")
    remove(old)
    if path.exists():
        path.rename(old)
    _beside(path, "new").rename(path)
    remove(old)


def discard(path: Path) -> None:
    """Throw away what was prepared for `path`."""
    remove(_beside(path, "new"))


def recover(path: Path) -> None:
    """Bring back the old content of `path` if a run was killed in the middle of `publish`."""
    old = _beside(path, "old")
    if old.exists() and not path.exists():
        old.rename(path)
    remove(old)
    discard(path)


def copy_tree(source: Path, target: Path, link: bool = False) -> None:
    """Copy a folder's files; with `link` by hard links where the file system allows it."""
    for name in names(source):
        copy(source / name, target / name, link)


def copy(source: Path, target: Path, link: bool = False) -> None:
    """Copy a file, with its folder; with `link` by a hard link where the file system allows it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # written through, a link would change what it is linked to
    if link:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")
