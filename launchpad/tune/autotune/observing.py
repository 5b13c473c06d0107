"""What was seen of a model, or of all, from the first of some metrics pages to the last."""

from __future__ import annotations

import math
from collections.abc import Sequence

from launchpad.metrics import Interval, Requests, Snapshot, between
from launchpad.tune.autotune.control import Observation, comparable

CHANCE = 3.0
"""Standard deviations of a Poisson count that are taken for chance."""


def observe(pages: Sequence[Snapshot], model: str | None) -> Observation | None:
    """Return what happened to a model, or with None to all, from the first page to the last.

    None with fewer than two pages, and where the server started again in between. Raises PageCut.
    """
    if len(pages) < 2:
        return None
    interval, latest = between(pages[0], pages[-1]), between(pages[-2], pages[-1])
    if interval.restarted:
        return None
    requests = _of(interval, model)
    mean_us, queueing_us = requests.latency.mean, interval.queueing.mean
    return Observation(
        at_s=pages[-1].taken_s,
        seconds=interval.seconds,
        requests=requests.by_status.total(),
        failures=requests.failed,
        mean_ms=None if mean_us is None else mean_us / 1000,
        p50_ms=requests.latency_ms(0.5),
        p95_ms=requests.latency_ms(0.95),
        p99_ms=requests.latency_ms(0.99),
        batch_size=interval.batch_size.mean,
        queueing_ms=None if queueing_us is None else queueing_us / 1000,
        largest_request=pages[-1].largest_request,
        steady=_steady(requests, _of(latest, model)),
    )


def _of(interval: Interval, model: str | None) -> Requests:
    return interval.total if model is None else interval.of(model)


def _steady(whole: Requests, latest: Requests) -> bool:
    """Tell whether the last interval's rate is the whole window's, chance aside."""
    rate_rps, requests = whole.by_status.total() / whole.seconds, latest.by_status.total()
    expected = rate_rps * latest.seconds
    return comparable(rate_rps, requests / latest.seconds) or abs(requests - expected) <= CHANCE * math.sqrt(expected)
