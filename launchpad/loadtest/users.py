"""Locust users that send the declared traffic. `loadtests/locustfile.py` is what makes them a load test.

Driven by `invoke loadtest`, the environment names the run folder and the profile, results are recorded there and the
run ends by itself. Driven by `locust -f loadtests/`, Locust's own statistics and web page are all there is.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import gevent
import orjson
from locust import FastHttpUser, constant, events, task
from locust.env import Environment

from launchpad import declaration
from launchpad.errors import LaunchpadError
from launchpad.loadtest.recorder import Recorder
from launchpad.loadtest.traffic import Line, Request, lines

RUN_FOLDER = "LAUNCHPAD_RUN_FOLDER"
PROFILE = "LAUNCHPAD_PROFILE"
DURATION = "LAUNCHPAD_DURATION_S"

try:
    declared = declaration.load(Path.cwd())
except LaunchpadError as error:
    sys.exit(str(error))
pipeline = declared.pipeline
profile_name = os.environ.get(PROFILE, pipeline.loadtest.profile)
profile = pipeline.loadtest.profiles[profile_name]
host = f"http://127.0.0.1:{pipeline.serving.ports.rest}"

_traffic: list[Line] = []
_recorder: Recorder | None = None


class PredictUser(FastHttpUser):
    """A client that sends the declared traffic and checks every answer."""

    abstract = True
    host = host
    wait_time = constant(profile.think_time_ms / 1000)
    connection_timeout = 10.0
    network_timeout = 30.0
    numbers = itertools.count()

    def on_start(self) -> None:
        self._random = random.Random(next(self.numbers))
        self._cycles = [itertools.cycle(_rotated(line.requests, self._random)) for line in _traffic]
        self._weights = [line.weight for line in _traffic]

    @task
    def predict(self) -> None:
        (index,) = self._random.choices(range(len(_traffic)), self._weights)
        line, request = _traffic[index], next(self._cycles[index])
        start = time.perf_counter_ns()
        with self.client.post(
            line.path,
            data=request.body,  # type: ignore[arg-type]
            name=line.name,
            catch_response=True,
            headers=HEADERS,
        ) as response:
            latency_us = (time.perf_counter_ns() - start) / 1000
            if response.status_code != 200:
                kind, example = _kind(response.status_code, response.error), response.text or str(response.error)
            elif not request.is_right(response.content):
                kind, example = "wrong answer", response.text
            else:
                kind, example = "", ""
                response.success()
            if kind:
                response.failure(kind)
        if _recorder and kind:
            _recorder.failed(line.name, kind, example or "")
        elif _recorder:
            _recorder.answered(line.name, latency_us)


HEADERS = {"Content-Type": "application/json"}


def _kind(status: int, error: Exception | None) -> str:
    return f"HTTP {status}" if status else f"no answer: {type(error).__name__}"


def _rotated(requests: list[Request], chance: random.Random) -> list[Request]:
    start = chance.randrange(len(requests))
    return requests[start:] + requests[:start]


@events.init.add_listener
def _prepare(environment: Environment, **_: Any) -> None:
    try:
        _traffic.extend(lines(declared, profile_name))
    except LaunchpadError as error:
        sys.exit(str(error))
    if RUN_FOLDER in os.environ:
        gevent.spawn(_run, environment, Path(os.environ[RUN_FOLDER]), float(os.environ[DURATION]))


def _run(environment: Environment, folder: Path, duration_s: float) -> None:
    """Measure, then end Locust, also when the measuring fails."""
    try:
        _measure(environment, folder, duration_s)
    finally:
        environment.runner.quit()  # type: ignore[union-attr]


def _measure(environment: Environment, folder: Path, duration_s: float) -> None:
    """Measure for `duration_s` seconds from when all users have started.

    Writes a JSON line a second to standard output, for whoever shows progress.
    """
    global _recorder
    started = gevent.event.Event()
    environment.events.spawning_complete.add_listener(lambda **_: started.set())
    started.wait()
    recorder = _recorder = Recorder(folder, [line.name for line in _traffic])
    begin, cpu_before_s = time.monotonic(), time.process_time()
    environment.events.quitting.add_listener(lambda **_: _finish(recorder, begin, cpu_before_s))
    for second in range(1, math.ceil(duration_s)):
        gevent.sleep(max(0.0, begin + second - time.monotonic()))
        _tell(recorder.flush())
    gevent.sleep(max(0.0, begin + duration_s - time.monotonic()))


def _finish(recorder: Recorder, begin: float, cpu_before_s: float) -> None:
    """Record what the last second held; requests that are cut off by the end of the run are not counted."""
    global _recorder
    _recorder = None
    measured_s = time.monotonic() - begin
    _tell({**recorder.flush(), "measured_s": measured_s, "cpu_s": time.process_time() - cpu_before_s})
    recorder.close()


def _tell(progress: dict[str, Any]) -> None:
    sys.__stdout__.write(orjson.dumps(progress).decode() + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]
