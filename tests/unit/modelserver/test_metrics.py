"""The metrics page, as Prometheus' own parser reads it."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from launchpad.modelserver.metrics import Counter, Histogram, Metrics, exponential

FIXTURES = Path(__file__).parents[2] / "fixtures" / "tfserving"


def test_a_histogram_counts_what_lies_below_each_bound() -> None:
    histogram = Histogram("/a/b", "label", bounds=[1, 10])
    for value in (0, 1, 5, 10, 11):
        histogram.cell("x").add(value)
    assert histogram.lines() == [
        ':a:b_bucket{label="x",le="1"} 1',
        ':a:b_bucket{label="x",le="10"} 3',
        ':a:b_bucket{label="x",le="+Inf"} 5',
        ':a:b_sum{label="x"} 27',
        ':a:b_count{label="x"} 5',
    ]


def test_labels_may_hold_anything() -> None:
    counter = Counter("/a", "label")
    odd = 'a "b", \\c\n{d}'
    counter.add(odd)
    (family,) = text_string_to_metric_families("# TYPE :a counter\n" + "\n".join(counter.lines()) + "\n")
    assert [sample.labels for sample in family.samples] == [{"label": odd}]


def test_batch_metrics_have_the_buckets_of_the_real_page() -> None:
    metrics = Metrics(batching=True)
    metrics.input_batch_size.cell().add(1)
    metrics.processed_batch_size.cell().add(4)
    metrics.padding_size.cell("4").add(1)
    metrics.padding_size.cell("8").add(1)
    metrics.queuing_latency.cell("").add(50)
    ours = _buckets(metrics.page())
    theirs = _buckets((FIXTURES / "metrics_batching.prom").read_text())
    for name in ("input_batch_size", "processed_batch_size", "padding_size", "queuing_latency"):
        assert (
            ours[f":tensorflow:serving:batching_session:{name}"]
            == theirs[f":tensorflow:serving:batching_session:{name}"]
        )


def _buckets(page: str) -> dict[str, list[dict[str, str]]]:
    return {
        family.name: [sample.labels for sample in family.samples]
        for family in text_string_to_metric_families(page)
        if family.type == "histogram"
    }


def test_batch_metrics_are_unknown_without_batching() -> None:
    assert "input_batch_size" not in Metrics(batching=False).page()
    assert "# TYPE :tensorflow:serving:batching_session:queuing_latency histogram" in Metrics(batching=False).page()


def test_buckets_grow_exponentially() -> None:
    assert exponential(100, 2, 4) == [100, 200, 400, 800]


def test_every_serving_metric_of_the_real_page_has_its_type() -> None:
    types = [
        {line for line in text.splitlines() if line.startswith("# TYPE :tensorflow:serving:")}
        for text in ((FIXTURES / "metrics_batching.prom").read_text(), Metrics(batching=True).page())
    ]
    assert types[0] == types[1]
