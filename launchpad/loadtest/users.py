"""Locust users that send real requests and check every answer. `loadtests/locustfile.py` says which there are.

`invoke loadtest` gives profile and processes in the environment and reads the results from standard output.
`locust -f loadtests/` needs none of them; LAUNCHPAD_PROFILE names another profile than the default, and with workers
LAUNCHPAD_PROCESSES says how many share it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gevent
import gevent.pool
import numpy as np
from locust import LoadTestShape, User, constant, events, task
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner
from pydantic import TypeAdapter

from launchpad import declaration
from launchpad.errors import LaunchpadError
from launchpad.loadtest import arrivals, shapes, traffic
from launchpad.loadtest.conductor import Conductor, tell
from launchpad.loadtest.connections import Connection, NoAnswer
from launchpad.loadtest.cores import keep_to
from launchpad.loadtest.generator import LOAD, PROCESSES
from launchpad.loadtest.pacer import Pacer
from launchpad.loadtest.recorder import Recorder
from launchpad.loadtest.traffic import Line, Request
from launchpad.loadtest.webpage import LatencyTab
from launchpad.spec import ClosedLoop, OpenLoop, Profile, Traffic

PROFILE = "LAUNCHPAD_PROFILE"
TIMEOUT_S = 30.0
READY_CONNECTIONS = 64
"""Open when a schedule begins; a load that needs more opens them as it needs them."""

try:
    declared = declaration.load(Path.cwd())
except LaunchpadError as error:
    sys.exit(str(error))
pipeline = declared.pipeline
driven = LOAD in os.environ
processes = int(os.environ.get(PROCESSES, "1"))
profile: Profile = (
    TypeAdapter(Profile).validate_json(os.environ[LOAD])
    if driven
    else pipeline.loadtest.profiles[os.environ.get(PROFILE, pipeline.loadtest.profile)]
)
duration_s = profile.duration_s


def everything(signature: str, protocol: str) -> tuple[Traffic, ...]:
    """Return traffic to one signature, by its name, of every model that has it."""
    return tuple(
        Traffic(model=name, signature=signature, protocol=protocol)  # type: ignore[arg-type]
        for name, model in pipeline.models.items()
        if signature in model.signatures
    )


class ModelUser(User):
    """A client of the declared server. Subclasses say what they send."""

    abstract = True
    host = f"http://127.0.0.1:{pipeline.serving.ports.rest}"
    traffic: ClassVar[tuple[Traffic, ...]] = pipeline.traffic(profile)

    conductor: ClassVar[Conductor]
    lines: ClassVar[dict[str, Line]] = {}
    numbers = itertools.count()

    def on_start(self) -> None:
        chance = random.Random(f"{self.conductor.worker} {next(self.numbers)}")
        self._requests = _sequence([self.lines[line.line] for line in self.traffic], chance)

    def _connection(self, line: Line) -> Connection:
        return traffic.connection(declared, line.protocol, self.environment.host or self.host or "", TIMEOUT_S)

    def _call(self, connection: Connection, line: Line, request: Request, due_ns: int, held: bool = False) -> None:
        """Send a request, wait for its answer, check it, count it."""
        recorder, under_way = self.conductor.recorder, self.conductor.under_way
        under_way[connection] = line.name, due_ns
        sent_ns = time.perf_counter_ns()
        try:
            answer = connection.call(request.wire)
        except NoAnswer as error:
            recorder.failed(line.name, f"no answer: {error.kind}", "", due_ns, time.perf_counter_ns())
            answer = None
        finally:
            del under_way[connection]
        ended_ns = time.perf_counter_ns()
        if answer is None:
            gevent.sleep(0.01)  # a server that is gone is not to be asked in a tight loop
        elif answer.kind:
            recorder.failed(line.name, answer.kind, answer.body.decode(errors="replace"), due_ns, ended_ns)
        elif request.is_right(answer.body):
            recorder.answered(line.name, due_ns, sent_ns, ended_ns, held)
        else:
            recorder.failed(line.name, "wrong answer", answer.body.decode(errors="replace"), due_ns, ended_ns)


class ClosedLoopUser(ModelUser):
    """Waits for each answer, and its think time, before it asks again."""

    abstract = True
    wait_time = constant(profile.think_time_ms / 1000 if isinstance(profile, ClosedLoop) else 0)

    @task
    def ask(self) -> None:
        """Ask on until Locust takes the user away: a request that is under way then is waited for all the same."""
        self._leaving = False
        asking = gevent.spawn(self._ask_on)
        try:
            asking.get()
            gevent.sleep(duration_s)
        finally:
            self._leaving = True

    def _ask_on(self) -> None:
        connections: dict[str, Connection] = {}
        pause_s = self.wait_time()
        while not (self.conductor.closing or self._leaving):
            line, request = next(self._requests)
            if line.protocol not in connections:
                connections[line.protocol] = self._connection(line)
            self._call(connections[line.protocol], line, request, time.perf_counter_ns())
            if pause_s:
                gevent.sleep(pause_s)


class OpenLoopUser(ModelUser):
    """Sends each request when it is due, whatever became of those before. One of these makes a process's load."""

    abstract = True

    @task
    def send_when_due(self) -> None:
        assert isinstance(profile, OpenLoop)
        schedule_ns = (_due(profile, self.conductor.worker) * 1e9).astype(np.int64).tolist()
        self._waiting = self.conductor.waiting
        self._waiting.clear()
        self._limit = profile.max_in_flight
        self._idle = self._opened(min(READY_CONNECTIONS, self._limit))
        calls = gevent.pool.Group()
        pacer = Pacer()
        self.conductor.begun.wait()
        self.conductor.scheduling = True
        begin_ns = time.perf_counter_ns()
        try:
            for after_ns in schedule_ns:
                due_ns = begin_ns + after_ns
                pacer.wait_until(due_ns)
                line, request = next(self._requests)
                if len(calls) < self._limit:
                    calls.spawn(self._serve, line, request, due_ns)
                else:
                    self._waiting.append((line, request, due_ns))
            self.conductor.scheduling = False
            calls.join()
            gevent.sleep(duration_s)
        finally:
            self.conductor.scheduling = False
            pacer.close()
            calls.kill()

    def _opened(self, count: int) -> dict[str, list[Connection]]:
        """Return so many open connections of each protocol: opened amid the load, each would hold up the requests."""
        lines = {self.lines[line.line].protocol: self.lines[line.line] for line in self.traffic}
        opened: dict[str, list[Connection]] = {
            protocol: [self._connection(line) for _ in range(count)] for protocol, line in lines.items()
        }
        with contextlib.suppress(NoAnswer):  # which the first request will say
            for connection in itertools.chain.from_iterable(opened.values()):
                connection.open()
        return opened

    def _serve(self, line: Line, request: Request, due_ns: int) -> None:
        """Send a request on an idle connection or a new one; then those that wait for one."""
        held = False
        while True:
            idle = self._idle.setdefault(line.protocol, [])
            connection = idle.pop() if idle else self._connection(line)
            self._call(connection, line, request, due_ns, held)
            idle.append(connection)
            if not self._waiting:
                return
            line, request, due_ns = self._waiting.popleft()
            held = True


