"""Backends: where a model server can run. One interface, with the same flags on the same files behind each."""

from __future__ import annotations

from launchpad.backends.base import Backend, Choice
from launchpad.backends.container import Docker
from launchpad.backends.program import Embedded, Native
from launchpad.errors import EnvironmentFault, Problem
from launchpad.server import Server
from launchpad.stage import Context

__all__ = ["BACKENDS", "Backend", "Choice", "Docker", "Embedded", "Native", "choose", "how_ended", "of"]

BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (Docker(), Native(), Embedded())}
"""By name, in the order in which `auto` tries them."""


def of(server: Server) -> Backend:
    """Return the backend that runs a recorded server."""
    return BACKENDS[server.backend]


def how_ended(server: Server) -> str:
    """Return how a recorded server has ended, such as `exit code 1`; empty while this very start of it runs."""
    backend = of(server)
    return "" if backend.is_running(server) else backend.ending(server)


def choose(context: Context) -> Choice:
    """Return the declared backend, or with `auto` the first that can work, and a line on why.

    Raises EnvironmentFault where the declared one cannot work, or none can.
    """
    wanted = context.declaration.pipeline.serving.backend
    passed_over: list[tuple[str, Problem]] = []
    for backend in BACKENDS.values():
        if wanted not in (backend.name, "auto"):
            continue
        problem = backend.obstacle(context)
        if problem is None:
            reasons = [f"{name}: {passed.what}" for name, passed in passed_over]
            return Choice(backend, "declared" if wanted == backend.name else "; ".join([*reasons, backend.merit]))
        passed_over.append((backend.name, problem))
    where = context.declaration.where("serving", "backend")
    raise EnvironmentFault([Problem(f"{name}: {problem.what}", where, problem.fix) for name, problem in passed_over])
