"""Measures what one line of traffic costs on this machine, in under a minute, on the backend that is in use.

On a server without batching: the run of a batch of each of some sizes, by requests of that size one after the other and
at once, as the server's own `runtime_latency` counts it; and the processor time of a request at three rates, of the
server and of the load generator, which share the cores. On a server with batching: the processor time at the highest
rate again, of many users, of few, and of more than are answered; what is more than the batches alone is what a request
adds to its batch, and a batch to its turn of the event loop. On a server whose operations have another number of
threads: the runs again, where the declaration leaves that number open. Between the loads: the machine's pace.
"""

from __future__ import annotations

import datetime
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from launchpad import machine
from launchpad.client import GrpcClient, RestClient
from launchpad.errors import EnvironmentFault
from launchpad.examples import Examples, Values
from launchpad.loadtest import summary
from launchpad.loadtest.generator import Ending
from launchpad.metrics import BATCH_SIZE, REQUESTS, RUNTIME_LATENCY
from launchpad.server import Server
from launchpad.spec import ClosedLoop, OpenLoop, Traffic
from launchpad.spec import Profile as LoadProfile
from launchpad.tune import pace, simulate
from launchpad.tune.bench import Bench
from launchpad.tune.profile import (
    FEW_USERS,
    FEWER_SIZES,
    INTER_OP,
    INTRA_OP,
    LARGE,
    OVERLOAD,
    SIZES,
    USERS,
    Otherwise,
    Profile,
    Use,
    calibrated,
    deep_queue,
    request_threads,
)

SIZE_TIME_S = 0.2
FEWEST_CALLS = 12
FEWEST_SLOW_CALLS = 3
"""Of runs so long that FEWEST_CALLS of them last many times SIZE_TIME_S."""
LOADED_S = 2.3
WINDOW_S = 1.4
FEWEST_ANSWERS = 20
"""In a window, and before it begins."""
MIDDLE = 0.4
"""Of the highest rate: where little queues, and yet much comes while something else is under way."""
HIGH = 0.75
"""Of the highest rate: where the server is seldom idle, and reads few requests at a time."""
PACE_S = 1.0
"""How long the machine's pace is watched between loads, three times: it changes within seconds."""
STEPS = 7
"""That `measure` tells of, the last only where there is another number of threads worth a look."""
QUANTILES = 200
SAMPLES = 8
"""Parts that the window of a load is looked at in."""
CALM = 25
"""Percentile of the parts' mean runs that counts: a neighbour on the processor only ever adds to them."""


@dataclass(frozen=True)
class Window:
    """What of a load is looked at. begin_s: how long the first answers take; length_s: of the look; load_s: of all."""

    begin_s: float
    length_s: float
    load_s: float

    @classmethod
    def at(cls, rate_rps: float, users: int = 0) -> Window:
        """Return a window with enough answers in it at a rate; of users who ask in turn the first wait for all."""
        begin_s, length_s = max(FEWEST_ANSWERS, users) / rate_rps, max(WINDOW_S, FEWEST_ANSWERS / rate_rps)
        return cls(begin_s, length_s, round(LOADED_S - WINDOW_S + begin_s + length_s, 1))


