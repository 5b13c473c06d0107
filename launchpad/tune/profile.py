"""What one line of traffic costs on this machine: measured in under a minute on the backend that is in use.

On a server without batching: the run of a batch of each of some sizes, by requests of that size one after the other and
at once, as the server's own `runtime_latency` counts it; and the processor time of a request at a low rate and at the
highest, of the server and of the load generator, which share the cores. On a server with batching: the processor time
at the highest rate again; what is more than the batches alone is what each request adds to its batch. On a server whose
operations have another number of threads: the runs again, where the declaration leaves that number open.
"""

from __future__ import annotations

import datetime
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter, ValidationError

from launchpad import drawing, files, machine, tuned
from launchpad.client import GrpcClient, RestClient
from launchpad.errors import EnvironmentFault, Problem
from launchpad.examples import Examples, Values
from launchpad.layout import Layout
from launchpad.server import Server
from launchpad.spec import BatchQueue, Traffic
from launchpad.tune import pace
from launchpad.tune.bench import LOG, Bench
from launchpad.tune.simulate import TENSORFLOW_POLL_S, Host, Queue, ServiceTimes, poisson_arrivals, simulate

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
SIZE_TIME_S = 0.5
FEWER_SIZES = (1, 4, 16, 64, 128)
"""Sizes measured with another number of threads for an operation."""
INTRA_OP = "tensorflow_intra_op_parallelism"
FEWEST_CALLS = 12
USERS = 24
MANY_USERS = 192
"""Users with whom batches are as deep as a queue under overload makes them."""
LOADED_S = 3.5
WINDOW_S = 2.0
MIDDLE = 0.4
"""Of the highest rate: where little queues, and yet much comes while something else is under way."""
LARGE = 8
"""Rows of the larger request whose run is measured under full load."""
READ_SHARE = 0.6
"""Of the work on a request outside its batch, the part before it. An assumption: what is measured is the sum, and
rates and percentiles hardly depend on how it is divided."""
QUANTILES = 200
SAMPLES = 8
"""Parts that the window of a load is looked at in."""
CALM = 25
"""Percentile of the parts' mean runs that counts: a neighbour on the processor only ever adds to them."""
MOST_FOR_OTHERS = 0.15
"""Share of the cores beyond which a profile is told to be doubtful."""
RUNTIME = ":tensorflow:serving:runtime_latency"
REQUESTS = ":tensorflow:serving:request_count"
PROCESSED = ":tensorflow:serving:batching_session:processed_batch_size"


@dataclass(frozen=True)
class Use:
    """What a request took while a load ran: processor seconds of the server and of the load generator, and the rate.

    run_s: mean run as the server counts it. batch: mean rows of a batch, 1 without batching. median_s: median latency.
    others: share of all cores that neither of the two took.
    """

    rate_rps: float
    server_s: float
    generator_s: float
    run_s: float
    batch: float
    median_s: float
    others: float


@dataclass(frozen=True)
class Otherwise:
    """Runs where an operation may use so many threads: medians in s of FEWER_SIZES, and `together`, as in Profile."""

    threads: int
    run_s: tuple[float, ...]
    together: dict[int, float]


