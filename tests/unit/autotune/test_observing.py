"""What is read off a metrics page: differences, as TensorFlow Serving's own pages have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchpad.metrics import Snapshot, parse
from launchpad.modelserver.metrics import Metrics
from launchpad.tune.autotune.observing import observe

REAL = Path(__file__).parents[2] / "fixtures" / "tfserving" / "metrics_batching.prom"


def page(fill, at_s: float = 0.0, metrics: Metrics | None = None) -> Snapshot:
    metrics = metrics or Metrics(batching=True)
    fill(metrics)
    return parse(metrics.page(), at_s)


def test_a_page_of_a_real_server_is_read():
    seen = observe([Snapshot(0.0), parse(REAL.read_text(), 10.0)], "digits")
    assert (seen.requests, seen.failures, seen.rate_rps) == (5021, 0, 502.1)
    assert seen.batch_size == pytest.approx(7556 / 1521)
    assert seen.queueing_ms == pytest.approx(3859.01 / 5021, rel=1e-3)
    assert seen.mean_ms == pytest.approx(20750.3 / 5021, rel=1e-3)
    assert seen.largest_request == 1
    assert seen.p50_ms < seen.p95_ms < seen.p99_ms


def test_only_what_came_between_two_pages_counts():
    metrics = Metrics(batching=True)

    def slow(metrics: Metrics) -> None:
        for _ in range(50):
            metrics.request_count.add("m", "OK")
            metrics.request_latency.cell("m", "predict", "REST").add(90_000)

    def fast(metrics: Metrics) -> None:
        metrics.request_count.add("m", "UNAVAILABLE", amount=2)
        metrics.request_count.add("other", "OK", amount=99)
        for _ in range(8):
            metrics.request_count.add("m", "OK")
            metrics.request_latency.cell("m", "Predict", "GRPC").add(1_000)
            metrics.request_latency.cell("m", "", "REST").add(10**7)  # a status call

    before = page(slow, 0.0, metrics)
    seen = observe([before, page(fast, 4.0, metrics)], "m")
    assert (seen.requests, seen.failures, seen.rate_rps, seen.error_rate) == (10, 2, 2.5, 0.2)
    assert seen.mean_ms == 1.0 and seen.p99_ms < 2
    assert seen.batch_size is None and seen.queueing_ms is None


def test_a_server_that_started_again_is_not_mistaken_for_one_that_went_backwards():
    def some(metrics: Metrics) -> None:
        metrics.request_count.add("m", "OK", amount=5)

    assert observe([page(some, 0.0), page(lambda metrics: None, 5.0)], "m") is None


@pytest.mark.parametrize(("counts", "steady"), [((100, 100, 120), True), ((100, 100, 200), False), ((3, 4, 6), True)])
def test_a_load_that_changes_at_the_end_of_the_window_is_not_steady(counts, steady):
    metrics = Metrics(batching=True)
    pages = [page(lambda metrics: None, 0.0, metrics)]
    for number, count in enumerate(counts, 1):
        pages.append(page(lambda metrics: metrics.request_count.add("m", "OK", amount=count), number, metrics))  # noqa: B023
    assert observe(pages, "m").steady is steady


def test_models_are_seen_together_for_what_they_share():
    def some(metrics: Metrics) -> None:
        for model, count in (("m", 5), ("n", 7)):
            metrics.request_count.add(model, "OK", amount=count)
            metrics.request_latency.cell(model, "predict", "REST").add(1000)

    seen = observe([Snapshot(0.0), page(some, 1.0)], None)
    assert seen.requests == 12 and seen.mean_ms == 1.0
