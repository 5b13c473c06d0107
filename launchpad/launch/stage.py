"""The launch stage: a server running in the background on the current artifacts, and proof that it is ready."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import psutil

from launchpad import console, files
from launchpad.client import RestClient, ServerError
from launchpad.errors import EnvironmentFault, Problem
from launchpad.launch import deployment, process
from launchpad.launch.backends import Backend, choose
from launchpad.layout import Layout
from launchpad.server import Server
from launchpad.stage import Context, Outcome, Plan, Stage, Stopwatch

POLL_S = 0.05
LOG_LINES = 15


class Launch(Stage):
    name = "launch"
    summary = "start the model server on 127.0.0.1 and wait until every model is AVAILABLE"
    follows = ("export", "configure", "build")

    def plan(self, context: Context) -> list[Plan]:
        backend, _ = choose(context.declaration)
        running = running_server(context.layout)
        if running is None:
            return [Plan(f"{backend.name} server", "none is running")]
        if context.force:
            return [Plan(f"{backend.name} server", "forced")]
        changed = running.content != _content(context, backend)
        return [Plan(f"{backend.name} server", "what it serves has changed" if changed else "")]

    def run(self, context: Context) -> Outcome:
        backend, why = choose(context.declaration)
        running = running_server(context.layout)
        content = _content(context, backend)
        if running and running.ready_s and running.content == content and not context.force and _is_ready(running):
            return Outcome("up to date", f"{_describe(running)}, kept running")
        deployment.prepare(context.layout, list(context.declaration.pipeline.models))
        stop(context.layout)
        files.publish(context.layout.deployment)
        server = _start(context, backend, why, content)
        return Outcome("done", f"{_describe(server)}, ready in {server.ready_s:.1f} s ({backend.name}: {why})")


def running_server(layout: Layout) -> Server | None:
    """Return the recorded server if its process still runs."""
    server = Server.load(layout)
    return server if server and server.is_running else None


def stop(layout: Layout) -> int:
    """End every server of this checkout, recorded or not; return how many there were."""
    servers = process.servers_of(layout.deployment)
    process.end(servers)
    layout.server_state.unlink(missing_ok=True)
    return len(servers)


def log_tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log; none if there is no log."""
    try:
        with path.open(encoding="utf-8", errors="replace") as log:
            return [line.rstrip("\n") for line in deque(log, lines)]
    except FileNotFoundError:
        return []


def _content(context: Context, backend: Backend) -> str:
    models = list(context.declaration.pipeline.models)
    return files.digest([backend.name, backend.identity(), deployment.content(context.layout, models)])


def _start(context: Context, backend: Backend, why: str, content: str) -> Server:
    """Start a server and wait for it. Raises EnvironmentFault, with the end of its log, if it does not get ready."""
    serving, layout = context.declaration.pipeline.serving, context.layout
    _refuse_taken_ports(context)
    flags = deployment.flags(layout)
    child = backend.start(layout, flags)
    server = Server(
        instance=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
        backend=backend.name,
        why=why,
        content=content,
        pid=child.pid,
        created=_created(child.pid),
        command=[word.replace(f"{layout.root}/", "") for word in backend.command(flags)],
        rest_port=serving.ports.rest,
        grpc_port=serving.ports.grpc,
        metrics_path=serving.monitoring.path if serving.monitoring.enabled and serving.ports.rest else None,
        models=list(context.declaration.pipeline.models),
    )
    server.save(layout)
    try:
        server = replace(server, ready_s=_await_ready(server, child, layout, serving.ready_timeout_s))
    except BaseException:
        stop(layout)
        raise
    server.save(layout)
    return server


def _created(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return time.time()


def _refuse_taken_ports(context: Context) -> None:
    ports = context.declaration.pipeline.serving.ports
    problems = []
    for name, port in (("rest", ports.rest), ("grpc", ports.grpc)):
        holder = process.holder(port) if port else None
        if holder:
            where = context.declaration.where("serving", "ports", name)
            problems.append(Problem(f"port {port} is taken by {holder}", where, "end it, or declare another port"))
    if problems:
        raise EnvironmentFault(problems)


def _await_ready(server: Server, child: subprocess.Popen[bytes], layout: Layout, timeout_s: float) -> float:
    """Wait until every model is AVAILABLE; return the seconds that it took."""
    clock = Stopwatch()
    with console.progress(f"launch: {server.backend} server loads {', '.join(server.models)}") as advance:
        while not _is_ready(server):
            if child.poll() is not None:
                raise _failed(f"the server ended with exit code {child.returncode} while starting", layout)
            if clock.seconds > timeout_s:
                raise _failed(f"the server was not ready within {timeout_s:g} s (serving.ready_timeout_s)", layout)
            advance(min(clock.seconds, timeout_s), timeout_s)
            time.sleep(POLL_S)
    return round(clock.seconds, 2)


def _is_ready(server: Server) -> bool:
    """Tell whether every model has a version AVAILABLE; with REST off, whether the gRPC port answers."""
    if server.rest_url is None:
        return process.holder(server.grpc_port) is not None
    client = RestClient(server.rest_url, timeout_s=5)
    try:
        return all("AVAILABLE" in client.states(model).values() for model in server.models)
    except ServerError:
        return False


def _failed(what: str, layout: Layout) -> EnvironmentFault:
    tail = log_tail(layout.server_log, LOG_LINES)
    place = layout.relative(layout.server_log)
    shown = "\n    ".join([f"the end of {place}:", *tail]) if tail else f"{place} is empty"
    return EnvironmentFault(what, fix=shown)


def _describe(server: Server) -> str:
    places = [place for place in (server.rest_url, server.grpc_address and f"grpc://{server.grpc_address}") if place]
    return f"{server.backend} server, process {server.pid}, {' and '.join(places)}"
