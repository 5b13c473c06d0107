"""What is to be known of the launched server: its models, their versions and states, uptime, requests served."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass, field
from pathlib import Path

from launchpad import console, metrics
from launchpad.backends import BACKENDS, how_ended, of
from launchpad.client import RestClient, ServerError
from launchpad.launch.stage import running_server
from launchpad.layout import Layout
from launchpad.server import Server


@dataclass(frozen=True)
class ModelStatus:
    """A version of a model; `requests` is None where the server has no metrics page."""

    model: str
    version: int
    state: str
    requests: int | None


@dataclass(frozen=True)
class ServerStatus:
    server: Server
    uptime_s: float
    models: list[ModelStatus] = field(default_factory=list)
    trouble: str = ""


def status(layout: Layout) -> ServerStatus | None:
    """Return the state of the running server; None if none is running in this checkout."""
    server = running_server(layout)
    if server is None:
        return None
    uptime_s = time.time() - server.created
    if server.rest_url is None:
        return ServerStatus(server, uptime_s, trouble="REST is off: no model status")
    client = RestClient(server.rest_url, timeout_s=2)
    try:
        requests = _requests(client.metrics(server.metrics_path)) if server.metrics_path else None
        models = [
            ModelStatus(model, version, state, requests.of(model).answered if requests else None)
            for model in server.models
            for version, state in sorted(client.states(model).items())
        ]
    except ServerError as error:
        return ServerStatus(server, uptime_s, trouble=f"does not answer: {error.kind}")
    except ValueError as error:
        return ServerStatus(server, uptime_s, trouble=str(error))
    return ServerStatus(server, uptime_s, models)


def _requests(page: str) -> metrics.Interval:
    """Return what the server has answered since its start."""
    return metrics.between(metrics.Snapshot(0.0), metrics.parse(page, 1.0))


def show(root: Path) -> None:
    """Print the state of the running server."""
    found = status(Layout(root))
    if found is None:
        _show_none(Layout(root))
        return
    server = found.server
    places = ", ".join(filter(None, [server.rest_url, server.grpc_address and f"grpc://{server.grpc_address}"]))
    console.say(f"{server.backend} server, {of(server).describe(server)}, up {_duration(found.uptime_s)}, {places}")
    if found.trouble:
        console.say(f"  {found.trouble}", "yellow")
    rows = [
        (row.model, row.version, row.state, "–" if row.requests is None else f"{row.requests:,}")
        for row in found.models
    ]
    if rows:
        console.table("", ("model", "version", "state", "requests served"), rows, right=("version", "requests served"))
    for what, how in server.adjusted.items():
        console.say(f"  {what}, changed while it ran: {how}")


def _show_none(layout: Layout) -> None:
    """Say that the launched server does not run, how it ended, and which others of this checkout do."""
    others = [found for backend in BACKENDS.values() for found in backend.find(layout)]
    if not others:
        console.say("no server is running in this checkout; `invoke launch` starts one")
    server = Server.load(layout)
    if server:
        console.say(f"  the last one, {of(server).describe(server)}, has ended: {how_ended(server)}", "yellow")
    for found in others:
        console.say(
            f"  {found} runs and is not as launched; `invoke launch` replaces it, `invoke stop` ends it", "yellow"
        )


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))
