"""The launch stage: a server running in the background on the current artifacts, and proof that it is ready."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from dataclasses import replace

from launchpad import console, files
from launchpad.backends import BACKENDS, Backend, Choice, choose, how_ended, of, process
from launchpad.client import RestClient, ServerError
from launchpad.errors import EnvironmentFault, Problem
from launchpad.launch import deployment
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
        choice = choose(context)
        return [Plan(f"{choice.backend.name} server", _reason(context, choice.backend))]

    def run(self, context: Context) -> Outcome:
        choice = choose(context)
        running = running_server(context.layout)
        content = _content(context, choice.backend)
        if running and running.ready_s and running.content == content and not context.force and _is_ready(running):
            return Outcome("up to date", f"{_describe(running)}, kept running")
        for warning in choice.backend.warnings(context):
            console.say(f"  ! {warning}", "yellow")
        if running:  # which is ended only where the new one can have its ports
            _refuse_taken_ports(context, but=(running.rest_port, running.grpc_port))
        deployment.prepare(context.layout, list(context.declaration.pipeline.models))
        stop(context.layout, needed=choice.backend)
        files.publish(context.layout.deployment)
        server = _start(context, choice, content)
        what = f"{_describe(server)}, ready in {server.ready_s:.1f} s ({server.backend}: {server.why})"
        return Outcome("done", what)


def running_server(layout: Layout) -> Server | None:
    """Return the recorded server if it still runs."""
    server = Server.load(layout)
    return server if server and not how_ended(server) else None


def stop(layout: Layout, needed: Backend | None = None) -> int:
    """End every server of this checkout, recorded or not; return how many there were.

    Raises EnvironmentFault where a backend cannot end its servers; with `needed`, only where that one cannot.
    """
    ended = 0
    for backend in BACKENDS.values():
        try:
            ended += backend.stop(layout)
        except EnvironmentFault:
            if needed in (None, backend):
                raise
    layout.server_state.unlink(missing_ok=True)
    return ended


def _reason(context: Context, backend: Backend) -> str:
    running = running_server(context.layout)
    if running is None:
        return "none is running"
    if context.force:
        return "forced"
    try:
        return "what it serves has changed" if running.content != _content(context, backend) else ""
    except EnvironmentFault as fault:
        return fault.problems[0].what


def _content(context: Context, backend: Backend) -> str:
    models = list(context.declaration.pipeline.models)
    return files.digest([backend.name, backend.identity(context), deployment.content(context.layout, models)])


def _start(context: Context, choice: Choice, content: str) -> Server:
    """Start a server and wait for it. Raises EnvironmentFault, with the end of its log, if it does not get ready."""
    serving, layout = context.declaration.pipeline.serving, context.layout
    _refuse_taken_ports(context)
    draft = Server(
        instance=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
        backend=choice.backend.name,
        why=choice.why,
        content=content,
        command=[],
        rest_port=serving.ports.rest,
        grpc_port=serving.ports.grpc,
        metrics_path=serving.monitoring.path if serving.monitoring.enabled and serving.ports.rest else None,
        models=list(context.declaration.pipeline.models),
    )
    server = choice.backend.start(context, draft)
    try:
        server.save(layout)
        server = replace(server, ready_s=_await_ready(server, layout, serving.ready_timeout_s))
        _refuse_company(server)
        choice.backend.settle(context, server)
    except BaseException:
        stop(layout, needed=choice.backend)
        raise
    server.save(layout)
    return server


def _refuse_taken_ports(context: Context, but: Collection[int] = ()) -> None:
    """Raise EnvironmentFault for declared ports that something holds, except for some."""
    ports = context.declaration.pipeline.serving.ports
    problems = []
    for name, port in (("rest", ports.rest), ("grpc", ports.grpc)):
        holder = process.holder(port) if port and port not in but else None
        if holder:
            where = context.declaration.where("serving", "ports", name)
            problems.append(Problem(f"port {port} is taken by {holder}", where, "end it, or declare another port"))
    if problems:
        raise EnvironmentFault(problems)


def _refuse_company(server: Server) -> None:
    """Raise EnvironmentFault where another process listens on the server's ports too, and gets a part of its requests.

    Servers that can be replaced without a failed request share their ports; two that start at once both find them free.
    Those of a container are the engine's, which does not share them.
    """
    if server.container:
        return
    own = process.family(server.pid)
    for port in filter(None, (server.rest_port, server.grpc_port)):
        if others := process.listeners(port) - own:
            raise EnvironmentFault(
                f"port {port} was taken by {process.describe(min(others))} while the server started",
                fix="end it, or declare another port",
            )


def _await_ready(server: Server, layout: Layout, timeout_s: float) -> float:
    """Wait until every model is AVAILABLE; return the seconds that it took."""
    clock, backend = Stopwatch(), of(server)
    with console.progress(f"launch: {server.backend} server loads {', '.join(server.models)}") as advance:
        while True:
            unready = backend.unready(server) if _is_ready(server) else "not every model is AVAILABLE"
            if not unready:
                return round(clock.seconds, 2)
            if ended := how_ended(server):
                raise _failed(f"the server ended while starting: {ended}", server, layout)
            if clock.seconds > timeout_s:
                what = f"the server was not ready within {timeout_s:g} s (serving.ready_timeout_s): {unready}"
                raise _failed(what, server, layout)
            advance(min(clock.seconds, timeout_s), timeout_s)
            time.sleep(POLL_S)


def _is_ready(server: Server) -> bool:
    """Tell whether every model has a version AVAILABLE; with REST off, whether the gRPC port answers."""
    if server.rest_url is None:
        return process.holder(server.grpc_port) is not None
    client = RestClient(server.rest_url, timeout_s=5)
    try:
        return all("AVAILABLE" in client.states(model).values() for model in server.models)
    except ServerError:
        return False


def _failed(what: str, server: Server, layout: Layout) -> EnvironmentFault:
    tail = of(server).log_tail(layout, LOG_LINES)
    place = layout.relative(layout.server_log)
    shown = "\n    ".join([f"the end of {place}:", *tail]) if tail else f"{place} is empty"
    return EnvironmentFault(what, fix=shown)


def _describe(server: Server) -> str:
    places = [place for place in (server.rest_url, server.grpc_address and f"grpc://{server.grpc_address}") if place]
    return f"{server.backend} server, {of(server).describe(server)}, {' and '.join(places)}"