@dataclass(frozen=True)
class Profile:
    """A line of traffic, measured. Times in s.

    sizes, run_s: median run of a batch of each size, by itself. fixed_s, row_s: the line fitted to them.
    residuals: QUANTILES of single runs over their size's median, a mean of 1. spread_s: quartiles of each size's runs.
    together: {k: run of k batches at once over that of one}.
    full: a request without batching at the highest rate; large: one of LARGE rows likewise; batched: at the highest
    rate with batching; deep: likewise with MANY_USERS, None where it was not measured; middle: without batching at
    MIDDLE of the highest rate, and its median latency.
    others: share of the cores that took part in none of this, at most; the more, the less the figures are worth.
    paces, pace_s: how fast the machine did the same work over and over, in each pace_s, all cores busy; 1 on average.
    operation_threads: threads that an operation may use in all of this; otherwise: runs with another number, None where
    the declaration says how many.
    wake_s, client_wake_s, path_s: found by simulating `middle`, so that processor time and median latency are its.
    """

    traffic: Traffic
    backend: str
    sizes: tuple[int, ...]
    run_s: tuple[float, ...]
    fixed_s: float
    row_s: float
    residuals: tuple[float, ...]
    spread_s: tuple[tuple[float, float], ...]
    together: dict[int, float]
    full: Use
    large: Use
    batched: Use
    middle: Use
    model_digest: str
    machine: dict[str, Any]
    seconds: float
    measured: str
    paces: tuple[float, ...] = (1.0,)
    pace_s: float = pace.SLICE_S
    operation_threads: int = 0
    otherwise: Otherwise | None = None
    deep: Use | None = None
    wake_s: float = 0.0
    client_wake_s: float = 0.0
    path_s: float = 0.0

    @property
    def others(self) -> float:
        return max(use.others for use in (self.full, self.large, self.batched, self.deep, self.middle) if use)

    def _run_s(self, use: Use) -> float:
        """A run under full load without what neighbours took of the processor meanwhile.

        An event loop that is never idle has the processor for as long as it uses it; for the rest others have it.
        """
        return use.run_s * min(1.0, use.server_s * use.rate_rps)

    @property
    def batch_s(self) -> np.ndarray:
        """[largest + 1] s of a batch of each size under load: as measured, less what warm caches save; never falling
        with the size. What they save was measured at one row and at LARGE, and is interpolated by the logarithm."""
        sizes = np.arange(self.sizes[-1] + 1)
        alone = np.interp(sizes, self.sizes, self.run_s)
        saved = [self.run_s[0] - self._run_s(self.full), self.run_s[self.sizes.index(LARGE)] - self._run_s(self.large)]
        if self.run_s[self.sizes.index(LARGE)] > self._inline_s:  # ran beside others, which says nothing of caches
            saved[1] = saved[0]
        saving = np.interp(np.log(np.maximum(sizes, 1)), [0.0, np.log(LARGE)], saved)
        return np.maximum.accumulate(np.maximum(alone - saving, 0.2 * alone))

    @property
    def front_s(self) -> float:
        """Work on a request outside its run, under full load."""
        return max(1e-6, self.full.server_s - self._run_s(self.full))

    @property
    def task_s(self) -> np.ndarray:
        """[largest + 1] s that each request adds to a batch of so many rows beyond the run. Less than nothing where the
        work on many at once saves more than forming the batch costs.

        Measured at two sizes, and interpolated by the logarithm. Deep batches that do not run on the event loop run
        beside it, and what the processor then takes says nothing of a request's own work.
        """
        known = [(max(1.0, self.batched.batch), max(0.0, self._added_s(self.batched)))]
        if self.deep and self.deep.batch > known[0][0] and self._batch_of(self.deep) < self._inline_s:
            known.append((self.deep.batch, self._added_s(self.deep)))
        sizes, added = zip(*known, strict=True)
        rows = np.maximum(np.arange(len(self.batch_s)), 1)
        return np.maximum(np.interp(np.log(rows), np.log(sizes), added), -0.9 * self.front_s * (1 - READ_SHARE))

    def _added_s(self, use: Use) -> float:
        rows = max(1.0, use.batch)
        return use.server_s - self.front_s - self._batch_of(use) / rows

    def _batch_of(self, use: Use) -> float:
        """Return the s of a batch of a load's mean size."""
        return float(np.interp(max(1.0, use.batch), np.arange(len(self.batch_s)), self.batch_s))

    @property
    def batch_cores(self) -> float:
        """Cores that a large batch keeps busy: by so much as many batches as there are cores hold each other up."""
        return self._cores_of(self.together)

    def _cores_of(self, together: dict[int, float]) -> float:
        cores = int(self.machine["cores"])
        return min(float(cores), max(1.0, together.get(cores, 1.0)))

    @property
    def _inline_s(self) -> float:
        return _inline_limit_s() if self.backend == "embedded" else 0.0

    def times(self) -> ServiceTimes:
        """Return the service times that the simulator takes."""
        return ServiceTimes(
            self.batch_s,
            task_s=self.task_s,
            read_s=self.front_s * READ_SHARE,
            answer_s=self.front_s * (1 - READ_SHARE),
            noise=np.asarray(self.residuals),
        )

    def with_other_threads(self, times: ServiceTimes, host: Host) -> tuple[ServiceTimes, Host]:
        """Return what becomes of the two where operations have `otherwise.threads`: each run changes as it does by
        itself."""
        assert self.otherwise
        usual = np.interp(FEWER_SIZES, self.sizes, self.run_s)
        ratios = np.asarray(self.otherwise.run_s) / usual
        factor = np.interp(np.log(np.maximum(np.arange(len(times.batch_s)), 1)), np.log(FEWER_SIZES), ratios)
        cores = self._cores_of(self.otherwise.together)
        return replace(times, batch_s=times.batch_s * factor), replace(host, batch_cores=cores)

    def host(self, request_threads: int, with_generator: bool = True) -> Host:
        """Return the host that the simulator takes. with_generator: the load generator runs on the same cores."""
        cores = int(self.machine["cores"])
        generator = self.full.generator_s if with_generator else 0.0
        return Host(
            cores=cores,
            request_threads=request_threads,
            front_threads=1 if self.backend == "embedded" else cores,
            event_loop=self.backend == "embedded",
            inline_s=self._inline_s,
            poll_s=0.0 if self.backend == "embedded" else TENSORFLOW_POLL_S,
            batch_cores=self.batch_cores,
            send_s=generator / 2,
            receive_s=generator / 2,
            wake_s=self.wake_s,
            client_wake_s=self.client_wake_s if with_generator else 0.0,
            path_s=self.path_s,
            paces=np.asarray(self.paces),
            pace_s=self.pace_s,
        )


