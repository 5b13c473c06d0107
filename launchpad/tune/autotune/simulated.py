"""The model policy: the parameters that the simulator finds best at the present rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from launchpad.spec import BatchQueue
from launchpad.tune.autotune.control import Rules, Setting, ThreadPool, Wish, describe, milliseconds
from launchpad.tune.autotune.threshold import resized
from launchpad.tune.autotune.tuner import SERVER, Situation
from launchpad.tune.simulate import Arrivals, Host, Queue, ServiceTimes, poisson_arrivals, simulate

SIMULATED = 12_000
"""Requests of a simulation."""
HEADROOM = 1.2
"""Rates are simulated this much higher: they are means of a window, and what is best must bear its fluctuations."""
SURGE = 4.0
"""Of parameters that are as good as the best at the present rate, those are taken that are best at so many times it.

Among these, those that wait the least for others, and then those with the largest batches, which bear most: what is as
good at many rates need not be changed when the rate does.
"""
STEP = 1.1
"""Rates, and latencies under a surge, that differ by less than this factor are taken for one."""
TIMEOUTS_MICROS = (0, 100, 200, 500, 1000, 2000, 5000, 10_000)
SLOWNESS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
"""Factors on what everything costs that are tried when the server is slower than its profile says."""
SLOWER = 2.0
"""An observed p99 so many times the expected one means that the profile does not hold at the moment."""
NEAR = 0.5
"""A p99 over this share of what is to hold is near it: what is far from it is not worth a change for a slow machine."""
POOL_GAIN = 0.25
"""Least share by which p99 must be expected to fall for another thread pool: it takes a second server for a while."""

Key = tuple[str, float, tuple[tuple[str, float], ...], tuple[tuple[str, Setting], ...]]


@dataclass
class Simulated:
    """The policy.

    costs: what each model's requests cost. spare: parameters to start from where a model has none. rows: of a model's
    requests, where they have more than one.
    """

    rules: Rules
    costs: Mapping[str, ServiceTimes]
    host: Host
    threads: int
    spare: BatchQueue = field(default_factory=lambda: BatchQueue(max_batch_size=1, max_enqueued_batches=1000))
    rows: Mapping[str, int] = field(default_factory=dict)
    _known: dict[Key, Wish] = field(default_factory=dict)
    _seen_ms: dict[Key, float] = field(default_factory=dict)

    def prepare(self) -> None:
        """Have the simulator compiled, before there is anything to decide."""
        model = next(iter(self.costs))
        self.expected_ms(model, {}, {model: 1.0})

    def __call__(self, name: str, situation: Situation) -> Wish:
        """Return what is best for a model, or for the server's thread pool, the others being as they are."""
        rates = {model: seen.rate_rps for model, seen in situation.seen.items() if model in self.costs}
        steps = {model: _step(rate) for model, rate in rates.items() if rate > 0}
        whole = {model: STEP**step for model, step in steps.items()}
        seen = situation.seen.get(name)
        slowness = self.slowness(name, situation.settings, whole, seen.p99_ms if seen else None)
        key = (name, slowness, tuple(sorted(steps.items())), tuple(sorted(situation.settings.items(), key=_name)))
        if key not in self._known:
            self._known[key] = self._wish(name, situation.settings, whole, slowness)
        return self._known[key]

    def _wish(self, name: str, settings: Mapping[str, Setting], rates: Mapping[str, float], slowness: float) -> Wish:
        current = settings[name]
        if not rates or (name != SERVER and name not in rates):
            return Wish(current, "its costs are not known, or nothing is asked of it")

        def expected_ms(setting: Setting, surge: float = 1.0) -> float:
            at = {model: surge * rate_rps for model, rate_rps in rates.items()}
            return self.expected_ms(name, {**settings, name: setting}, at, slowness)

        now_ms, limit_ms = expected_ms(current), self.rules.p99_ms
        found = {other: expected_ms(other) for other in self._candidates(current)}
        least_ms = min(found.values())
        good = [other for other, value_ms in found.items() if value_ms <= least_ms * (1 + self.rules.declared.min_gain)]
        best = min(good, key=lambda other: (_step(min(expected_ms(other, SURGE), limit_ms)), *_cautious(other)))
        gain = POOL_GAIN if name == SERVER else self.rules.declared.min_gain
        rate = f"{sum(rates.values()) if name == SERVER else rates[name]:.0f} requests/s"
        rate += f" on a machine {slowness:g} times as slow as when it was profiled" if slowness > 1 else ""
        if found[best] > now_ms * (1 - gain) or math.isinf(found[best]):
            why = f"at {rate} nothing is expected to be better than the present p99 of {_ms(now_ms)} by {gain:.0%}"
            return Wish(current, why)
        expected = f"a p99 of {_ms(found[best])} at {rate}, {_ms(now_ms)} with {describe(current)}"
        return Wish(best, f"the simulator expects {expected}")

    def slowness(
        self, name: str, settings: Mapping[str, Setting], rates: Mapping[str, float], seen_ms: float | None
    ) -> float:
        """Return the factor on all costs by which the simulator comes to a p99 as high as the one that was seen.

        1 while what was seen is far from what is to hold, or not clearly more than what the profile says: others may be
        busy on the machine, or the model is another. A server that cannot keep up answers fewer requests than come, so
        its rate says nothing of that, its latency does.
        """
        if seen_ms is None or seen_ms <= NEAR * self.rules.p99_ms:
            return 1.0
        if not rates or (name != SERVER and name not in rates):
            return 1.0
        for factor in SLOWNESS:
            if seen_ms <= SLOWER * self._at_seen_rate_ms(name, settings, rates, factor):
                return factor
        return SLOWNESS[-1]

    def _at_seen_rate_ms(
        self, name: str, settings: Mapping[str, Setting], rates: Mapping[str, float], factor: float
    ) -> float:
        key = (name, factor, tuple(sorted(rates.items())), tuple(sorted(settings.items(), key=_name)))
        if key not in self._seen_ms:
            self._seen_ms[key] = self.expected_ms(name, settings, rates, factor, headroom=1.0)
        return self._seen_ms[key]

    def _candidates(self, current: Setting) -> list[Setting]:
        bounds = self.rules.declared.bounds
        if isinstance(current, ThreadPool):
            allowed = bounds.num_batch_threads
            return [ThreadPool(count) for count in range(allowed.min, allowed.max + 1)]
        base = current or self.spare
        sizes = {bounds.max_batch_size.clamp(2**power) for power in range(11)}
        timeouts = {bounds.batch_timeout_micros.clamp(micros) for micros in TIMEOUTS_MICROS}
        return [None, *(resized(base, size, timeout) for size in sorted(sizes) for timeout in sorted(timeouts))]

    def expected_ms(
        self,
        name: str,
        settings: Mapping[str, Setting],
        rates: Mapping[str, float],
        slowness: float = 1.0,
        headroom: float = HEADROOM,
    ) -> float:
        """Return the p99 that is expected of a model, or of all; infinite where requests would be refused."""
        models = sorted(rates)
        pool = settings.get(SERVER)
        threads = pool.num_batch_threads if isinstance(pool, ThreadPool) else self.threads
        queues = [Queue(_queue(settings.get(model)), self.costs[model].costlier(slowness)) for model in models]
        arrivals = poisson_arrivals(
            headroom * sum(rates.values()), SIMULATED, shares=[rates[model] for model in models]
        )
        sizes = np.array([self.rows.get(model, 1) for model in models])
        arrivals = Arrivals.of(arrivals.times_s, sizes[arrivals.queues], arrivals.queues)
        result = simulate(queues, threads, self.host.costlier(slowness), arrivals)
        counted = _latency_ms(result.latency_s, arrivals, None if name == SERVER else models.index(name))
        refused = float(np.isnan(counted).mean()) if len(counted) else 1.0
        if refused > self.rules.error_rate or refused == 1.0:
            return math.inf
        return float(np.nanpercentile(counted, 99))


def _latency_ms(latency_s: np.ndarray, arrivals: Arrivals, queue: int | None) -> np.ndarray:
    """Return the latencies of one queue's requests or of all, without the first tenth."""
    mine = np.ones(len(latency_s), bool) if queue is None else arrivals.queues == queue
    mine[: len(mine) // 10] = False
    return latency_s[mine] * 1000


def _name(item: tuple[str, Setting]) -> str:
    return item[0]


def _cautious(setting: Setting) -> tuple[int, int]:
    if isinstance(setting, ThreadPool):
        return 0, setting.num_batch_threads
    return (setting.batch_timeout_micros, -setting.max_batch_size) if setting else (0, 0)


def _step(value: float) -> float:
    return value if math.isinf(value) else round(math.log(value, STEP))


def _queue(setting: Setting) -> BatchQueue | None:
    return setting if isinstance(setting, BatchQueue) else None


def _ms(value: float) -> str:
    return "no end" if math.isinf(value) else milliseconds(value)
