"""What the metrics page says of each model over a window: always the difference of two pages, never the totals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from launchpad.tune.autotune.control import Observation

SERVING = ":tensorflow:serving:"
BATCHING = f"{SERVING}batching_session:"


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


def observe(model: str, before: Page, after: Page) -> Observation | None:
    """Return what happened to a model between two pages; None where counters fell back: the server was another."""
    seconds = after.at_s - before.at_s
    good, bad = (after.requests[model, kind] - before.requests[model, kind] for kind in (True, False))
    if seconds <= 0 or good < 0 or bad < 0 or after.batch_size.count < before.batch_size.count:
        return None
    earlier = before.latency.get(model, Counter[float]())
    counts = {bound: count - earlier[bound] for bound, count in sorted(after.latency.get(model, Counter()).items())}
    mean_us = after.latency_sums.get(model, Sums()).since(before.latency_sums.get(model, Sums()))
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
    )


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
