"""What a line of traffic costs on a machine: what `profiling` measured, and what the simulator takes from it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from launchpad import drawing, files, tuned
from launchpad.errors import EnvironmentFault, Problem
from launchpad.layout import Layout
from launchpad.spec import BatchQueue, Traffic
from launchpad.tune import pace
from launchpad.tune.simulate import (
    TENSORFLOW_POLL_S,
    Host,
    Queue,
    Result,
    ServiceTimes,
    poisson_arrivals,
    short,
    simulate,
)

if TYPE_CHECKING:
    from launchpad.modelserver import execution

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
FEWER_SIZES = (1, 4, 16, 64, 128)
"""Sizes measured with another number of threads for an operation."""
INTRA_OP = "tensorflow_intra_op_parallelism"
INTER_OP = "tensorflow_inter_op_parallelism"
USERS = 24
"""Who make the highest rate, each asking again when answered."""
FEW_USERS = 6
"""Who make small batches, and yet leave no time unused."""
CROWD = 2 * USERS
"""Requests in flight that are more than those of USERS, and fewer than wait where more is asked for than answered."""
DEEP = BatchQueue(max_batch_size=64, max_enqueued_batches=64)
OVERLOAD = 1.3
"""Of the highest rate of USERS with batching: more than the server answers, so that batches are as deep as they become,
and as many connections are in use as wait at a server's limit, which costs up to a fifth more a request than few do."""
LARGE = 8
"""Rows of the larger request whose run is measured under full load."""
READ_SHARE = 0.5
"""Of the work on a request outside its batch, the part before it. What a profile measures is the sum; this division is
the one with which processor time and median latency of batches that wait for their timeout come out as measured."""
THREAD_STEP_S = 1e-5
WARM_PAUSES = 4
"""Pauses of full load that caches outlast at least: what a neighbour adds to the runs of a load is no cooling."""
MOST_FOR_OTHERS = 0.15
"""Share of the cores beyond which a profile is told to be doubtful."""
ANOTHER_MACHINE = 1.3
"""A machine so many times as fast, or as slow, is another than the one that was profiled, whatever it is called: the
simulator is right within 10 %."""


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
    rate with batching; deep: likewise when more is asked for than is answered; few: likewise of FEW_USERS, where an
    event loop runs batches itself; middle: without batching at MIDDLE of the highest rate, and its median latency;
    single: at that rate with batching, where most batches are of one request; high: at HIGH of the highest rate.
    others: share of the cores that took part in none of this, at most; the more, the less the figures are worth.
    paces, pace_s: how fast the machine did the same work over and over, in each pace_s, all cores busy, on the slowest
    of them; 1 on average.
    operation_threads: threads that an operation may use in all of this; otherwise: runs with another number, None where
    the declaration says how many.
    turn_s, client_wake_s, rouse_s: found by simulating `middle` and `high`, so that processor time and median latency
    are theirs; wake_s, in place of turn_s, where no event loop serves. thread_s: by simulating `deep`, so that as many
    are answered.
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
    deep: Use
    middle: Use
    high: Use
    model_digest: str
    machine: dict[str, Any]
    seconds: float
    measured: str
    paces: tuple[float, ...] = (1.0,)
    pace_s: float = pace.SLICE_S
    operation_threads: int = 0
    otherwise: Otherwise | None = None
    wake_s: float = 0.0
    turn_s: float = 0.0
    client_wake_s: float = 0.0
    rouse_s: float = 0.0
    few: Use | None = None
    single: Use | None = None
    thread_s: float = 0.0

    @property
    def others(self) -> float:
        uses = (self.full, self.large, self.batched, self.deep, self.few, self.single, self.middle, self.high)
        return max(use.others for use in uses if use)

    def _alone_s(self, rows: float) -> float:
        """Return the s of a run of so many rows by itself, on an idle server."""
        return float(np.interp(rows, self.sizes, self.run_s))

    def _run_s(self, use: Use, rows: int) -> float:
        """Return the processor time of a run of so many rows under full load.

        An event loop that is never idle has the processor for as long as it uses it, for the rest neighbours have it.
        Runs beside each other share the processors, so that the time the server counts is the others', too.
        """
        if self._alone_s(rows) >= self._inline_s:
            return self._alone_s(rows)
        return use.run_s * min(1.0, use.server_s * use.rate_rps)

    @property
    def batch_s(self) -> np.ndarray:
        """[largest + 1] s of a batch of each size right after another: as measured, less what warm caches save; never
        falling with the size. What they save was measured under full load, at a request's rows and at LARGE, as far as
        these run on the event loop, and is interpolated by the logarithm."""
        alone, rows = self._alone, self.traffic.batch
        saved = {rows: self._saved_s(self.full, rows)}
        if rows != LARGE and self._alone_s(LARGE) < self._inline_s:
            saved[LARGE] = self._saved_s(self.large, LARGE)
        known = sorted(saved)
        saving = np.interp(np.log(np.maximum(np.arange(len(alone)), 1)), np.log(known), [saved[size] for size in known])
        return np.maximum.accumulate(np.maximum(alone - saving, 0.2 * alone))

    @property
    def cold_s(self) -> np.ndarray:
        """[largest + 1] s that a run of each size takes besides where the last one is long ago."""
        return np.maximum(0.0, self._alone - self.batch_s)

    @property
    def _alone(self) -> np.ndarray:
        return np.interp(np.arange(self.sizes[-1] + 1), self.sizes, self.run_s)

    def _saved_s(self, use: Use, rows: int) -> float:
        """Return what warm caches save of a run of so many rows right after another, by a load of such runs."""
        run_s = self._run_s(use, rows)
        pause_s = max(0.0, use.server_s - run_s)
        return (self._alone_s(rows) - run_s) * float(np.exp(pause_s / self.cool_s))

    @property
    def cool_s(self) -> float:
        """In which time what warm caches save is 1/e of it, by the runs of `middle`: these come by chance, so that the
        mean of exp(-pause / cool_s) is 1 / (1 + mean pause / cool_s). Between runs of `full` all other work passes."""
        rows, middle, full = self.traffic.batch, self.middle, self.full
        alone_s, full_s = self._alone_s(rows), self._run_s(full, rows)
        pause_s, full_pause_s = max(1e-6, 1 / middle.rate_rps - middle.run_s), max(0.0, full.server_s - full_s)
        cool_s = pause_s
        for _ in range(20 if alone_s > full_s else 0):
            warm = (alone_s - middle.run_s) / (alone_s - full_s) * np.exp(-full_pause_s / cool_s)
            warm = min(0.98, max(0.02, warm))
            cool_s = max(WARM_PAUSES * full_pause_s, pause_s * warm / (1 - warm))
        return float(cool_s)

    @property
    def front_s(self) -> float:
        """Work on a request outside its run, under full load, without its part in a turn of the event loop: of users
        who ask again as soon as they are answered, half are read in a turn."""
        run_s = self._run_s(self.full, self.traffic.batch)
        return max(1e-6, self.full.server_s - run_s - self.turn_s / (USERS / 2))

    @property
    def task_s(self) -> np.ndarray:
        """[largest + 1] s that each request adds to a batch of so many rows beyond the run. Less than nothing where the
        work on many at once saves more than forming the batch costs.

        It is known of batches of single requests, of few users, of many, and of deep ones; those of few save no more
        than those of many. In between it is interpolated by the logarithm of the rows. Batches that do not run on the
        event loop run beside it, and what the processor then takes says nothing of a request's own work: then it is
        nothing for a request alone.
        """
        of_many = self._added_s(self.batched)
        known = {float(self.traffic.batch): 0.0}
        if self.single and self._runs_inline(self.single):
            known = {max(float(self.traffic.batch), self.single.batch): max(0.0, self._added_s(self.single))}
        if self.few and self._runs_inline(self.few):
            known[max(1.0, self.few.batch)] = max(self._added_s(self.few), of_many)
        known[max(1.0, self.batched.batch)] = of_many
        if self._deep_tells:
            known[self.deep.batch] = self._added_s(self.deep) - self.crowd_s
        rows = np.maximum(np.arange(len(self.batch_s)), 1)
        sizes = sorted(known)
        added = np.interp(np.log(rows), np.log(sizes), [known[size] for size in sizes])
        return np.maximum(added, -0.9 * self.front_s * (1 - READ_SHARE))

    @property
    def crowd_s(self) -> float:
        """What a request takes besides while many are in flight: by so much it costs more in a deep batch, of more
        requests than are answered, than in one of USERS."""
        if not self._deep_tells:
            return 0.0
        return max(0.0, self._added_s(self.deep) - self._added_s(self.batched))

    @property
    def _deep_tells(self) -> bool:
        """Whether deep batches are deeper, and run on the event loop."""
        return self.deep.batch > max(1.0, self.batched.batch) and self._runs_inline(self.deep)

    def _share(self, use: Use) -> float:
        """Return the part of a load's mean batch that is one request's."""
        return min(1.0, self.traffic.batch / use.batch)

    def _runs_inline(self, use: Use) -> bool:
        """Whether batches of a load's mean size run on the event loop."""
        work_s = self.batch_s
        rows = np.arange(len(work_s))
        limit_s = np.maximum(self._inline_s, rows / self.traffic.batch * self._inline_request_s)
        return bool(short(work_s, np.asarray(self.residuals), limit_s)[min(rows[-1], max(1, round(use.batch)))])

    def _added_s(self, use: Use) -> float:
        return use.server_s - self.front_s - (self.turn_s + self._batch_of(use)) * self._share(use)

    def _batch_of(self, use: Use) -> float:
        """Return the s of a batch of a load's mean size, all other work on its requests between two of them."""
        rows, sizes = max(1.0, use.batch), np.arange(len(self._alone))
        run_s, cold_s = (float(np.interp(rows, sizes, times)) for times in (self.batch_s, self.cold_s))
        pause_s = max(0.0, use.server_s / self._share(use) - run_s)
        return run_s + cold_s * -float(np.expm1(-pause_s / self.cool_s))

    @property
    def batch_cores(self) -> float:
        """Cores that a large batch keeps busy: by so much as many batches as there are cores hold each other up."""
        return self._cores_of(self.together)

    def _cores_of(self, together: dict[int, float]) -> float:
        cores = int(self.machine["cores"])
        return min(float(cores), max(1.0, together.get(cores, 1.0)))

    @property
    def _inline_s(self) -> float:
        return _limits().INLINE_LIMIT_S if self.backend == "embedded" else 0.0

    @property
    def _inline_request_s(self) -> float:
        return _limits().INLINE_REQUEST_S if self.backend == "embedded" else 0.0

    def times(self) -> ServiceTimes:
        """Return the service times that the simulator takes."""
        return ServiceTimes(
            self.batch_s,
            cold_s=self.cold_s,
            cool_s=self.cool_s,
            task_s=self.task_s,
            lone_s=READ_SHARE * max(0.0, float(self.task_s[self.traffic.batch])),
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
        changed = replace(times, batch_s=times.batch_s * factor, cold_s=times.cold_s * factor)
        return changed, replace(host, batch_cores=cores)

    def host(self, request_threads: int, with_generator: bool = True) -> Host:
        """Return the host that the simulator takes.

        with_generator: the load generator runs on the same cores, and latency is what it sees; else what the server
        sees of clients elsewhere.
        """
        cores = int(self.machine["cores"])
        generator = self.full.generator_s if with_generator else 0.0
        return Host(
            cores=cores,
            request_threads=request_threads,
            front_threads=1 if self.backend == "embedded" else cores,
            event_loop=self.backend == "embedded",
            inline_s=self._inline_s,
            inline_request_s=self._inline_request_s,
            poll_s=0.0 if self.backend == "embedded" else TENSORFLOW_POLL_S,
            batch_cores=self.batch_cores,
            send_s=generator / 2,
            receive_s=generator / 2,
            wake_s=self.wake_s,
            turn_read_s=self.turn_s * READ_SHARE,
            turn_answer_s=self.turn_s * (1 - READ_SHARE),
            thread_s=self.thread_s,
            crowd=CROWD,
            crowd_s=self.crowd_s,
            client_wake_s=self.client_wake_s if with_generator else 0.0,
            rouse_s=self.rouse_s if with_generator else 0.0,
            paces=np.asarray(self.paces),
            pace_s=self.pace_s,
        )


def calibrated(profile: Profile, request_threads: int = 1 << 20) -> Profile:
    """Return the profile with what a turn of the event loop costs, or else what it costs to begin after having been
    idle, what a batch costs that the loop hands to a thread, and with the time that takes no processor.

    They are those with which the simulated middle and high rates take the processor time, and the middle one the median
    latency, that were measured: a damped fixed point, each quantity by the excess that is most of its making; a turn by
    both rates, since the one or the other may have met neighbours. And as many are answered of a load that is too much:
    fewer, the longer a batch on a thread takes, so that halving finds it.
    request_threads: of the server that was measured.
    """
    middle, high = profile.middle, profile.high
    cores, loop = int(profile.machine["cores"]), profile.backend == "embedded"

    def simulated(use: Use) -> Result:
        arrivals = poisson_arrivals(use.rate_rps, 20_000, seed=1, size=profile.traffic.batch)
        return simulate([Queue(None, profile.times())], 1, profile.host(1 << 20), arrivals)

    for _ in range(40):
        at_middle, at_high = simulated(middle), simulated(high)
        idle_s = middle.server_s - at_middle.processor_use * cores / middle.rate_rps
        turn_s = high.server_s - at_high.processor_use * cores / high.rate_rps
        generator_s = middle.generator_s - at_middle.generator_use / middle.rate_rps
        waited_s = middle.median_s - at_middle.percentile_ms(50) / 1e3
        profile = replace(
            profile,
            wake_s=0.0 if loop else max(0.0, profile.wake_s + 0.7 * idle_s),
            turn_s=max(0.0, profile.turn_s + 0.35 * (idle_s + turn_s)) if loop else 0.0,
            client_wake_s=max(0.0, profile.client_wake_s + 0.5 * generator_s),
            rouse_s=max(0.0, profile.rouse_s + 0.25 * waited_s),  # up to three times in a request's latency
        )
    if not loop or profile._runs_inline(profile.deep):
        return profile

    def fewer_rps(steps: int) -> float:
        return -_answered_rps(replace(profile, thread_s=steps * THREAD_STEP_S), cores, request_threads)

    requests = profile.deep.batch / profile.traffic.batch
    most = round(cores * requests / profile.deep.rate_rps / THREAD_STEP_S)
    steps = bisect_left(range(most), -profile.deep.rate_rps, key=fewer_rps)
    return replace(profile, thread_s=steps * THREAD_STEP_S)


def _answered_rps(profile: Profile, threads: int, request_threads: int) -> float:
    """Return how many requests/s are answered in simulation while OVERLOAD is asked for."""
    queue = deep_queue(profile.traffic)
    arrivals = poisson_arrivals(OVERLOAD * profile.batched.rate_rps, 40_000, seed=1, size=profile.traffic.batch)
    result = simulate([Queue(queue, profile.times())], threads, profile.host(request_threads), arrivals)
    answered_s, length_s = arrivals.times_s + result.latency_s, arrivals.times_s[-1]
    return float((answered_s <= length_s).sum() / length_s)


def threads_flag(line: Traffic) -> str:
    """Return the server's flag that says on how many such requests it works at once."""
    return "grpc_max_threads" if line.protocol == "grpc" else "rest_api_num_threads"


def request_threads(line: Traffic, flags: Mapping[str, Any], cores: int) -> int:
    """Return on how many requests a server works at once, by its flags or TensorFlow Serving's default."""
    return int(flags.get(threads_flag(line), 0) or 4 * cores)


def deep_queue(line: Traffic) -> BatchQueue:
    """Return the queue with which batches are profiled."""
    return DEEP.model_copy(update={"max_batch_size": max(DEEP.max_batch_size, line.batch)})


def _limits() -> type[execution.ServiceTimes]:
    from launchpad.modelserver.execution import ServiceTimes

    return ServiceTimes


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


def is_another_machine(speed: float) -> bool:
    """Tell whether a machine that is so many times as fast as the one that was profiled counts as another."""
    return not 1 / ANOTHER_MACHINE < speed < ANOTHER_MACHINE


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
        sizes,
        profile.batch_s[sizes] * 1e6,
        color=drawing.SERIES[2],
        linestyle="--",
        label="right after another, as simulated",
    )
    axes.set(xlabel="rows", ylabel="µs", xscale="log", yscale="log")
    drawing.plain_numbers(axes.xaxis)
    drawing.plain_numbers(axes.yaxis)
