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


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[None]:
    """Put a file system of `kib` KiB in place of a folder, with the folder's content."""
    aside = folder.with_name(folder.name + "-aside")
    if folder.exists():
        shutil.copytree(folder, aside)
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("not run: mounting a small file system needs root")
    try:
        if aside.exists():
            shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_configure_keeps_the_old_files(checkout):
    with small_disk(checkout.root / "serving", kib=36):
        before = files.tree(checkout.root / "serving")
        checkout.edit(("batch_timeout_micros: 500", "batch_timeout_micros: 600"))

        done = checkout.invoke("configure")

        assert done.returncode == 3 and FULL in done.stdout and "Traceback" not in done.stdout
        assert files.tree(checkout.root / "serving") == before


@pytest.mark.parametrize("kib", [8, 40, 400])
def test_export_leaves_nothing_half_written(checkout, kib):
    (checkout.root / "mine.py").write_text(
        "import keras\n\n\ndef build():\n    return keras.Sequential([keras.Input((400,)), keras.layers.Dense(200)])\n"
    )
    checkout.invoke("init", "--source", "mine.py:build", "--force", check=True)
    with small_disk(checkout.root / "models" / "build", kib):
        done = checkout.invoke("export")

        assert done.returncode == 3 and FULL in done.stdout and "Traceback" not in done.stdout
        assert not [path for path in (checkout.root / "models" / "build").rglob("*") if path.is_file()]


def test_a_load_test_ends_and_says_so(checkout):
    checkout.invoke("launch", check=True)
    with small_disk(checkout.root / "loadtests" / "results", kib=44):
        done = checkout.invoke("loadtest", "--profile", "smoke", "--duration", "20")

        assert done.returncode == 3 and FULL in done.stdout and "Traceback" not in done.stdout
