"""What the metrics page says of each model over a window: always the difference of two pages, never the totals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from launchpad.tune.autotune.control import Observation, comparable

SERVING = ":tensorflow:serving:"
BATCHING = f"{SERVING}batching_session:"
CHANCE = 3.0
"""Standard deviations of a Poisson count that are taken for chance."""


@dataclass(frozen=True)
class Sums:
    """A histogram's sum and count."""

    total: float = 0.0
    count: float = 0.0

    def since(self, earlier: Sums) -> float | None:
        """Return the mean of what came since; None if nothing did."""
        count = self.count - earlier.count
        return (self.total - earlier.total) / count if count > 0 else None


@dataclass(frozen=True)
class Page:
    """A metrics page, as far as it is needed.

    at_s: when it was read. requests: by model and whether they were answered well. latency: by model, cumulative
    counts by upper bound in µs. largest_request: no batched request since the server's start had more examples.
    """

    at_s: float
    requests: Counter[tuple[str, bool]] = field(default_factory=Counter)
    latency: dict[str, Counter[float]] = field(default_factory=dict)
    latency_sums: dict[str, Sums] = field(default_factory=dict)
    batch_size: Sums = Sums()
    queueing: Sums = Sums()
    largest_request: int = 1


def read(text: str, at_s: float) -> Page:
    """Return what a page says. Raises ValueError for a page that is not whole, or none."""
    page = Page(at_s)
    sums: Counter[tuple[str, str, str]] = Counter()
    sizes: Counter[float] = Counter()
    for sample in _samples(text):
        labels = sample.labels
        name = sample.name
        if name == f"{SERVING}request_count_total":  # the parser adds `_total` to the name of a counter
            page.requests[labels["model_name"], labels["status"] == "OK"] += int(sample.value)
        elif name == f"{SERVING}request_latency_bucket" and labels["API"]:
            page.latency.setdefault(labels["model_name"], Counter())[float(labels["le"])] += int(sample.value)
        elif name == f"{BATCHING}input_batch_size_bucket":
            sizes[float(labels["le"])] += int(sample.value)
        elif name.endswith(("_sum", "_count")) and labels.get("API", "all"):
            metric, _, part = name.rpartition("_")
            sums[metric, labels.get("model_name", ""), part] += sample.value  # type: ignore[assignment]
    if not page.requests and not sums and SERVING not in text:
        raise ValueError("it is no metrics page of TensorFlow Serving")

    def of(metric: str, model: str = "") -> Sums:
        return Sums(sums[metric, model, "sum"], sums[metric, model, "count"])

    return Page(
        at_s,
        page.requests,
        page.latency,
        {model: of(f"{SERVING}request_latency", model) for model in page.latency},
        of(f"{BATCHING}processed_batch_size"),
        of(f"{BATCHING}queuing_latency"),
        _largest(sizes),
    )


def _samples(text: str) -> Iterator[Sample]:
    if not text.endswith("\n"):
        raise ValueError("the page is cut off")
    for family in text_string_to_metric_families(text):
        yield from family.samples


def _largest(sizes: Counter[float]) -> int:
    """Return a size that no counted value exceeds, from cumulative counts; a bucket's bound is not in the bucket."""
    total = max(sizes.values(), default=0)
    bound = min((bound for bound, count in sizes.items() if count == total), default=2.0)
    return 1 if not total else int(bound) - 1 if math.isfinite(bound) else 2**31


def observe(pages: Sequence[Page], models: Collection[str]) -> Observation | None:
    """Return what happened to models together from the first page to the last.

    None with fewer than two pages, and where counters fell back: the server was another.
    """
    if len(pages) < 2:
        return None
    before, after = pages[0], pages[-1]
    seconds = after.at_s - before.at_s
    good, bad = (_count(after, models, kind) - _count(before, models, kind) for kind in (True, False))
    if seconds <= 0 or good < 0 or bad < 0 or after.batch_size.count < before.batch_size.count:
        return None
    bounds = sorted({bound for model in models for bound in after.latency.get(model, ())})
    counts = {bound: _below(after, models, bound) - _below(before, models, bound) for bound in bounds}
    mean_us = _latency(after, models).since(_latency(before, models))
    queueing_us = after.queueing.since(before.queueing)
    return Observation(
        at_s=after.at_s,
        seconds=seconds,
        requests=good + bad,
        failures=bad,
        mean_ms=mean_us / 1000 if mean_us is not None else None,
        p50_ms=quantile_ms(counts, 0.5),
        p95_ms=quantile_ms(counts, 0.95),
        p99_ms=quantile_ms(counts, 0.99),
        batch_size=after.batch_size.since(before.batch_size),
        queueing_ms=queueing_us / 1000 if queueing_us is not None else None,
        largest_request=after.largest_request,
        steady=_steady((good + bad) / seconds, pages[-2], after, models),
    )


def _count(page: Page, models: Collection[str], well: bool) -> int:
    return sum(page.requests[model, well] for model in models)


def _below(page: Page, models: Collection[str], bound: float) -> int:
    return sum(page.latency[model][bound] for model in models if model in page.latency)


def _latency(page: Page, models: Collection[str]) -> Sums:
    known = [page.latency_sums.get(model, Sums()) for model in models]
    return Sums(sum(sums.total for sums in known), sum(sums.count for sums in known))


def _steady(rate_rps: float, before: Page, after: Page, models: Collection[str]) -> bool:
    """Tell whether the last interval's rate is the whole window's, chance aside."""
    seconds = after.at_s - before.at_s
    requests = sum(_count(after, models, kind) - _count(before, models, kind) for kind in (True, False))
    expected = rate_rps * seconds
    return comparable(rate_rps, requests / seconds) or abs(requests - expected) <= CHANCE * math.sqrt(expected)


def quantile_ms(cumulative: dict[float, int], share: float) -> float | None:
    """Return a quantile in ms from cumulative counts by upper bound in µs; None where there are none.

    Within a bucket the values are taken to lie evenly, as Prometheus' histogram_quantile takes them; what lies beyond
    the last bound counts as that bound.
    """
    total = max(cumulative.values(), default=0)
    if not total:
        return None
    wanted, low, below = share * total, 0.0, 0
    for bound, count in sorted(cumulative.items()):
        if count >= wanted:
            if math.isinf(bound):
                return low / 1000
            return (low + (bound - low) * (wanted - below) / max(1, count - below)) / 1000
        low, below = bound, count
    return low / 1000
