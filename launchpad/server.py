"""The record of the launched server: written by launch, read by every stage that talks to it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import psutil

from launchpad import files
from launchpad.errors import EnvironmentFault
from launchpad.layout import Layout


@dataclass(frozen=True)
class Server:
    """A server that was started.

    instance: names this start of the server; results measured on it carry the name.
    content: hash of what it serves, configuration included.
    command: what was run, paths below the checkout relative to it.
    created: start time of the process, seconds since the epoch; with the pid it names the process for good.
    ready_s: seconds from start to every model AVAILABLE; None until then.
    """

    instance: str
    backend: str
    why: str
    content: str
    pid: int
    created: float
    command: list[str]
    rest_port: int
    grpc_port: int
    metrics_path: str | None
    models: list[str]
    ready_s: float | None = None

    @property
    def rest_url(self) -> str | None:
        return f"http://127.0.0.1:{self.rest_port}" if self.rest_port else None

    @property
    def grpc_address(self) -> str | None:
        return f"127.0.0.1:{self.grpc_port}" if self.grpc_port else None

    @property
    def is_running(self) -> bool:
        """Tell whether this very process still runs; one that has ended and not been waited for does not."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def save(self, layout: Layout) -> None:
        files.write_json(layout.server_state, asdict(self))

    @classmethod
    def load(cls, layout: Layout) -> Server | None:
        """Return the last server started in this checkout, running or not; None if there is no whole record."""
        state: dict[str, Any] | None = files.read_json(layout.server_state)
        try:
            return cls(**state) if state else None
        except TypeError:
            return None

    @classmethod
    def ready(cls, layout: Layout) -> Server:
        """Return the server that was launched. Raises EnvironmentFault if none was, or it never got ready."""
        server = cls.load(layout)
        if server is None or server.ready_s is None:
            raise EnvironmentFault("no server has been launched in this checkout", fix="run `invoke launch`")
        return server
