"""Rolling replacement: a launched server gives way to another on the same ports, with no request lost.

For what a server reads once, at its start: the thread pool of its batches. The new server is started beside the old
one, on the same deployment, and loads and warms its models while the old one serves; when it listens too, the old one
leaves the ports to it. That takes a server that can share its ports. The embedded one can; tensorflow_model_server
cannot, and neither can a container's published ports: there, something in front of the servers has to do it, as
Kubernetes does.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from launchpad import files, flagfile
from launchpad.backends import how_ended, of, process
from launchpad.errors import EnvironmentFault
from launchpad.layout import FLAGS_FILE, Layout
from launchpad.publishing import NotLoaded
from launchpad.server import Server
from launchpad.stage import Context, Stopwatch

POLL_S = 0.05
LEAVE_TIMEOUT_S = 45.0
"""The old server waits for its clients to go over and for what is in flight; past this it is ended."""
SHARES = "--share_ports"
PARAMETERS_FLAG = "--batching_parameters_file="


def obstacle(server: Server) -> str:
    """Return why a server cannot be replaced while it serves; empty where it can."""
    if SHARES not in server.command:
        return f"two {server.backend} servers cannot share a port: its thread pool changes only by a new launch"
    return ""


def batch_threads(layout: Layout) -> int:
    """Return the batch threads of the server as it was started. Raises EnvironmentFault where it does not batch."""
    return int(_parameters(_file(layout)).num_batch_threads.value)


def with_batch_threads(context: Context, threads: int) -> Server:
    """Replace the launched server by one with another number of batch threads; return the new one.

    Raises EnvironmentFault where that is not possible, NotLoaded where the new one does not start; the old one then
    serves on.
    """
    layout = context.layout
    old = Server.ready(layout)
    if why := obstacle(old):
        raise EnvironmentFault(why, fix="declare serving.batching.num_batch_threads and run `invoke launch`")
    with _told(_file(layout), threads):
        new = _start(context, old)
        new = replace(new, adjusted={**old.adjusted, "batch threads": str(threads)})
        new.save(layout)
    with suppress(ProcessLookupError):
        os.kill(old.pid, signal.SIGUSR2)
    _await_end(old)
    return new


@contextmanager
def _told(path: Path, threads: int) -> Iterator[None]:
    """Have the next server that starts take so many threads; if the block fails, the file is as it was."""
    from google.protobuf import text_format

    before = path.read_text(encoding="utf-8")
    message = _parameters(path)
    message.num_batch_threads.value = threads
    files.write_text(path, text_format.MessageToString(message))
    try:
        yield
    except BaseException:
        files.write_text(path, before)
        raise


def _start(context: Context, old: Server) -> Server:
    """Start a server beside the old one and wait until it listens as that does."""
    layout = context.layout
    draft = replace(old, instance=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}", ready_s=None)
    layout.server_log.replace(layout.server_log.with_suffix(".old.log"))  # the old one writes on in it
    clock = Stopwatch()
    new = of(old).start(context, draft)
    try:
        _await_listening(new, context.declaration.pipeline.serving.ready_timeout_s)
    except BaseException:
        _end(new)
        layout.server_log.with_suffix(".old.log").replace(layout.server_log)
        raise
    return replace(new, ready_s=round(clock.seconds, 2))


def _await_listening(server: Server, timeout_s: float) -> None:
    """Wait until a server's ports are open, which they are when all its models are loaded and warm."""
    wanted = {port for port in (server.rest_port, server.grpc_port) if port}
    clock = Stopwatch()
    while not wanted <= _listening(server.pid):
        if ended := how_ended(server):
            raise NotLoaded(f"the new server ended while starting: {ended}", fix="the old one serves on")
        if clock.seconds > timeout_s:
            raise NotLoaded(f"the new server was not ready within {timeout_s:g} s", fix="the old one serves on")
        time.sleep(POLL_S)


def _listening(pid: int) -> set[int]:
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return set()
    return {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}


def _await_end(server: Server) -> None:
    clock = Stopwatch()
    while not how_ended(server) and clock.seconds < LEAVE_TIMEOUT_S:
        time.sleep(POLL_S)
    _end(server)


def _end(server: Server) -> None:
    with suppress(psutil.Error):
        if not how_ended(server):
            process.end([psutil.Process(server.pid)])


def _file(layout: Layout) -> Path:
    for word in flagfile.read(layout.deployment / "config" / FLAGS_FILE):
        if word.startswith(PARAMETERS_FLAG):
            return Path(word.removeprefix(PARAMETERS_FLAG))
    raise EnvironmentFault("the server was launched without batching: it has no batch threads")


def _parameters(path: Path) -> Any:
    from google.protobuf import text_format

    from launchpad.modelserver import protos

    return text_format.Parse(path.read_text(encoding="utf-8"), protos.BatchingParameters())
