"""Engines that cannot be used, and one whose disk is full: told in a line, exit code 3, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from conftest import Engine


@pytest.fixture
def small_disk(engine, tmp_path_factory):
    """An engine of its own, with its data on a file system of 24 MB."""
    if not engine.is_own:
        pytest.skip("not run: an engine is there already")
    folder = tmp_path_factory.mktemp("small")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], check=True)
    small = Engine(f"unix://{folder}/docker.sock", folder)
    before = os.environ["DOCKER_HOST"]
    engine.stop()  # two engines would share a bridge
    small.start()
    os.environ["DOCKER_HOST"] = small.address
    yield small
    os.environ["DOCKER_HOST"] = before
    small.stop()
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    engine.start()


def test_a_full_disk_of_the_engine_is_told(checkout, small_disk):
    from stand_in import make_empty

    make_empty(small_disk.client, "tfs-launchpad-empty:1")
    checkout.edit(("image: tensorflow/serving:2.20.0", "image: tfs-launchpad-empty:1"))
    (checkout.layout.version("digits-mlp", 1) / "large").write_bytes(os.urandom(30_000_000))

    done = checkout.invoke("build")

    assert done.returncode == 3, done.stdout
    assert "the disk of the Docker engine is full" in done.stdout and "docker system prune" in done.stdout
    assert not checkout.layout.image_record.exists()


def test_no_engine_is_told_and_auto_goes_on_without(checkout, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    checkout.edit(("backend: embedded", "backend: docker"))
    done = checkout.invoke("launch")
    assert done.returncode == 3
    assert "docker: no Docker engine answers at unix:///nowhere/docker.sock" in done.stdout
    assert "pipeline.yaml:" in done.stdout

    checkout.edit(("backend: docker", "backend: auto"))
    launched = checkout.invoke("launch", check=True)
    assert "(embedded: docker: no Docker engine answers" in launched.stdout


def test_asking_for_an_engine_takes_no_time_where_there_is_none(monkeypatch):
    code = (
        "import time; from launchpad import engine; begin = time.monotonic(); problem = engine.obstacle();"
        "print(time.monotonic() - begin); assert problem"
    )
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    begin = time.monotonic()
    seconds = float(subprocess.check_output([sys.executable, "-c", code], cwd=os.getcwd()))
    assert seconds < 0.2 and time.monotonic() - begin < 3
