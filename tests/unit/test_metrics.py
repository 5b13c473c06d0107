"""What is read off a metrics page: always what came between two of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launchpad import metrics
from launchpad.metrics import Histogram, NoMetricsPage, PageCut, Snapshot, between, parse
from launchpad.modelserver.metrics import Metrics

PAGES = Path(__file__).parents[1] / "fixtures" / "tfserving"
EMPTY = Snapshot(0.0)


def serve(server: Metrics, model: str = "m", *latencies_us: int, status: str = "OK") -> None:
    for latency_us in latencies_us:
        server.request_count.add(model, status)
        if status == "OK":
            server.request_latency.cell(model, "predict", "REST").add(latency_us)
            server.queuing_latency.cell("batch_threads").add(latency_us / 2)


def test_the_page_of_a_real_server_is_read():
    seen = between(EMPTY, parse((PAGES / "metrics_batching.prom").read_text(), 10.0))
    digits = seen.of("digits")
    assert (digits.answered, digits.failed, digits.rate_rps) == (5021, 0, 502.1)
    assert digits.latency.mean == pytest.approx(20_750_300 / 5021)
    assert seen.batch_size.mean == pytest.approx(7556 / 1521) and seen.padding == 1731 + 804
    assert seen.queueing.mean == pytest.approx(3_859_010 / 5021)
    assert digits.latency_ms(0.5) < digits.latency_ms(0.95) < digits.latency_ms(0.99)


def test_requests_that_failed_are_told_by_their_status():
    seen = between(EMPTY, parse((PAGES / "metrics.prom").read_text(), 1.0))
    assert seen.of("probe").by_status == {"OK": 53, "INVALID_ARGUMENT": 34, "NOT_FOUND": 3, "FAILED_PRECONDITION": 1}
    assert seen.total.answered == 53 and seen.of("probe").refused == 0


def test_only_what_came_between_two_pages_counts():
    server = Metrics(batching=True)
    serve(server, "m", *[90_000] * 50)
    before = parse(server.page(), 100.0)
    serve(server, "m", *[1_000] * 8)
    serve(server, "m", 0, 0, status="UNAVAILABLE")
    serve(server, "other", 5)
    server.request_latency.cell("m", "", "REST").add(10**7)  # a status call
    seen = between(before, parse(server.page(), 104.0))
    assert (seen.of("m").answered, seen.of("m").refused, seen.of("m").rate_rps) == (8, 2, 2.0)
    assert seen.of("m").latency_ms(0.99) < 2 and seen.total.answered == 9
    assert not seen.restarted


def test_a_server_that_started_again_counts_from_nothing():
    server = Metrics(batching=True)
    serve(server, "m", *[1_000] * 50)
    before = parse(server.page(), 0.0)
    again = Metrics(batching=True)
    serve(again, "m", *[2_000] * 5)
    seen = between(before, parse(again.page(), 10.0))
    assert seen.restarted and seen.of("m").answered == 5 and seen.of("m").latency.count == 5
    idle = between(before, parse(Metrics(batching=True).page(), 10.0))
    assert idle.restarted and idle.total.answered == 0


def test_a_model_that_nobody_asked_and_a_first_page_without_requests_are_no_fault():
    seen = between(parse(Metrics(batching=False).page(), 0.0), parse(Metrics(batching=False).page(), 1.0))
    assert seen.of("m").rate_rps == 0 and seen.of("m").latency_ms(0.99) is None
    assert seen.batch_size.mean is None and not seen.restarted


@pytest.mark.parametrize("page", ["metrics.prom", "metrics_batching.prom"])
def test_a_page_cut_anywhere_is_never_half_used(page):
    text = (PAGES / page).read_text()
    whole = parse(text, 0.0)
    begin, end = text.index("\n" + metrics.SERVING), text.rindex("\n" + metrics.SERVING)
    for at in range(begin, end, 97):
        with pytest.raises((PageCut, NoMetricsPage)):
            between(whole, parse(text[:at], 1.0))


def test_a_page_cut_at_the_end_of_a_line_is_known_by_what_it_lacks():
    text = (PAGES / "metrics_batching.prom").read_text()
    whole = parse(text, 0.0)
    ends = [at for at, letter in enumerate(text) if letter == "\n" and text[at + 1 :].count("\n" + metrics.SERVING) > 1]
    first = text.index("\n" + metrics.SERVING)
    for at in [at for at in ends if at > first][::7]:
        with pytest.raises((PageCut, NoMetricsPage)):
            between(whole, parse(text[: at + 1], 1.0))


@pytest.mark.parametrize("text", ["", "<html></html>\n", "{}", "# TYPE other counter\nother 1\n"])
def test_what_is_no_metrics_page_is_said_to_be_none(text):
    with pytest.raises(NoMetricsPage):
        parse(text, 0.0)


def test_two_readings_at_the_same_time_have_no_rate():
    with pytest.raises(ValueError, match="0 s lie between"):
        between(EMPTY, EMPTY)


def test_the_mean_stays_within_its_buckets_when_the_pages_rounded_sums_do_not():
    rounded = Histogram((10.0, 20.0, float("inf")), (0, 4, 4), 0.0)  # 4 values grew a sum too large to show it
    assert rounded.mean == 10.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=60), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_lies_within_its_bucket(latencies_us, share):
    server = Metrics(batching=False)
    serve(server, "m", *latencies_us)
    found = between(EMPTY, parse(server.page(), 1.0)).of("m").latency.quantile(share)
    exact = np.quantile(latencies_us, share, method="inverted_cdf")
    assert exact / 1.81 <= found <= max(exact * 1.81, 10)