def measure(bench: Bench, line: Traffic, examples: Examples, digest: str, advance: Callable[[str], None]) -> Profile:
    """Measure a line of traffic on servers of the bench, which are ended.

    advance: told what is measured next, STEPS times at most. Raises EnvironmentFault if a server does not start, does
    not answer, or has no metrics page, and for requests of more rows than SIZES has.
    """
    if line.batch > SIZES[-1]:
        raise EnvironmentFault(
            f"requests of {line.batch} rows: a profile tells of {SIZES[-1]} at most",
            f"loadtest, {line.line}",
            "profile a line of traffic with smaller requests",
        )
    began = time.monotonic()

    def asked(rate_rps: float, users: int, rows: int = line.batch) -> Use:
        return _asked(bench, server, line.model_copy(update={"batch": rows}), rate_rps, users)

    def sent(rate_rps: float, answered_rps: float) -> Use:
        """Send the server that runs so many requests/s, of which about so many are answered."""
        window = Window.at(answered_rps)
        load = OpenLoop(loop="open", rate_rps=round(rate_rps, 1), duration_s=window.load_s, traffic=(line,))
        return use(bench, server, load, window)

    def watch() -> None:
        counts.append(pace.measure(cores, PACE_S))

    inputs = examples.inputs[line.signature]
    counts: list[pace.Counts] = []
    cores = int(machine.describe()["cores"])
    advance("a server without batching")
    bench.declare({}, 1)
    try:
        with ThreadPoolExecutor(1) as beside:  # while nothing is measured yet
            prepared = beside.submit(simulate.prepare)
            server = bench.launch()
            prepared.result()
        advance("batch sizes one by one")
        runs = {size: _runs(server, line, _rows(inputs, size)) for size in SIZES}
        advance("batches at once")
        medians = [float(np.median(runs[size])) for size in SIZES]
        together = _together(server, line, inputs, (cores, 2 * cores), medians[-1])
        advance("the highest rate")
        of_one, of_large = (float(np.interp(rows, SIZES, medians)) for rows in (line.batch, LARGE))
        full = asked(cores / of_one, USERS)
        large = asked(cores / of_large, USERS, LARGE)
        watch()
        advance("a middle and a high rate")
        middle, high = (sent(rate, rate) for rate in (MIDDLE * full.rate_rps, HIGH * full.rate_rps))
        again = asked(full.rate_rps, USERS)
        full = min(full, again, key=lambda one: one.server_s)  # neighbours only ever add to it
        watch()
        advance("the highest rate with batching")
        bench.declare({line.model: deep_queue(line)}, cores)
        server = bench.launch()
        batched = asked(full.rate_rps, USERS)
        deep = sent(OVERLOAD * batched.rate_rps, batched.rate_rps)
        few = asked(full.rate_rps, FEW_USERS) if server.backend == "embedded" else None
        single = sent(middle.rate_rps, middle.rate_rps) if server.backend == "embedded" else None
        watch()
        threads, other = operation_threads(bench.flags, server.backend)
        otherwise = None
        if other:
            advance(f"{other} thread{'' if other == 1 else 's'} for an operation")
            bench.declare({}, 1, flags={INTRA_OP: other})
            server = bench.launch()
            then = [float(np.median(_runs(server, line, _rows(inputs, size)))) for size in FEWER_SIZES]
            otherwise = Otherwise(other, tuple(then), _together(server, line, inputs, (cores,), then[-1]))
    finally:
        bench.stop()
    row_s, fixed_s = np.polyfit(SIZES, medians, 1, w=1 / np.asarray(medians))
    profile = Profile(
        traffic=line,
        backend=server.backend,
        sizes=SIZES,
        run_s=tuple(medians),
        fixed_s=float(fixed_s),
        row_s=float(row_s),
        residuals=_residuals(runs),
        spread_s=tuple((float(low), float(high)) for low, high in (np.percentile(runs[x], (25, 75)) for x in SIZES)),
        together=together,
        full=full,
        large=large,
        batched=batched,
        deep=deep,
        few=few,
        single=single,
        middle=middle,
        high=high,
        model_digest=digest,
        machine=machine.describe(),
        seconds=0.0,
        paces=pace.paces(pace.joined(counts)),
        pace_s=pace.SLICE_S,
        operation_threads=threads,
        otherwise=otherwise,
        measured=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return replace(
        calibrated(profile, request_threads(line, bench.flags, cores)), seconds=round(time.monotonic() - began, 1)
    )


def highest_rate(bench: Bench, line: Traffic, about_rps: float) -> Use:
    """Measure what the `full` of a profile is, by itself, on a server of the bench, which is ended.

    about_rps: about the rate. Raises EnvironmentFault as `measure` does.
    """
    bench.declare({}, 1)
    try:
        return _asked(bench, bench.launch(), line, about_rps, USERS)
    finally:
        bench.stop()


def _asked(bench: Bench, server: Server, line: Traffic, rate_rps: float, users: int) -> Use:
    """Let users ask the server that runs, at about so many requests/s."""
    window = Window.at(rate_rps, users)
    load = ClosedLoop(users=users, duration_s=window.load_s, traffic=(line,))
    return use(bench, server, load, window)


def operation_threads(flags: Mapping[str, Any], backend: str) -> tuple[int, int]:
    """Return (threads that an operation may use with these flags, another number worth a look: all cores or one).

    The other number is 0, for none, where a flag says how many or there is one core.
    """
    cores = int(machine.describe()["cores"])
    own = any(flags.get(name) for name in (INTRA_OP, INTER_OP))  # either puts the flag for both out of action
    declared = int(flags.get(INTRA_OP, 0) if own else flags.get("tensorflow_session_parallelism", 0))
    if declared:
        return declared, 0
    threads = (_calm_threads() if backend == "embedded" else 0) or cores
    return threads, 0 if cores == 1 else 1 if threads > 1 else cores


def _calm_threads() -> int:
    from launchpad.modelserver.config import calm_intra_op_parallelism

    return calm_intra_op_parallelism()


def _residuals(runs: dict[int, list[float]]) -> tuple[float, ...]:
    """Return quantiles of single runs over their size's median, scaled to a mean of 1."""
    single = np.concatenate([np.asarray(times) / np.median(times) for times in runs.values()])
    quantiles = np.quantile(single, (np.arange(QUANTILES) + 0.5) / QUANTILES)
    return tuple(float(value) for value in quantiles / quantiles.mean())


def _rows(inputs: dict[str, Values], size: int) -> dict[str, Values]:
    """Return a request of so many rows, the examples repeated where there are fewer."""
    made: dict[str, Values] = {}
    for name, values in inputs.items():
        picked = [index % len(values) for index in range(size)]
        made[name] = values[picked] if isinstance(values, np.ndarray) else [values[index] for index in picked]
    return made


def _caller(server: Server, line: Traffic) -> Callable[[dict[str, Values]], Any]:
    if server.grpc_port:
        client = GrpcClient(f"127.0.0.1:{server.grpc_port}")
        return lambda inputs: client.predict(line.model, line.signature, inputs)
    rest = RestClient(server.rest_url or "")
    return lambda inputs: rest.predict(line.model, line.signature, inputs)


def _runs(server: Server, line: Traffic, inputs: dict[str, Values]) -> list[float]:
    """Return the server's own time in s of single runs on the inputs."""
    call, page = _caller(server, line), _Page(server)
    began = time.monotonic()
    call(inputs)
    slow = time.monotonic() - began > SIZE_TIME_S
    for _ in range(0 if slow else 2):
        call(inputs)
    times: list[float] = []
    end = time.monotonic() + SIZE_TIME_S
    before = page.read()
    while time.monotonic() < end or len(times) < (FEWEST_SLOW_CALLS if slow else FEWEST_CALLS):
        call(inputs)
        after = page.read()
        times.append(after.since(before).run_s)
        before = after
    return times


def _together(
    server: Server, line: Traffic, inputs: dict[str, Values], numbers: Sequence[int], run_s: float
) -> dict[int, float]:
    """Return {k: mean run of k batches at once over that of one}, for large batches, which surely meet.

    run_s: about what one takes.
    """
    request = _rows(inputs, SIZES[-1])
    alone = _mean_run(server, line, request, 1, run_s)
    return {k: _mean_run(server, line, request, k, k * run_s) / alone for k in numbers if k > 1}


def _mean_run(server: Server, line: Traffic, request: dict[str, Values], callers: int, longest_s: float) -> float:
    page = _Page(server)
    stop = threading.Event()

    def ask() -> None:
        call = _caller(server, line)
        while not stop.is_set():
            call(request)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    time.sleep(max(0.2, longest_s))
    before = page.read()
    time.sleep(max(0.6, FEWEST_SLOW_CALLS * longest_s))
    counted = page.read().since(before)
    stop.set()
    for thread in threads:
        thread.join()
    return counted.run_s


@dataclass(frozen=True)
class _Counts:
    """What the server's metrics page has counted."""

    requests: float
    runs: float
    runs_us: float
    batches: float
    rows: float

    def since(self, before: _Counts) -> _Counts:
        return _Counts(*(getattr(self, name) - getattr(before, name) for name in self.__dataclass_fields__))

    @property
    def run_s(self) -> float:
        return self.runs_us / self.runs / 1e6 if self.runs else float("nan")


class _Page:
    """A server's metrics page. Raises EnvironmentFault where there is none."""

    def __init__(self, server: Server) -> None:
        if not server.metrics_path or not server.rest_url:
            raise EnvironmentFault("the server has no metrics page", fix="declare serving.monitoring and a REST port")
        self._client = RestClient(server.rest_url, timeout_s=10)
        self._path = server.metrics_path

    def read(self) -> _Counts:
        sums: dict[str, float] = {}
        text = self._client.metrics(self._path)
        kept = "\n".join(
            part
            for part in text.splitlines()
            if part.startswith((RUNTIME_LATENCY, REQUESTS, BATCH_SIZE)) and "_bucket" not in part
        )
        for family in text_string_to_metric_families(kept + "\n"):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        return _Counts(
            sums.get(REQUESTS, 0.0),
            sums.get(f"{RUNTIME_LATENCY}_count", 0.0),
            sums.get(f"{RUNTIME_LATENCY}_sum", 0.0),
            sums.get(f"{BATCH_SIZE}_count", 0.0),
            sums.get(f"{BATCH_SIZE}_sum", 0.0),
        )


class _Over(EnvironmentFault):
    """The load was over before the window was: this process or the load generator stood still."""


def use(bench: Bench, server: Server, load: LoadProfile, window: Window) -> Use:
    """Put a load on the bench's server to its end; return what its requests took in a window of it.

    A load that is over before the window is runs a second time. Raises EnvironmentFault where that happens again, or
    where the load comes to nothing.
    """
    try:
        return _use(bench, server, load, window)
    except _Over:
        return _use(bench, server, load, window)


def _use(bench: Bench, server: Server, load: LoadProfile, window: Window) -> Use:
    ending = Ending()
    with ThreadPoolExecutor(1) as beside:
        looking = beside.submit(_looks, server, ending, window)
        folder = bench.put(load, server, ending)
    figures = summary.of_folder(folder, {line.line: line.model for line in load.traffic}, ending.measured_s)
    return _seen(looking.result(), figures["totals"]["p50_ms"])


def _looks(server: Server, ending: Ending, window: Window) -> list[_Look]:
    """Return looks at a load on the server, at the parts of its window."""
    page, pid = _Page(server), _pid(server)
    _await_load(page, ending, window)
    looks = [_look(page, pid, ending)]
    for part in range(1, SAMPLES + 1):
        # by the clock: looks take longer on a busy server, and would together outlast the load
        time.sleep(max(0.0, looks[0].at_s + part * window.length_s / SAMPLES - time.monotonic()))
        looks.append(_look(page, pid, ending))
        if looks[-1].generator_s < looks[-2].generator_s:  # it has ended
            raise _Over("the load was over before it was measured")
    return looks


def _seen(looks: list[_Look], median_ms: float | None) -> Use:
    """Return what a request took between the first and the last look, and the median of its whole load."""
    first, last = looks[0], looks[-1]
    counted, length_s = last.counts.since(first.counts), last.at_s - first.at_s
    if not counted.requests or median_ms is None:
        raise EnvironmentFault("the server answered no request of the load")
    runs = [after.counts.since(before.counts).run_s for before, after in itertools.pairwise(looks)]
    own_s = last.server_s - first.server_s + last.generator_s - first.generator_s
    return Use(
        rate_rps=counted.requests / length_s,
        server_s=(last.server_s - first.server_s) / counted.requests,
        generator_s=(last.generator_s - first.generator_s) / counted.requests,
        run_s=float(np.nanpercentile(runs, CALM)),
        batch=counted.rows / counted.batches if counted.batches else 1.0,
        median_s=median_ms / 1e3,
        others=max(0.0, last.busy_s - first.busy_s - own_s) / length_s / int(machine.describe()["cores"]),
    )


@dataclass(frozen=True)
class _Look:
    """The state of a load at a moment: counts, and processor seconds of the server, the generator, all processes."""

    at_s: float
    counts: _Counts
    server_s: float
    generator_s: float
    busy_s: float


def _look(page: _Page, server: int, ending: Ending) -> _Look:
    used = _seconds(server), _seconds(ending.pid)
    whole = psutil.cpu_times()
    busy = whole.user + whole.nice + whole.system + getattr(whole, "steal", 0.0)
    return _Look(time.monotonic(), page.read(), *used, busy)


def _await_load(page: _Page, ending: Ending, window: Window) -> None:
    """Wait until the load has begun, and its first part of a second is over."""
    start = page.read().requests
    deadline = time.monotonic() + 20 + 2 * window.begin_s
    while (answered := page.read().requests - start) < FEWEST_ANSWERS:
        over = ending.pid and not psutil.pid_exists(ending.pid)
        if over or time.monotonic() > deadline:
            raise EnvironmentFault(f"a load of the profile got {answered:.0f} answers, which is too few to measure")
        time.sleep(0.05)
    time.sleep(0.5)


def _pid(server: Server) -> int:
    """Return the server's process id; that of a container is found by its port."""
    if server.pid:
        return server.pid
    mark = f"--rest_api_port={server.rest_port}"
    for process in psutil.process_iter(["cmdline"]):
        if mark in (process.info["cmdline"] or []) and "bash" not in process.info["cmdline"][0]:
            return int(process.pid)
    raise EnvironmentFault("the server's process cannot be seen from here", fix="declare serving.backend: embedded")


def _seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system