def calibrated(profile: Profile) -> Profile:
    """Return the profile with what it costs to begin after having been idle, and with the time that takes no processor.

    They are those with which the simulated middle rate takes the processor time and the median latency that were
    measured: a damped fixed point, each quantity by its own excess.
    """
    middle, cores = profile.middle, int(profile.machine["cores"])
    arrivals = poisson_arrivals(middle.rate_rps, 20_000, seed=1)
    for _ in range(12):
        result = simulate([Queue(None, profile.times())], 1, profile.host(1 << 20), arrivals)
        server_s = result.processor_use * cores / middle.rate_rps
        generator_s = result.generator_use / middle.rate_rps
        profile = replace(
            profile,
            wake_s=max(0.0, profile.wake_s + 0.7 * (middle.server_s - server_s)),
            client_wake_s=max(0.0, profile.client_wake_s + 0.5 * (middle.generator_s - generator_s)),
            path_s=max(0.0, profile.path_s + 0.7 * (middle.median_s - result.percentile_ms(50) / 1e3)),
        )
    return profile


def _inline_limit_s() -> float:
    from launchpad.modelserver.execution import ServiceTimes as Limits

    return Limits.INLINE_LIMIT_S


def measure(bench: Bench, line: Traffic, examples: Examples, digest: str, advance: Callable[[str], None]) -> Profile:
    """Measure a line of traffic on servers of the bench, which are ended.

    Raises EnvironmentFault if a server does not start, does not answer, or has no metrics page.
    """
    began = time.monotonic()
    loads: dict[str, dict[str, Any]] = {
        "full": {"users": USERS, "duration_s": LOADED_S},
        "large": {
            "users": USERS,
            "duration_s": LOADED_S,
            "traffic": [line.model_copy(update={"batch": LARGE}).model_dump(mode="json")],
        },
    }
    loads["deep"] = loads["full"] | {"users": MANY_USERS}
    inputs = examples.inputs[line.signature]
    advance("a server without batching")
    bench.declare({}, 1, loads)
    server = bench.launch()
    try:
        advance("batch sizes one by one")
        runs = {size: _runs(server, line, _rows(inputs, size)) for size in SIZES}
        advance("batches at once")
        together = _together(server, line, inputs, int(machine.describe()["cores"]))
        advance("the highest rate")
        full = use(bench, server, "full")
        large = use(bench, server, "large")
        advance("a middle rate")
        loads["middle"] = {"loop": "open", "rate_rps": round(MIDDLE * full.rate_rps), "duration_s": LOADED_S}
        bench.declare({}, 1, loads)
        middle = use(bench, server, "middle")
        advance("the highest rate with batching")
        queue = BatchQueue(max_batch_size=64, max_enqueued_batches=64)
        bench.declare({line.model: queue}, int(machine.describe()["cores"]), loads)
        server = bench.launch()
        batched, deep = (use(bench, server, name) for name in ("full", "deep"))
        threads, other = operation_threads(bench.flags, server.backend)
        otherwise = None
        if other:
            advance(f"{other} thread{'' if other == 1 else 's'} for an operation")
            bench.declare({}, 1, loads, {INTRA_OP: other})
            server = bench.launch()
            medians = [float(np.median(_runs(server, line, _rows(inputs, size)))) for size in FEWER_SIZES]
            together_then = _together(server, line, inputs, int(machine.describe()["cores"]))
            otherwise = Otherwise(other, tuple(medians), together_then)
    finally:
        bench.stop()
    advance("the machine's pace")
    paces = pace.measure(int(machine.describe()["cores"]))
    medians = [float(np.median(runs[size])) for size in SIZES]
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
        middle=middle,
        model_digest=digest,
        machine=machine.describe(),
        seconds=round(time.monotonic() - began, 1),
        paces=paces,
        pace_s=pace.SLICE_S,
        operation_threads=threads,
        otherwise=otherwise,
        deep=deep,
        measured=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return calibrated(profile)


