"""A workbench: a checkout beside the user's own, in which servers with other parameters are started and measured.

It has the same models and code by links, ports of its own, and runs the project's commands and loads as a user does, so
that what is measured on it is what those commands measure. The user's server and files are left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from launchpad import children, files
from launchpad.backends import choose, how_ended
from launchpad.declaration import FILE, Declaration
from launchpad.errors import EnvironmentFault, GateFailed
from launchpad.layout import Layout
from launchpad.loadtest.cores import apart
from launchpad.loadtest.generator import Ending, drive
from launchpad.loadtest.stage import new_run
from launchpad.server import Server
from launchpad.spec import Batching, BatchQueue, Profile, Traffic
from launchpad.stage import Context

LINKED = ("launchpad", "models", "tasks.py", "loadtests/locustfile.py")
INVOKE, START = "invoke", "launchpad.tune.start"
LOG = "commands.log"
COMMAND_TIMEOUT_S = 420.0


class Bench:
    """A checkout of its own at `root`, on a declaration derived from the user's.

    versions: {model: a SavedModel to serve in place of the user's}.
    """

    def __init__(
        self,
        declaration: Declaration,
        root: Path,
        traffic: Sequence[Traffic],
        versions: Mapping[str, Path] | None = None,
    ) -> None:
        self._declaration = declaration
        self._traffic = traffic
        self.layout = Layout(root)
        root.mkdir(parents=True, exist_ok=True)
        (root / "loadtests").mkdir(exist_ok=True)
        for name in LINKED:
            _link(declaration.root / name, root / name)
        if versions:
            _replace_versions(declaration.root / "models", root / "models", versions)
        self._rest, self._grpc = _free_ports(2)

    @property
    def flags(self) -> Mapping[str, Any]:
        """The flags that the user declares."""
        return self._declaration.pipeline.serving.flags

    def declare(
        self,
        batching: Mapping[str, BatchQueue | None],
        threads: int,
        flags: Mapping[str, Any] | None = None,
        load: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the declaration: batching by model (None: off), batch threads, more flags, the load of `loadtest`."""
        document = yaml.safe_load((self._declaration.root / FILE).read_text(encoding="utf-8"))
        serving = document.setdefault("serving", {})
        serving["ports"] = {
            "rest": self._rest,
            "grpc": self._grpc if self._declaration.pipeline.serving.ports.grpc else 0,
        }
        serving["flags"] = {**serving.get("flags", {}), **(flags or {})}
        used = [queue for queue in batching.values() if queue]
        serving["batching"] = _plain(Batching(**used[0].model_dump(), num_batch_threads=threads)) if used else "off"
        for name, model in document["models"].items():
            model.pop("batching", None)
            if used:
                model["batching"] = _plain(batching[name]) if batching.get(name) else "off"
        document.pop("autotune", None)
        traffic = [line.model_dump(mode="json") for line in self._traffic]
        profile = {**(load or {"users": 16, "duration_s": 5}), "traffic": traffic}
        document["loadtest"] = {"profile": "tune", "profiles": {"tune": profile}}
        document["release"] = {}
        document["store"] = "sqlite:///.launchpad/store.db"
        files.write_text(self.layout.root / FILE, yaml.safe_dump(document, sort_keys=False))

    def launch(self) -> Server:
        """Start a server on what is declared, and warm it up. Raises EnvironmentFault if it does not get ready."""
        in_a_container = choose(Context(self._declaration)).backend.name == "docker"
        self._run(START, "configure", *(["build"] if in_a_container else []), "launch", "warmup")
        return Server.ready(self.layout)

    def invoke(self, *words: str, allowed: Sequence[int] = (0,)) -> int:
        """Run one of the project's commands to its end; return its exit code.

        Raises EnvironmentFault, with the end of its output, for an exit code that is not allowed.
        """
        return self._run(INVOKE, *words, allowed=allowed)

    def outcome(self, *words: str, file: str) -> dict[str, Any]:
        """Run a command that ends with 1 where an objective does not hold; return what it left in a run's file.

        Raises EnvironmentFault, with the end of its output, where it left nothing.
        """
        before = len(self.results(file))
        self.invoke(*words, allowed=(0, 1))
        found = self.results(file)
        if len(found) == before:
            raise EnvironmentFault(f"`{' '.join(words)}` on the workbench: {self._said()}", str(self.layout.root))
        return found[-1]

    def _said(self) -> str:
        """Return the last lines that a command wrote."""
        said = (self.layout.root / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n    ".join(said[-8:])

    def _run(self, module: str, *words: str, allowed: Sequence[int] = (0,)) -> int:
        """Run one of the project's commands; it does not outlive the call, nor this process."""
        with (self.layout.root / LOG).open("wb") as log:
            command = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                cwd=self.layout.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**children.environment(), "PYTHONDONTWRITEBYTECODE": "1"},
                start_new_session=True,
                preexec_fn=children.end_with_parent,
            )
        try:
            code = command.wait(timeout=COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            what = f"`{' '.join(words)}` on the workbench was not over after {COMMAND_TIMEOUT_S:g} s, and was ended"
            raise EnvironmentFault(what, str(self.layout.root / LOG)) from None
        finally:
            if command.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(command.pid, signal.SIGINT)
                command.wait(timeout=30)
        if code not in allowed:
            kind = GateFailed if code == 1 else EnvironmentFault
            raise kind(f"`{' '.join(words)}` on the workbench: {self._said()}", str(self.layout.root))
        return code

    def put(self, load: Profile, server: Server, ending: Ending) -> Path:
        """Put a load on the server to its end, as `invoke loadtest` does; return the folder of what was measured.

        Raises EnvironmentFault if it is not driven to its end.
        """
        folder = self.layout.results(new_run())
        folder.mkdir(parents=True)
        with apart(server, 1):
            drive(self.layout, lambda: how_ended(server), load, 1, folder, ending, observe=lambda part: True)
        if ending.status != "completed":
            raise EnvironmentFault(f"a load on the workbench: {ending.why}", str(folder))
        return folder

    def results(self, file: str) -> list[dict[str, Any]]:
        """Return what runs left in a file of theirs, such as `summary.json`, oldest first."""
        folders = sorted((self.layout.root / "loadtests" / "results").glob("*/"))
        return [json.loads((folder / file).read_text()) for folder in folders if (folder / file).exists()]

    def stop(self) -> None:
        """End the workbench's server."""
        self.invoke("stop")


def _link(target: Path, link: Path) -> None:
    if not (link.is_symlink() and link.readlink() == target):
        files.remove(link)
        link.symlink_to(target)


def _replace_versions(models: Path, place: Path, versions: Mapping[str, Path]) -> None:
    """Make a folder of links to all models in place of the link to theirs, with other SavedModels for some."""
    place.unlink()
    for model in models.iterdir():
        if model.name not in versions:
            (place / model.name).parent.mkdir(exist_ok=True)
            _link(model, place / model.name)
            continue
        (place / model.name / "versions").mkdir(parents=True)
        for part in model.iterdir():
            if part.name != "versions":
                _link(part, place / model.name / part.name)
        version = versions[model.name]
        _link(version, place / model.name / "versions" / version.name)


def _plain(queue: BatchQueue | None) -> Any:
    return queue.model_dump(mode="json", exclude_none=True, exclude_defaults=True) if queue else "off"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
