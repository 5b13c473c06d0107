"""Runs Locust in processes of its own on a profile, and keeps what they measure in a run folder."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from launchpad import children
from launchpad.layout import Layout
from launchpad.loadtest.writer import RunWriter
from launchpad.spec import ClosedLoop, Profile

LOG = "locust.log"
USER_CLASS = "DeclaredTraffic"
LOAD, PROCESSES = "LAUNCHPAD_LOAD", "LAUNCHPAD_PROCESSES"
GRACE_S = 60.0
"""How much longer than declared a run may take, once it measures, before it is ended. Until then its users start, and
workers on other hosts are waited for, as long as that takes."""

NICENESS = 19
PIPE_BYTES = 1 << 20
"""Room for some seconds of a high rate: a generator that had to wait for it would send nothing meanwhile."""

HowEnded = Callable[[], str]
"""Tells how the server has ended, such as `exit code 1`; empty while it runs."""

Observe = Callable[[dict[str, Any]], bool]
"""Told each part that a process hands over, in a thread of its own; False ends the run, which is complete then."""


@dataclass
class Ending:
    """How a run came to its end.

    pid: of Locust, once it is started. measured: {process: seconds}. cpu: {process: share of a core}, the largest of
    any second. ended: processes that measured to the end. held: requests that had to wait because all connections were
    taken.
    """

    status: str = "completed"
    why: str = ""
    pid: int = 0
    measured: dict[int, float] = field(default_factory=dict)
    cpu: dict[int, float] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    held: int = 0

    @property
    def measured_s(self) -> float:
        return max(self.measured.values(), default=0.0)

    def note(self, part: dict[str, Any]) -> None:
        worker = part["worker"]
        self.measured[worker] = self.measured.get(worker, 0.0) + part["length_s"]
        if part["length_s"] > 0.5:  # shorter ones say little of the processor
            self.cpu[worker] = max(self.cpu.get(worker, 0.0), part["cpu"])
        self.held += sum(line["held"] for line in part["lines"].values())
        if part["last"]:
            self.ended.add(worker)

    def fail(self, why: str) -> None:
        """Mark the run failed; the first reason stays."""
        if self.status == "completed":
            self.status, self.why = "failed", why


def drive(
    layout: Layout,
    how_ended: HowEnded,
    profile: Profile,
    processes: int,
    folder: Path,
    ending: Ending,
    observe: Observe,
    host: str = "",
    command: Sequence[str] = (),
) -> None:
    """Put a profile's load on the declared server; note in `ending` how that went. Locust does not outlive the call.

    host: the server's URL for workers that people start on other hosts; they are waited for, and none is started here.
    command: what prints the parts of a Locust that runs elsewhere, in place of one that is started here.
    """
    with (
        closing(RunWriter(folder)) as writer,
        (folder / LOG).open("wb") as log,
        ThreadPoolExecutor(1, initializer=_give_way) as aside,
    ):
        generator = _child(layout, profile, processes, command or _locust(layout, profile, processes, host), log)
        ending.pid = generator.pid
        try:
            aside.submit(_follow, generator, how_ended, profile, writer, ending, observe).result()
            generator.wait(timeout=GRACE_S)
        finally:
            _end(generator)
    if len(ending.ended) < processes:
        ending.fail(f"{processes - len(ending.ended)} of {processes} generator processes ended early; see {LOG}")
    elif generator.returncode not in (0, -signal.SIGTERM):
        ending.fail(f"Locust ended with exit code {generator.returncode}; see {LOG}")


def _give_way() -> None:
    """Let the calling thread compute what server and generator leave: what it takes of them within a second is part of
    that second's p99. It takes a hundredth of a core, which a niceness of 19 still gives it where all is taken."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _locust(layout: Layout, profile: Profile, processes: int, host: str) -> list[str]:
    closed = isinstance(profile, ClosedLoop)
    users = profile.users if isinstance(profile, ClosedLoop) else processes
    rate = profile.spawn_rate if isinstance(profile, ClosedLoop) else processes
    command = [sys.executable, "-m", "locust", "-f", layout.relative(layout.locustfile), USER_CLASS, "--headless"]
    command += [] if closed and profile.shape else [f"--users={users}", f"--spawn-rate={rate}"]
    if host:  # which workers have from their master, whatever they were started with
        master = ["--master", "--master-bind-host=0.0.0.0", f"--expect-workers={processes}"]
        command += [*master, f"--host={host}"]
    elif processes > 1:
        command += [f"--processes={processes}"]
    return [*command, "--stop-timeout=0", "--loglevel=WARNING", "--only-summary"]


def _child(
    layout: Layout, profile: Profile, processes: int, command: Sequence[str], log: Any
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=layout.root,
        env={**children.environment(), LOAD: profile.model_dump_json(), PROCESSES: str(processes)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        pipesize=PIPE_BYTES,
        start_new_session=True,
        preexec_fn=children.end_with_parent,
    )


def _follow(
    generator: subprocess.Popen[bytes],
    how_ended: HowEnded,
    profile: Profile,
    writer: RunWriter,
    ending: Ending,
    observe: Observe,
) -> None:
    """Keep what the generator hands over until it ends; end it early when the server dies or time runs out."""
    deadline = math.inf
    for part in _parts(generator):
        deadline = min(deadline, time.monotonic() + profile.duration_s + GRACE_S)
        writer.add(part["second"], part["lines"])
        ending.note(part)
        ended = how_ended()
        if ended:
            ending.fail(f"the server ended in the middle of the run: {ended}")
        elif time.monotonic() > deadline:
            ending.fail("the run took far longer than declared")
        if not observe(part) or ending.status != "completed":
            generator.send_signal(signal.SIGTERM)


def _parts(generator: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    assert generator.stdout is not None
    for text in generator.stdout:
        with suppress(ValueError):
            part = orjson.loads(text)
            if isinstance(part, dict) and "second" in part:
                yield part


def _end(generator: subprocess.Popen[bytes]) -> None:
    """Let Locust hand over what it has, and make sure that it is gone."""
    if generator.poll() is None:
        generator.send_signal(signal.SIGTERM)
        try:
            generator.wait(timeout=10)
        except subprocess.TimeoutExpired:
            generator.kill()
            generator.wait()