def operation_threads(flags: Mapping[str, Any], backend: str) -> tuple[int, int]:
    """Return (threads that an operation may use with these flags, another number worth a look: all cores or one).

    The other number is 0, for none, where a flag says how many or there is one core.
    """
    cores = int(machine.describe()["cores"])
    declared = int(flags.get(INTRA_OP, 0) or flags.get("tensorflow_session_parallelism", 0))
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
    for _ in range(3):
        call(inputs)
    times: list[float] = []
    end = time.monotonic() + SIZE_TIME_S
    before = page.read()
    while time.monotonic() < end or len(times) < FEWEST_CALLS:
        call(inputs)
        after = page.read()
        times.append(after.since(before).run_s)
        before = after
    return times


def _together(server: Server, line: Traffic, inputs: dict[str, Values], cores: int) -> dict[int, float]:
    """Return {k: mean run of k batches at once over that of one}, for large batches, which surely meet."""
    request = _rows(inputs, SIZES[-1])
    alone = _mean_run(server, line, request, 1)
    return {k: _mean_run(server, line, request, k) / alone for k in (cores, 2 * cores) if k > 1}


def _mean_run(server: Server, line: Traffic, request: dict[str, Values], callers: int) -> float:
    page = _Page(server)
    stop = threading.Event()

    def ask() -> None:
        call = _caller(server, line)
        while not stop.is_set():
            call(request)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    before = page.read()
    time.sleep(1.0)
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
            if part.startswith((RUNTIME, REQUESTS, PROCESSED)) and "_bucket" not in part
        )
        for family in text_string_to_metric_families(kept + "\n"):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        return _Counts(
            sums.get(REQUESTS, 0.0),
            sums.get(f"{RUNTIME}_count", 0.0),
            sums.get(f"{RUNTIME}_sum", 0.0),
            sums.get(f"{PROCESSED}_count", 0.0),
            sums.get(f"{PROCESSED}_sum", 0.0),
        )


