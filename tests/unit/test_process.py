"""Processes: who holds a port, which servers are this checkout's, and how they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from launchpad import children
from launchpad.backends import process

WAIT = "print('up', flush=True); import sys; sys.stdin.read()"
FOR_EVER = "print('up', flush=True); import signal; signal.pause()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAIT


@pytest.fixture
def start():
    """Start Python on a piece of code, and wait until it says that it is up."""
    started = []

    def popen(code: str, *arguments: str, **options) -> subprocess.Popen:
        command = [sys.executable, "-c", code, *arguments]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)
        started.append(child)
        assert child.stdout.readline() == "up\n"
        return child

    yield popen
    for child in started:
        child.kill()
        child.communicate()


def test_a_free_port_has_no_holder():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert process.holder(port) is None


def test_a_taken_port_is_named_with_its_process(start):
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print('up', flush=True);"
    child = start(code + "print(s.getsockname()[1], flush=True); import sys; sys.stdin.read()", "a-mark")
    port = int(child.stdout.readline())
    assert process.holder(port).startswith(f"process {child.pid} ({sys.executable} -c")


def test_who_listens_at_another_address_is_not_heard_here():
    with socket.create_server(("127.0.0.1", 0)) as mine:
        port = mine.getsockname()[1]
        with socket.create_server(("127.0.0.2", port)):
            assert process.listeners(port) == {os.getpid()}
        mine.close()
        with socket.create_server(("127.0.0.2", port)):
            assert process.listeners(port) == set()


def test_what_a_process_has_started_is_its_family(start):
    child = start(WAIT)
    assert child.pid in process.family(os.getpid()) and process.family(child.pid) == {child.pid}


def test_servers_are_known_by_the_deployment_that_they_serve(start, tmp_path):
    mine = start(WAIT, f"--model_config_file={tmp_path}/config/models.config")
    start(WAIT, f"--model_config_file={tmp_path}-other/config/models.config")
    assert [found.pid for found in process.servers_of(tmp_path)] == [mine.pid]


def test_a_server_is_asked_to_end_first(start):
    server = psutil.Process(start(WAIT).pid)
    process.end([server])
    assert server.wait() == -signal.SIGTERM


def test_a_server_that_does_not_listen_is_killed(start, monkeypatch):
    monkeypatch.setattr(process, "STOP_TIMEOUT_S", 0.05)
    server = psutil.Process(start(DEAF).pid)
    process.end([server])
    assert server.wait() == -signal.SIGKILL


def test_a_server_whose_parent_never_waits_for_it_has_ended_all_the_same(start, monkeypatch):
    code = (
        "import subprocess, sys;"
        f"child = subprocess.Popen([sys.executable, '-c', {FOR_EVER!r}], stdout=subprocess.PIPE, text=True);"
        "child.stdout.readline(); print('up', flush=True); print(child.pid, flush=True); sys.stdin.read()"
    )
    parent = start(code)
    server = psutil.Process(int(parent.stdout.readline()))
    killed = []
    monkeypatch.setattr(psutil.Process, "kill", killed.append)
    monkeypatch.setattr(process, "STOP_TIMEOUT_S", 5.0)
    process.end([server])
    assert server.status() == psutil.STATUS_ZOMBIE and killed == []


def test_ending_what_has_ended_is_no_error(start):
    child = start(WAIT)
    gone = psutil.Process(child.pid)
    child.kill()
    child.wait()
    process.end([gone])


def test_a_child_ends_with_its_parent_even_when_that_is_killed(start, repository):
    code = (
        "import subprocess, sys; from launchpad import children;"
        f"child = subprocess.Popen([sys.executable, '-c', {FOR_EVER!r}], "
        "stdout=subprocess.PIPE, text=True, preexec_fn=children.end_with_parent);"
        "child.stdout.readline(); print('up', flush=True); print(child.pid, flush=True); sys.stdin.read()"
    )
    parent = start(code, env=children.environment(), cwd="/")
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    gone, alive = psutil.wait_procs([child], timeout=10)
    assert (gone, alive) == ([child], [])


def test_a_child_can_be_interrupted_where_its_parent_ignores_that(start, repository):
    """As everything does that a shell has started in the background."""
    code = (
        "import signal, subprocess, sys; from launchpad import children; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        f"child = subprocess.Popen([sys.executable, '-c', {FOR_EVER!r}], "
        "stdout=subprocess.PIPE, text=True, preexec_fn=children.end_with_parent);"
        "child.stdout.readline(); child.send_signal(signal.SIGINT); "
        "print('up', flush=True); print(child.wait(10), flush=True)"
    )
    parent = start(code, env=children.environment(), cwd="/")
    assert parent.stdout.readline() != ""
