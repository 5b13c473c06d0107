"""`invoke monitor`: the loop that samples, shows and keeps; in the foreground, in the background, or beside a chain."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from launchpad import children, console, declaration
from launchpad.declaration import Declaration
from launchpad.errors import DeclarationError, EnvironmentFault, LaunchpadError
from launchpad.exclusive import exclusive
from launchpad.layout import Layout
from launchpad.monitor.sampling import Row, Sampler
from launchpad.server import Server
from launchpad.store import Store, limits

KEEP_S = 10.0
"""Time between writings to the store."""
KEPT_ROWS = 20_000
"""Rows that wait for a store that is away; beyond it the oldest are lost."""
PRUNE_S = 3600.0
SHORTEST_S = 0.1
LONGEST_S = 86_400.0
CLOCK_JUMP_S = 60.0
GONE_S = 10.0
"""Time without a launched server after which the monitor ends; a launch that replaces the server takes less."""
STOP_TIMEOUT_S = 15.0
HELD = "another monitor watches this checkout's server"


class Keeper:
    """Hands rows to the store now and then, and holds them while it is away. Deletes what is old once an hour."""

    def __init__(self, declared: Declaration, clock: Callable[[], float] = time.monotonic) -> None:
        self._declared, self._clock = declared, clock
        self._began_s, self._began = clock(), time.time()
        self._rows: list[Row] = []
        self._kept_s = self._clock()
        self._pruned_s = -PRUNE_S
        self._said = ""
        self.lost = 0

    def keep(self, rows: list[Row]) -> None:
        """Take rows; write them when it is time."""
        self._rows += rows
        beyond = max(0, len(self._rows) - KEPT_ROWS)
        self.lost += beyond
        del self._rows[:beyond]
        if self._clock() - self._kept_s >= KEEP_S:
            self.flush()

    def flush(self) -> None:
        """Write what is held. Where the store is away say so, once for each reason, and go on holding it."""
        self._kept_s = self._clock()
        try:
            with Store.open(self._declared) as store:
                store.add_samples(self._rows)
                self._rows = []
                self._prune(store)
            self._said = ""
        except LaunchpadError as error:
            if str(error) != self._said:
                self._said = str(error)
                console.say(f"  ! samples wait for the store: {error}", "yellow")

    def _prune(self, store: Store) -> None:
        """Delete what is old; not by a wall clock that jumped, which would make everything old."""
        if self._clock() - self._pruned_s < PRUNE_S:
            return
        self._pruned_s = self._clock()
        jump_s = (time.time() - self._began) - (self._clock() - self._began_s)
        if abs(jump_s) > CLOCK_JUMP_S:
            console.say(f"  ! the wall clock jumped by {jump_s:.0f} s: nothing old is deleted", "yellow")
            return
        store.prune(*limits(self._declared.pipeline.monitor))

    def close(self) -> None:
        """Write what is left; say what is lost."""
        self.flush()
        self.lost += len(self._rows)
        if self.lost:
            console.say(f"  ! {self.lost} samples were lost, the store was away", "yellow")


def watch(
    declared: Declaration,
    show: Callable[[list[Row]], None],
    *,
    interval_s: float = 0.0,
    duration_s: float = 0.0,
    ended: threading.Event | None = None,
) -> None:
    """Sample the launched server until `ended`, for `duration_s`, or until the server is stopped for good.

    Raises EnvironmentFault where no server was launched or another monitor watches it, DeclarationError where it has no
    metrics page or the times cannot be kept.
    """
    _check_times(interval_s, duration_s)
    server = Server.ready(Layout(declared.root))
    if server.metrics_path is None:
        raise DeclarationError(
            "the server was launched without a metrics page",
            declared.where("serving", "monitoring"),
            "declare serving.monitoring.enabled and a REST port, then `invoke launch`",
        )
    every_s = interval_s or declared.pipeline.monitor.interval_s
    ended = ended or threading.Event()
    with exclusive(Layout(declared.root).monitor_lock, HELD):
        sampler, keeper = Sampler(declared), Keeper(declared)
        start = due = seen_s = time.monotonic()
        try:
            while not ended.is_set() and not (duration_s and time.monotonic() - start >= duration_s):
                rows = sampler.sample()
                if rows:
                    seen_s = time.monotonic()
                    keeper.keep(rows)
                    show(rows)
                elif time.monotonic() - seen_s > GONE_S:
                    break
                due = max(due + every_s, time.monotonic())
                ended.wait(max(0.0, due - time.monotonic()))
        finally:
            keeper.close()


def _check_times(interval_s: float, duration_s: float) -> None:
    """Raise DeclarationError for times that cannot be kept; 0 stands for one that was not given."""
    if interval_s and not SHORTEST_S <= interval_s <= LONGEST_S:
        raise DeclarationError(
            f"an interval of {interval_s:g} s cannot be kept", fix=f"give {SHORTEST_S:g} s to {LONGEST_S:,.0f} s"
        )
    if not 0 <= duration_s < math.inf:
        raise DeclarationError(f"a duration of {duration_s:g} s is none", fix="give seconds, or nothing")


def run(root: Path, interval_s: float = 0.0, duration_s: float = 0.0) -> None:
    """Watch in the foreground, with a live table, until Ctrl-C."""
    from launchpad.monitor.screen import live

    declared = declaration.load(root)
    with contextlib.suppress(KeyboardInterrupt), live() as show:
        watch(declared, show, interval_s=interval_s, duration_s=duration_s)
    console.say("the samples are in the store; `invoke query latest` shows them")


def start(root: Path, interval_s: float = 0.0, duration_s: float = 0.0) -> None:
    """Watch in the background until `invoke monitor --stop`, `invoke stop`, or for `duration_s`.

    Raises EnvironmentFault where it ends at once, with what it said.
    """
    layout = Layout(root)
    declaration.load(root)
    _check_times(interval_s, duration_s)
    Server.ready(layout)
    if holder := _holder(layout):
        raise EnvironmentFault(f"{HELD}: process {holder}", fix="`invoke monitor --stop` ends it")
    process = _spawn(root, ["--interval", str(interval_s), "--duration", str(duration_s)], beside=False)
    while process.poll() is None and _holder(layout) != process.pid:
        time.sleep(0.05)
    if process.poll():
        raise EnvironmentFault("the monitor ended at once", layout.relative(layout.monitor_log), _last_words(layout))
    console.say(f"monitor: process {process.pid}, into the store; `invoke monitor --stop` ends it")


def stop(root: Path) -> None:
    """End the background monitor, which writes what it holds first."""
    pid = end(Layout(root))
    console.say(f"ended the monitor, process {pid}" if pid else "no monitor was running")


def end(layout: Layout) -> int | None:
    """End the monitor of a checkout and wait for it; return its process, None if there was none."""
    pid = _holder(layout)
    if pid:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            process.terminate()
            process.wait(STOP_TIMEOUT_S)
    return pid


@contextmanager
def beside(root: Path) -> Iterator[None]:
    """Watch the launched server beside the block, in a process that ends with it; not if it is watched already."""
    server = Server.load(Layout(root))
    process = None
    if server and server.metrics_path and _holder(Layout(root)) is None:
        process = _spawn(root, [], beside=True)
    try:
        yield
    finally:
        if process:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)


def _spawn(root: Path, words: list[str], beside: bool) -> subprocess.Popen[bytes]:
    layout = Layout(root)
    layout.monitor_log.parent.mkdir(parents=True, exist_ok=True)
    with layout.monitor_log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "launchpad.monitor", str(root), *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=children.environment(),
            cwd=root,
            start_new_session=True,
            preexec_fn=children.end_with_parent if beside else None,
        )


def _holder(layout: Layout) -> int | None:
    """Return the process that watches this checkout's server; None if none does.

    Read, not tried: who tries a lock holds it for a moment.
    """
    try:
        pid = int(json.loads(layout.monitor_lock.read_text())["pid"])
        older = psutil.Process(pid).create_time() <= layout.monitor_lock.stat().st_mtime
    except (OSError, ValueError, KeyError, psutil.Error):
        return None
    return pid if older else None  # a younger one has the number of a monitor that was killed


def _last_words(layout: Layout) -> str:
    return "\n".join(layout.monitor_log.read_text(errors="replace").splitlines()[-5:])


def in_background(root: Path, interval_s: float, duration_s: float) -> int:
    """Watch until SIGTERM; what goes wrong is said in the log. Returns the exit code."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        watch(declaration.load(root), lambda rows: None, interval_s=interval_s, duration_s=duration_s, ended=ended)
    except LaunchpadError as error:
        console.fail(str(error))
        return error.exit_code
    return 0
