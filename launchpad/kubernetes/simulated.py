"""A replica as the simulator of `invoke tune` has it: batch by batch, on what requests were measured to cost.

The profiles say what a request of each model costs; the capacity result says what the whole server held. So all costs
are multiplied by the one factor at which the simulated p99 at the highest held rate is the measured one: signatures
other than the profiled ones, and a machine that was busier or less busy, are in it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from launchpad import batching
from launchpad.errors import EnvironmentFault
from launchpad.kubernetes import fleet
from launchpad.kubernetes.fleet import Fit, Observed, Replica
from launchpad.kubernetes.measured import Measured
from launchpad.stage import Context
from launchpad.tune import profile as profiles
from launchpad.tune.simulate import Arrivals, Host, Queue, poisson_arrivals, simulate

REFUSED_S = 3600.0
"""Latency that a refused request counts with: more than any objective."""
REQUESTS = 60_000
FACTORS = (0.1, 20.0)
"""Factors on the costs that are tried."""


@dataclass(frozen=True)
class Simulated:
    """A server: one queue for each line of traffic. shares: of the requests. factor: on every cost of the server. rows:
    of a line's requests, one unless given."""

    queues: tuple[Queue, ...]
    shares: tuple[float, ...]
    threads: int
    host: Host
    factor: float = 1.0
    rows: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        return f"the simulator on serving/profiles, costs × {self.factor:.2f}"

    def serve(self, times_s: np.ndarray, seed: int) -> np.ndarray:
        chance = np.random.default_rng([seed, 2])
        lines = chance.choice(len(self.queues), len(times_s), p=np.array(self.shares) / sum(self.shares))
        queues = [replace(queue, times=queue.times.costlier(self.factor)) for queue in self.queues]
        rows = np.array(self.rows or [1] * len(self.queues))[lines]
        result = simulate(
            queues, self.threads, self.host.costlier(self.factor), Arrivals.of(times_s, rows, lines), seed
        )
        return np.nan_to_num(result.latency_s, nan=REFUSED_S)

    @functools.cached_property
    def saturation_rps(self) -> float:
        """Answers a second when more is asked than can be answered."""
        asked = 1 / self.idle_s
        while (answers := self._answers_rps(asked)) > 0.9 * asked:
            asked *= 1.5
        return answers

    def _answers_rps(self, asked_rps: float) -> float:
        times = poisson_arrivals(asked_rps, REQUESTS).times_s
        taken = self.serve(times, 1)
        answered = taken < REFUSED_S
        return float(answered.sum() / (times + np.where(answered, taken, 0)).max())

    @functools.cached_property
    def station(self) -> Replica:
        """A steady queue of the same saturation."""
        return Replica(places=1, service_s=1 / self.saturation_rps, spread=0.0, way_s=0.0)

    @functools.cached_property
    def idle_s(self) -> float:
        apart = np.arange(1, 1001, dtype=np.float64)
        return float(np.median(self.serve(apart, 1)))


def of(context: Context, found: Measured) -> Simulated | str:
    """Return the server that was measured, at the profiles' costs; or why the profiles do not speak for it."""
    pipeline = context.declaration.pipeline
    effective = batching.effective(context.declaration)
    if not found.traffic:
        return "the capacity result does not say what was asked"
    known = {}
    for model in {line["model"] for line in found.traffic}:
        try:
            profile = profiles.load(context.layout, model)
        except EnvironmentFault as fault:
            return fault.problems[0].what
        if (profile.backend, profile.machine["cores"]) != (found.backend, found.machine["cores"]):
            return f"{model} was profiled on another backend or machine than the capacity"
        if profile.model_digest != profiles.tuned.model_digest(context.layout, model):
            return f"{model} is not the version that was profiled"
        known[model] = profile
    lines = list(found.traffic)
    threads = effective.server.num_batch_threads if effective.server else 1
    first = known[lines[0]["model"]]
    requests = profiles.request_threads(first.traffic, pipeline.serving.flags, int(found.machine["cores"]))
    return Simulated(
        queues=tuple(Queue(effective.queues[line["model"]], known[line["model"]].times()) for line in lines),
        shares=tuple(float(line["weight"]) for line in lines),
        threads=threads,
        host=first.host(requests),
        rows=tuple(int(line.get("batch", 1)) for line in lines),
    )


def fit(server: Simulated, observed: Sequence[Observed], held_rps: float, seed: int = 1) -> Fit:
    """Return the server with the factor at which p99 at the highest held rate is the observed one, as it is judged.

    Raises ValueError where no rate was held.
    """
    chosen = fleet.held(observed, held_rps)
    slowest, fastest = 1 / FACTORS[1], 1 / FACTORS[0]
    found = fleet.anchored(lambda speed: replace(server, factor=1 / speed), slowest, fastest, chosen[-1], seed)
    return fleet.judged(found, chosen, REQUESTS, seed)
