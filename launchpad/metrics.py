"""The metrics page of TensorFlow Serving: read with Prometheus' own parser, and what happened between two readings.

Always the difference of two snapshots, never totals. A server that started again counts from nothing: what its counters
hold then is what came since. Intervals are measured on the monotonic clock, so a wall clock that jumps changes no rate.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families

SERVING = ":tensorflow:serving:"
REQUESTS = f"{SERVING}request_count"
REQUEST_LATENCY = f"{SERVING}request_latency"
RUNTIME_LATENCY = f"{SERVING}runtime_latency"
QUEUING_LATENCY = f"{SERVING}batching_session:queuing_latency"
REQUEST_SIZE = f"{SERVING}batching_session:input_batch_size"
BATCH_SIZE = f"{SERVING}batching_session:processed_batch_size"
PADDING = f"{SERVING}batching_session:padding_size"
"""TensorFlow Serving's names; latencies in µs, sizes in examples. A processed batch counts with its padding."""

REFUSED = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})
"""Statuses of requests that found a full queue or no thread."""

Labels = frozenset[tuple[str, str]]
Series = tuple[str, Labels]


class PageCut(ValueError):
    """A metrics page that ends before its end. Nothing of it is used."""


class NoMetricsPage(ValueError):
    """A text that is no metrics page of TensorFlow Serving."""


@dataclass(frozen=True)
class Histogram:
    """Counts by bucket. `counts` are cumulative: how many values lie below each of `bounds`, the last being infinite.

    The values' sum comes from the page, which gives it six significant digits.
    """

    bounds: tuple[float, ...] = (math.inf,)
    counts: tuple[int, ...] = (0,)
    sum: float = 0.0

    @property
    def count(self) -> int:
        return self.counts[-1]

    @property
    def mean(self) -> float | None:
        """The mean; None of nothing. Held to what the buckets allow: the difference of two rounded sums may not be."""
        if not self.count:
            return None
        edges = [0.0, *self.bounds]
        inside = [after - before for before, after in pairwise((0, *self.counts))]
        least = sum(low * many for low, many in zip(edges, inside, strict=False)) / self.count
        most = sum(high * many for high, many in zip(self.bounds, inside, strict=True) if many) / self.count
        return min(max(self.sum / self.count, least), most)

    def quantile(self, share: float) -> float | None:
        """Return the value below which `share` of them lie; None of nothing.

        Values lie evenly in their bucket, as histogram_quantile of Prometheus takes them; what is above the last finite
        bound counts as that bound.
        """
        if not self.count:
            return None
        wanted, low, below = share * self.count, 0.0, 0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            if count >= wanted and count > below:
                return low if math.isinf(bound) else low + (bound - low) * (wanted - below) / (count - below)
            low, below = bound, count
        return low

    def since(self, earlier: Histogram) -> Histogram:
        """Return what came after `earlier`, of the same buckets or empty."""
        if not earlier.count:
            return self
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        return Histogram(self.bounds, counts, self.sum - earlier.sum)

    def plus(self, other: Histogram) -> Histogram:
        """Return the values of both, of the same buckets unless one is empty."""
        if not (self.count and other.count):
            return self if self.count else other
        counts = tuple(one + two for one, two in zip(self.counts, other.counts, strict=True))
        return Histogram(self.bounds, counts, self.sum + other.sum)


@dataclass(frozen=True)
class Snapshot:
    """What a page said of the serving metrics. `taken_s`: when, on the monotonic clock."""

    taken_s: float
    counters: Mapping[Series, float] = field(default_factory=dict)
    histograms: Mapping[Series, Histogram] = field(default_factory=dict)

    @property
    def largest_request(self) -> int:
        """A size that no batched request since the server's start exceeded; 1 where there was none."""
        sizes = _merged(histogram for (name, _), histogram in self.histograms.items() if name == REQUEST_SIZE)
        bound = next(bound for bound, count in zip(sizes.bounds, sizes.counts, strict=True) if count == sizes.count)
        return 1 if not sizes.count else int(bound) - 1 if math.isfinite(bound) else 2**31


@dataclass(frozen=True)
class Requests:
    """The requests of a model in an interval.

    by_status: how many ended with each status, `OK` among them. latency: µs in the server, of those that ended `OK`.
    runtime: µs, of running the model, queueing for a batch included.
    """

    seconds: float
    by_status: Counter[str] = field(default_factory=Counter)
    latency: Histogram = Histogram()
    runtime: Histogram = Histogram()

    @property
    def answered(self) -> int:
        return self.by_status["OK"]

    @property
    def failed(self) -> int:
        return self.by_status.total() - self.answered

    @property
    def refused(self) -> int:
        """Requests, among the failed, that the server had no room for."""
        return sum(self.by_status[status] for status in REFUSED)

    @property
    def rate_rps(self) -> float:
        """Requests a second that were answered well."""
        return self.answered / self.seconds

    def latency_ms(self, share: float) -> float | None:
        """Return a quantile of the latency in ms; None where nothing was answered."""
        micros = self.latency.quantile(share)
        return None if micros is None else micros / 1000


