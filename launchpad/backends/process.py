"""Server processes: who holds a port, which servers belong to this checkout, and how to end one."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil

STOP_TIMEOUT_S = 15.0
POLL_S = 0.05
HEARD = ("127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1")
"""Addresses at which a listener hears those who call 127.0.0.1."""


def holder(port: int) -> str | None:
    """Return who listens on a local TCP port, for people; None if nobody does."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return None
        except OSError:
            pass
    found = listeners(port)
    return describe(min(found)) if found else "a process of another user"


def listeners(port: int) -> set[int]:
    """Return the ids of the processes that get connections to a port of 127.0.0.1, of those that can be seen."""
    return {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr
        and connection.laddr.port == port
        and connection.laddr.ip in HEARD
        and connection.pid
    }


def family(pid: int) -> set[int]:
    """Return a process and what it has started, down to the last; nothing if it has ended."""
    try:
        return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    except psutil.Error:
        return set()


def describe(pid: int) -> str:
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        command = "?"
    return f"process {pid} ({command[:100]})"


def servers_of(deployment: Path, wanted: Callable[[list[str]], bool] = lambda command: True) -> list[psutil.Process]:
    """Return the running servers that serve from a deployment folder, however they came to be started.

    wanted: tells from a command line whether the server counts.
    """
    mark = f"--model_config_file={deployment}/"
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if any(word.startswith(mark) for word in command) and wanted(command):
            found.append(process)
    return found


def end(processes: list[psutil.Process]) -> None:
    """End processes: SIGTERM, so that they finish what is in flight; SIGKILL for those that do not."""
    for process in processes:
        _signal(process.terminate)
    alive = _await_end(processes)
    for process in alive:
        _signal(process.kill)
    _await_end(alive)


def _await_end(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Wait for processes; return those that still run. One that its parent has not waited for yet does not."""
    running, deadline = processes, time.monotonic() + STOP_TIMEOUT_S
    while running and time.monotonic() < deadline:
        _, running = psutil.wait_procs(running, timeout=POLL_S)
        running = [process for process in running if not _is_zombie(process)]
    return running


def _is_zombie(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return False


def _signal(send: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        send()
