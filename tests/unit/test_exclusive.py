"""One pipeline at a time: the lock names who holds it, and no way of ending leaves it behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launchpad.errors import EnvironmentFault
from launchpad.exclusive import exclusive

HOLDER = """
import pathlib, sys
from launchpad.exclusive import exclusive
sys.argv = ["/usr/bin/invoke", "deploy-local"]
with exclusive(pathlib.Path({path!r})):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path, repository):
    """Another process that holds the lock until its standard input is closed."""
    command = [sys.executable, "-c", HOLDER.format(path=str(tmp_path / "lock"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=repository, text=True) as child:
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


def acquire(path: Path) -> None:
    with exclusive(path):
        pass


def test_the_second_is_told_who_holds_the_lock(holder, tmp_path):
    with pytest.raises(EnvironmentFault) as raised:
        acquire(tmp_path / "lock")
    assert f"`invoke deploy-local`, process {holder.pid}, since " in str(raised.value)
    assert raised.value.exit_code == 3


def test_a_refused_attempt_does_not_wipe_the_holders_name(holder, tmp_path):
    for _ in range(2):
        with pytest.raises(EnvironmentFault, match=f"process {holder.pid}"):
            acquire(tmp_path / "lock")


def test_kill_9_frees_the_lock(holder, tmp_path):
    holder.kill()
    holder.wait()
    acquire(tmp_path / "lock")


def test_the_lock_is_free_after_its_block_however_that_ends(tmp_path):
    path = tmp_path / "deep" / "lock"
    with pytest.raises(KeyboardInterrupt), exclusive(path):
        raise KeyboardInterrupt
    with exclusive(path):
        assert f'"pid": {os.getpid()}' in path.read_text()
    assert path.read_text() == ""


def test_children_of_the_holder_do_not_keep_the_lock(tmp_path):
    with exclusive(tmp_path / "lock"):
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        acquire(tmp_path / "lock")
    finally:
        child.communicate()