@dataclass(frozen=True)
class Interval:
    """What happened between two snapshots.

    restarted: whether the server started again in between; what it did before that is not known, so rates are too low.
    models: by name, those that were asked for anything. queueing: µs that each request waited for its batch, of all
    models. batch_size: examples in each executed batch, padding included. padding: examples added to fill batches up.
    """

    seconds: float
    restarted: bool
    models: Mapping[str, Requests]
    queueing: Histogram
    batch_size: Histogram
    padding: float

    def of(self, model: str) -> Requests:
        """Return the requests of a model, none where it was not asked."""
        return self.models.get(model, Requests(self.seconds))

    @property
    def total(self) -> Requests:
        """The requests of all models."""
        many = self.models.values()
        by_status = sum((requests.by_status for requests in many), Counter[str]())
        latency, runtime = _merged(r.latency for r in many), _merged(r.runtime for r in many)
        return Requests(self.seconds, by_status, latency, runtime)


def parse(text: str, taken_s: float) -> Snapshot:
    """Return what a page says. `taken_s`: when it was read, on the monotonic clock.

    Raises PageCut for a page that ends in the middle, NoMetricsPage for what is none.
    """
    if SERVING not in text:
        raise NoMetricsPage("it is no metrics page of TensorFlow Serving")
    if not text.endswith("\n"):
        raise PageCut("the metrics page is cut off: its last line has no end")
    counters: dict[Series, float] = {}
    parts: dict[Series, dict[str, float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples if family.name.startswith(SERVING) else ():
                labels = dict(sample.labels)
                bound = labels.pop("le", None)
                series = (family.name, frozenset(labels.items()))
                if family.type == "histogram":
                    parts.setdefault(series, {})[bound or sample.name.rpartition("_")[2]] = sample.value
                elif family.type == "counter":
                    counters[series] = sample.value
    except ValueError as error:
        raise NoMetricsPage(f"the metrics page cannot be read: {error}") from None
    return Snapshot(taken_s, counters, {series: _histogram(series, values) for series, values in parts.items()})


def _histogram(series: Series, values: dict[str, float]) -> Histogram:
    """Return a histogram from its lines: buckets by bound, then the sum and the count. Raises PageCut if one lacks."""
    if not {"+Inf", "sum", "count"} <= values.keys():
        raise PageCut(f"the metrics page is cut off in the middle of {series[0]}")
    total = values.pop("sum")
    values.pop("count")
    buckets = sorted((float(bound), int(count)) for bound, count in values.items())
    return Histogram(tuple(bound for bound, _ in buckets), tuple(count for _, count in buckets), total)


def between(before: Snapshot, after: Snapshot) -> Interval:
    """Return what happened between two snapshots of a server, the counters' resets accounted for.

    Raises PageCut where the later page lacks what the earlier had though the server did not start again, ValueError if
    no time lies between the two.
    """
    seconds = after.taken_s - before.taken_s
    if seconds <= 0:
        raise ValueError(f"{seconds:g} s lie between the snapshots")
    restarted = _restarted(before, after)
    base = Snapshot(before.taken_s) if restarted else before
    models: dict[str, Requests] = {}

    def of(labels: Labels) -> Requests:
        return models.setdefault(dict(labels).get("model_name", ""), Requests(seconds))

    for (name, labels), value in after.counters.items():
        grown = int(value - base.counters.get((name, labels), 0))
        if name == REQUESTS and grown:
            of(labels).by_status[dict(labels)["status"]] += grown
    latency = _by_model(REQUEST_LATENCY, base, after)
    runtime = _by_model(RUNTIME_LATENCY, base, after)
    models = {
        name: Requests(seconds, requests.by_status, latency.get(name, Histogram()), runtime.get(name, Histogram()))
        for name, requests in models.items()
    }
    queueing, batch_size, padding = (
        _merged(grown for _, grown in _grown(name, base, after)) for name in (QUEUING_LATENCY, BATCH_SIZE, PADDING)
    )
    return Interval(seconds, restarted, models, queueing, batch_size, padding.sum)


def _restarted(before: Snapshot, after: Snapshot) -> bool:
    """Tell whether the server started again in between. Raises PageCut if it did not and the later page lacks some."""
    then, now = _counts(before), _counts(after)
    lacking = [series for series, value in then.items() if value and series not in now]
    if any(now[series] < value for series, value in then.items() if series in now):
        return True
    if lacking and any(value and series in now for series, value in then.items()):
        raise PageCut(f"the metrics page is cut off: {lacking[0][0]} is missing")
    return bool(lacking)


def _counts(snapshot: Snapshot) -> dict[Series, float]:
    return {**snapshot.counters, **{series: histogram.count for series, histogram in snapshot.histograms.items()}}


def _by_model(name: str, before: Snapshot, after: Snapshot) -> dict[str, Histogram]:
    """Return a latency by model, over its other labels; calls without an API, such as for status, left out."""
    found: dict[str, Histogram] = {}
    for labels, grown in _grown(name, before, after):
        if labels.get("API"):
            model = labels.get("model_name", "")
            found[model] = found.get(model, Histogram()).plus(grown)
    return found


def _grown(name: str, before: Snapshot, after: Snapshot) -> list[tuple[dict[str, str], Histogram]]:
    return [
        (dict(labels), histogram.since(before.histograms.get((metric, labels), Histogram())))
        for (metric, labels), histogram in after.histograms.items()
        if metric == name
    ]


def _merged(histograms: Iterable[Histogram]) -> Histogram:
    return reduce(Histogram.plus, histograms, Histogram())
