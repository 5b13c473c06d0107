"""A disk that is full while a stage writes: a clear error, and what was there before is still there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launchpad import files

FULL = "No space left on device"
PAGE_BYTES = 4096


def regular_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@contextmanager
def small_disk(folder: Path, room_kib: int) -> Iterator[None]:
    """Put a file system in place of a folder, with the folder's content and `room_kib` KiB of room beside it."""
    aside = folder.with_name(folder.name + "-aside")
    if folder.exists():
        shutil.copytree(folder, aside)
    folder.mkdir(parents=True, exist_ok=True)
    content_kib = sum(-(-path.stat().st_size // PAGE_BYTES) * PAGE_BYTES // 1024 for path in regular_files(folder))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={content_kib + room_kib}k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("not run: mounting a small file system needs root")
    try:
        if aside.exists():
            shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_configure_keeps_the_old_files(checkout):
    with small_disk(checkout.root / "serving", room_kib=8):
        before = files.tree(checkout.root / "serving")
        checkout.edit(("batch_timeout_micros: 500", "batch_timeout_micros: 600"))

        done = checkout.invoke("configure")

        assert done.returncode == 3 and FULL in done.stdout and "Traceback" not in done.stdout
        assert files.tree(checkout.root / "serving") == before


@pytest.mark.parametrize("room_kib", [8, 40, 400])
def test_export_leaves_nothing_half_written(checkout, room_kib):
    (checkout.root / "mine.py").write_text(
        "import keras\n\n\ndef build():\n    return keras.Sequential([keras.Input((400,)), keras.layers.Dense(200)])\n"
    )
    checkout.invoke("init", "--source", "mine.py:build", "--force", check=True)
    with small_disk(checkout.root / "models" / "build", room_kib):
        done = checkout.invoke("export")

        assert done.returncode == 3 and FULL in done.stdout and "Traceback" not in done.stdout
        assert not regular_files(checkout.root / "models" / "build")


def test_a_load_test_ends_and_says_so(checkout):
    checkout.invoke("launch", check=True)
    with small_disk(checkout.root / "loadtests" / "results", room_kib=44):
        done = checkout.invoke("loadtest", "--profile", "smoke", "--duration", "20")

        assert done.returncode == 3 and FULL in done.stdout and "Traceback" not in done.stdout