def use(bench: Bench, server: Server, profile: str) -> Use:
    """Run a load and return what a request took in the middle of it."""
    page, process = _Page(server), _process(server)
    with bench.running("loadtest", "--profile", profile) as command:
        _await_load(page, command)
        looks = [_look(page, process, command.pid)]
        for _ in range(SAMPLES):
            time.sleep(WINDOW_S / SAMPLES)
            looks.append(_look(page, process, command.pid))
        command.wait(timeout=60)
    if command.returncode not in (0, 1):  # 1: an objective does not hold, which is no fault of the profile
        raise EnvironmentFault("the load test of the profile failed", str(bench.layout.root / LOG))
    first, last = looks[0], looks[-1]
    counted, length_s = last.counts.since(first.counts), last.at_s - first.at_s
    if not counted.requests:
        raise EnvironmentFault("the server answered no request of the load", str(bench.layout.root))
    runs = [after.counts.since(before.counts).run_s for before, after in itertools.pairwise(looks)]
    own_s = last.server_s - first.server_s + last.generator_s - first.generator_s
    return Use(
        rate_rps=counted.requests / length_s,
        server_s=(last.server_s - first.server_s) / counted.requests,
        generator_s=(last.generator_s - first.generator_s) / counted.requests,
        run_s=float(np.nanpercentile(runs, CALM)),
        batch=counted.rows / counted.batches if counted.batches else 1.0,
        median_s=bench.results("summary.json")[-1]["totals"]["p50_ms"] / 1e3,
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


def _look(page: _Page, server: psutil.Process, command: int) -> _Look:
    generators = psutil.Process(command).children(recursive=True)
    used = _seconds(server), sum(_seconds(process) for process in generators)
    whole = psutil.cpu_times()
    busy = whole.user + whole.nice + whole.system + getattr(whole, "steal", 0.0)
    return _Look(time.monotonic(), page.read(), *used, busy)


def _await_load(page: _Page, command: Any) -> None:
    """Wait until the load has begun, and its first part of a second is over."""
    start = page.read().requests
    deadline = time.monotonic() + 20
    while page.read().requests < start + 20:
        if command.poll() is not None or time.monotonic() > deadline:
            raise EnvironmentFault("the load generator sent nothing")
        time.sleep(0.05)
    time.sleep(0.5)


def _process(server: Server) -> psutil.Process:
    """Return the server's process; that of a container is found by its port."""
    if server.pid:
        return psutil.Process(server.pid)
    mark = f"--rest_api_port={server.rest_port}"
    for process in psutil.process_iter(["cmdline"]):
        if mark in (process.info["cmdline"] or []) and "bash" not in process.info["cmdline"][0]:
            return process
    raise EnvironmentFault("the server's process cannot be seen from here", fix="declare serving.backend: embedded")


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


ADAPTER = TypeAdapter(Profile)


def save(layout: Layout, profile: Profile) -> None:
    """Write a model's profile and its chart beside the configuration that follows from it."""
    path = layout.service_profile(profile.traffic.model)
    files.write_json(path, ADAPTER.dump_python(profile, mode="json"))
    chart = drawing.svg(_chart, profile, f"Run of a batch: {profile.traffic.line}")
    files.write_text(path.with_suffix(".svg"), drawing.on_paper(chart))


def load(layout: Layout, model: str) -> Profile:
    """Return a model's profile. Raises EnvironmentFault where there is none, or none that can be read."""
    path = layout.service_profile(model)
    try:
        return ADAPTER.validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EnvironmentFault(
            f"{model} has not been profiled", layout.relative(path), f"run `invoke profile --model {model}`"
        ) from None
    except ValidationError as error:
        raise EnvironmentFault(
            f"is no profile: {error.errors()[0]['msg']}", layout.relative(path), f"run `invoke profile --model {model}`"
        ) from None


def doubts(profile: Profile, layout: Layout) -> list[Problem]:
    """Return why a profile may not speak for this model on this machine."""
    found = []
    place = layout.relative(layout.service_profile(profile.traffic.model))
    remedy = f"run `invoke profile --model {profile.traffic.model}`"
    if profile.model_digest != tuned.model_digest(layout, profile.traffic.model):
        found.append(Problem(f"{profile.traffic.model} is not the version that was profiled", place, remedy))
    differs = tuned.other_machine(profile.machine)
    if differs:
        found.append(Problem(f"profiled on another machine: {'; '.join(differs)}", place, remedy))
    if profile.others > MOST_FOR_OTHERS:
        found.append(Problem(f"others took {profile.others:.0%} of the cores during the profile", place, remedy))
    return found


def _chart(axes: Any, profile: Profile) -> None:
    sizes, runs = np.asarray(profile.sizes), np.asarray(profile.run_s) * 1e6
    spread = np.asarray(profile.spread_s).T * 1e6
    axes.errorbar(
        sizes,
        runs,
        yerr=np.abs(spread - runs),
        fmt="o",
        color=drawing.SERIES[0],
        markersize=3,
        label="by itself, quartiles",
    )
    axes.plot(
        sizes,
        (profile.fixed_s + profile.row_s * sizes) * 1e6,
        color=drawing.SERIES[1],
        linewidth=1,
        label="line fitted",
    )
    axes.plot(
        sizes, profile.batch_s[sizes] * 1e6, color=drawing.SERIES[2], linestyle="--", label="under load, as simulated"
    )
    axes.set(xlabel="rows", ylabel="µs", xscale="log", yscale="log")
    drawing.plain_numbers(axes.xaxis)
    drawing.plain_numbers(axes.yaxis)
