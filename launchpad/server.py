"""The record of the launched server: written by launch, read by all that talk to it. `backends` tells how it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from launchpad import files
from launchpad.errors import EnvironmentFault
from launchpad.layout import Layout
from launchpad.spec import BackendName


@dataclass(frozen=True)
class Server:
    """A server that was started.

    instance: names this start of the server; results measured on it carry the name.
    content: hash of what it serves, configuration included.
    command: what was run, paths below the checkout relative to it; a program elsewhere by its name.
    pid: the server's process; in a container the process that the engine started.
    created: start time of the process, seconds since the epoch; with the pid it names the process for good.
    container: id of the container that it runs in; empty where it runs in none.
    ready_s: seconds from start to every model AVAILABLE; None until then.
    adjusted: {what: how} of everything that was changed since while it ran, such as a model's batching parameters.
    """

    instance: str
    backend: str
    why: str
    content: str
    command: list[str]
    rest_port: int
    grpc_port: int
    metrics_path: str | None
    models: list[str]
    pid: int = 0
    created: float = 0.0
    container: str = ""
    ready_s: float | None = None
    adjusted: dict[str, str] = field(default_factory=dict)

    @property
    def configuration(self) -> str:
        """Hash of what it serves now: what it was launched with, and what was changed since."""
        return files.digest([self.content, self.adjusted]) if self.adjusted else self.content

    @property
    def rest_url(self) -> str | None:
        return f"http://127.0.0.1:{self.rest_port}" if self.rest_port else None

    @property
    def grpc_address(self) -> str | None:
        return f"127.0.0.1:{self.grpc_port}" if self.grpc_port else None

    def save(self, layout: Layout) -> None:
        files.write_json(layout.server_state, asdict(self))

    @classmethod
    def load(cls, layout: Layout) -> Server | None:
        """Return the last server started in this checkout, running or not; None if there is no whole record."""
        state: dict[str, Any] | None = files.read_json(layout.server_state)
        try:
            server = cls(**state) if state else None
        except TypeError:
            return None
        return server if server and server.backend in get_args(BackendName) else None

    @classmethod
    def ready(cls, layout: Layout) -> Server:
        """Return the server that was launched. Raises EnvironmentFault if none was, or it never got ready."""
        server = cls.load(layout)
        if server is None or server.ready_s is None:
            raise EnvironmentFault("no server has been launched in this checkout", fix="run `invoke launch`")
        return server