DeclaredLoop: type[ModelUser] = OpenLoopUser if isinstance(profile, OpenLoop) else ClosedLoopUser
"""The kind of user that the profile asks for."""


class ProfileShape(LoadTestShape):
    """The profile's change of load over the run, for closed loops; nothing is forced on a run by hand."""

    abstract = not (driven and isinstance(profile, ClosedLoop) and profile.shape)

    def tick(self) -> tuple[int, float]:
        assert isinstance(profile, ClosedLoop)
        users = shapes.curve(profile.shape, profile.users, duration_s)
        now = min(self.get_run_time(), duration_s)
        return max(1, round(float(np.interp(now, users.times_s, users.rates_rps)))), profile.spawn_rate


def _sequence(lines: list[Line], chance: random.Random) -> Iterator[tuple[Line, Request]]:
    """Yield requests for ever: lines by weight, each line's requests in turn from a place of chance."""
    turns = {line.name: itertools.cycle(_rotated(line.requests, chance)) for line in lines}
    weights = [line.weight for line in lines]
    while True:
        for line in chance.choices(lines, weights, k=1000):
            yield line, next(turns[line.name])


def _rotated(requests: Any, chance: random.Random) -> list[Request]:
    start = chance.randrange(len(requests))
    return [*requests[start:], *requests[:start]]


def _due(load: OpenLoop, worker: int) -> np.ndarray:
    """Return when this process's share of the arrivals is due: seconds from the begin, increasing."""
    curve = shapes.curve(load.shape, load.rate_rps, duration_s)
    if load.arrivals == "poisson":  # the sum of Poisson processes is one
        return arrivals.poisson(curve.scaled(1 / processes), seed=load.seed + 7919 * worker)
    whole = arrivals.evenly(curve) if load.arrivals == "constant" else arrivals.replay(Path(load.arrivals))
    return whole[(whole <= duration_s)][worker::processes]


@events.init.add_listener
def _prepare(environment: Environment, **_: Any) -> None:
    """Make the requests of the classes that run, and set up who counts."""
    wanted = {line.line: line for kind in environment.user_classes for line in getattr(kind, "traffic", ())}
    try:
        ModelUser.lines = {line.name: line for line in traffic.lines(declared, list(wanted.values()))}
    except LaunchpadError as error:
        sys.exit(str(error))
    recorder = Recorder(list(ModelUser.lines), open_loop=isinstance(profile, OpenLoop))
    tab = LatencyTab(environment) if environment.web_ui else None
    keep = tell if driven else (lambda part: tab.add(part["lines"]) if tab else None)
    conductor = ModelUser.conductor = Conductor(environment, recorder, keep, feeds=not driven)
    if driven and not isinstance(environment.runner, MasterRunner):
        environment.events.test_start.add_listener(lambda **_: keep_to(conductor.worker, processes))
    if isinstance(environment.runner, WorkerRunner):
        return  # its master's conductor says when
    if driven:
        environment.process_exit_code = 0  # failed requests are figures, not a failure of Locust, however it ends
        gevent.spawn(conductor.measure, duration_s)
    else:
        environment.events.test_start.add_listener(lambda **_: _start_by_hand(conductor, tab))
        environment.events.test_stop.add_listener(lambda **_: conductor.end_everywhere())


def _start_by_hand(conductor: Conductor, tab: LatencyTab | None) -> None:
    if tab:
        tab.reset()
    conductor.begin_everywhere()
