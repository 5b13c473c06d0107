"""Backends whose server is a process of this machine: the embedded server, and an installed tensorflow_model_server."""

from __future__ import annotations

import functools
import re
import shutil
import signal
import subprocess
import sys
import time
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path

import psutil

from launchpad import children, files, flagfile, versions
from launchpad.backends import process
from launchpad.backends.base import Backend, first_start
from launchpad.errors import EnvironmentFault, Problem
from launchpad.layout import FLAGS_FILE, Layout
from launchpad.server import Server
from launchpad.stage import Context

GPU_DEVICE = Path("/dev/nvidiactl")
VERSION_TIMEOUT_S = 20.0


class Program(Backend):
    """A server that is a process; found again by pid and start time, or by the deployment in its command line."""

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    @abstractmethod
    def program(self, context: Context) -> list[str]:
        """Return the words before the flags."""

    def command(self, context: Context) -> list[str]:
        flags = flagfile.read(context.layout.deployment / "config" / FLAGS_FILE)
        return [*self.program(context), *flags, *first_start(context.declaration.pipeline.serving)]

    def start(self, context: Context, draft: Server) -> Server:
        log_file = context.layout.server_log
        log_file.parent.mkdir(parents=True, exist_ok=True)
        command = self.command(context)
        with log_file.open("wb") as log:
            try:
                child = subprocess.Popen(
                    command,
                    cwd=context.layout.root,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=children.environment(),
                )
            except OSError as error:
                raise EnvironmentFault(f"{command[0]} cannot be started: {error.strerror}") from None
        self._children[child.pid] = child
        program, *arguments = [word.replace(f"{context.layout.root}/", "") for word in command]
        if Path(program).is_absolute():  # results are committed, and a folder of this machine says nothing elsewhere
            program = Path(program).name
        return replace(draft, pid=child.pid, created=_created(child.pid), command=[program, *arguments])

    def is_running(self, server: Server) -> bool:
        """One that has ended and not been waited for does not run."""
        try:
            found = psutil.Process(server.pid)
            return abs(found.create_time() - server.created) < 1 and found.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def ending(self, server: Server) -> str:
        child = self._children.get(server.pid)
        if child is None:
            return "its process is gone"
        code = child.wait()  # for a moment at most: it runs no more
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def find(self, layout: Layout) -> list[str]:
        return [f"process {found.pid}" for found in self._servers(layout)]

    def stop(self, layout: Layout) -> int:
        servers = self._servers(layout)
        process.end(servers)
        return len(servers)

    def describe(self, server: Server) -> str:
        return f"process {server.pid}"

    def _servers(self, layout: Layout) -> list[psutil.Process]:
        return process.servers_of(layout.deployment, self.is_own)

    @abstractmethod
    def is_own(self, command: list[str]) -> bool:
        """Tell whether a server's command line is of this backend."""


class Embedded(Program):
    """This project's own server, in this Python. Always works, on the processors."""

    name = "embedded"
    merit = "the embedded server always works"
    MODULE = "launchpad.modelserver"
    PACKAGE = Path(__file__).parent.parent / "modelserver"

    def obstacle(self, context: Context) -> Problem | None:
        if context.declaration.pipeline.serving.gpu == "require":
            return Problem("the embedded server runs on the processors", fix="declare serving.gpu: prefer")
        return None

    def identity(self, context: Context) -> str:
        return files.digest(files.tree(self.PACKAGE))

    def program(self, context: Context) -> list[str]:
        return [sys.executable, "-m", self.MODULE, "--host=127.0.0.1", "--share_ports"]

    def is_own(self, command: list[str]) -> bool:
        return command[1:3] == ["-m", self.MODULE]


class Native(Program):
    """An installed tensorflow_model_server. It has no flag for an address: it listens on all of them."""

    name = "native"
    merit = "tensorflow_model_server is installed"

    def obstacle(self, context: Context) -> Problem | None:
        serving = context.declaration.pipeline.serving
        binary = _find(serving.binary, context.layout.root)
        if binary is None:
            fix = "install the tensorflow-model-server package, or name the program in serving.binary"
            if "/" in serving.binary:
                return Problem(f"{serving.binary} is no program (serving.binary)", fix=fix)
            return Problem(f"there is no {serving.binary} on the PATH", fix=fix)
        if serving.gpu == "require" and not GPU_DEVICE.exists():
            return Problem(
                f"serving.gpu is require, and this machine has no {GPU_DEVICE}",
                fix="install the NVIDIA driver, or declare serving.gpu: prefer",
            )
        try:
            version_of(binary)
        except EnvironmentFault as fault:
            return fault.problems[0]
        return None

    def identity(self, context: Context) -> str:
        binary = self._binary(context)
        return files.digest([binary, version_of(binary), Path(binary).stat().st_mtime_ns])

    def warnings(self, context: Context) -> list[Problem]:
        pipeline = context.declaration.pipeline
        server = version_of(self._binary(context))
        where = context.declaration.where("serving", "binary")
        return [
            Problem(
                f"{name} was exported with TensorFlow {exporter}, newer than {pipeline.serving.binary} {server}",
                where,
                "export with the server's minor version or an older one, or install a newer server",
            )
            for name, exporter in versions.exporters(context.layout, pipeline).items()
            if versions.newer(exporter, server)
        ]

    def program(self, context: Context) -> list[str]:
        return [self._binary(context)]

    def is_own(self, command: list[str]) -> bool:
        return command[1:3] != ["-m", Embedded.MODULE]

    def _binary(self, context: Context) -> str:
        binary = _find(context.declaration.pipeline.serving.binary, context.layout.root)
        if binary is None:
            raise EnvironmentFault("tensorflow_model_server is gone", fix="install it, or declare another backend")
        return binary


@functools.cache
def version_of(binary: str) -> str:
    """Return the TensorFlow version that a server program says it has. Raises EnvironmentFault if it says none."""
    try:
        done = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, env=children.environment()
        )
        said = done.stdout + done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    # two lines: `TensorFlow ModelServer: 2.18.1-rc0+...` and `TensorFlow Library: 2.18.1`
    found = re.search(r"TensorFlow Library: (\S+)", said) or re.search(r"TensorFlow ModelServer: (\d\S+)", said)
    if found is None:
        shown = (said.strip().splitlines() or ["nothing"])[-1]
        raise EnvironmentFault(
            f"{binary} --version does not answer as tensorflow_model_server: {shown[:200]}",
            fix="reinstall it, or name another in serving.binary",
        )
    return found[1]


def _find(binary: str, root: Path) -> str | None:
    """Return the absolute path of a program given by name or by path, which counts from the checkout."""
    if "/" in binary:
        place = (root / Path(binary).expanduser()).absolute()
        return shutil.which(str(place))
    return shutil.which(binary)


def _created(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return time.time()
