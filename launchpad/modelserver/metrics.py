"""TensorFlow Serving's metrics: counted here, shown on its Prometheus page.

Names, labels, units and buckets are those of the original, including its habits: a metric without a value still
has its TYPE line, and a histogram's bucket counts the values below its bound (not those equal to it).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

Labels = tuple[str, ...]


def exponential(scale: float, growth: float, count: int) -> list[float]:
    """The upper bounds of `count` buckets, each `growth` times the one before; one without bound follows."""
    bounds = [scale]
    while len(bounds) < count:
        bounds.append(bounds[-1] * growth)
    return bounds


class Counter:
    """A number for each combination of label values that only grows."""

    kind = "counter"

    def __init__(self, name: str, *label_names: str) -> None:
        self.name = re.sub("[^a-zA-Z0-9_]", ":", name)
        self.label_names = label_names
        self._cells: dict[Labels, int] = {}

    def add(self, *labels: str, amount: int = 1) -> None:
        """Add `amount` to the cell of these label values."""
        self._cells[labels] = self._cells.get(labels, 0) + amount

    def value(self, *labels: str) -> int:
        """The cell's number, 0 where nothing was ever added."""
        return self._cells.get(labels, 0)

    def lines(self) -> list[str]:
        """The metric in Prometheus' text format."""
        return [
            f"{self.name}{{{_label_text(self.label_names, labels)}}} {value}"
            for labels, value in sorted(self._cells.items())
        ]


class Gauge(Counter):
    """A number of now."""

    kind = "gauge"


class Distribution:
    """The distribution of one series of values over a histogram's buckets."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: list[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_right(self._bounds, value)] += 1
        self.total += value


class Histogram:
    """A distribution for each combination of label values."""

    kind = "histogram"

    def __init__(self, name: str, *label_names: str, bounds: list[float]) -> None:
        self.name = re.sub("[^a-zA-Z0-9_]", ":", name)
        self.label_names = label_names
        self._bounds = bounds
        self._cells: dict[Labels, Distribution] = {}

    def cell(self, *labels: str) -> Distribution:
        """The distribution for these label values."""
        found = self._cells.get(labels)
        if found is None:
            found = self._cells[labels] = Distribution(self._bounds)
        return found

    def lines(self) -> list[str]:
        """The metric in Prometheus' text format: cumulative buckets, sum and count."""
        bounds = [f"{bound:.6g}" for bound in self._bounds] + ["+Inf"]
        result = []
        for labels, distribution in sorted(self._cells.items(), key=lambda cell: cell[0]):
            text = _label_text(self.label_names, labels)
            comma = "," if text else ""
            cumulative = 0
            for bound, count in zip(bounds, distribution.counts, strict=True):
                cumulative += count
                result.append(f'{self.name}_bucket{{{text}{comma}le="{bound}"}} {cumulative}')
            result.append(f"{self.name}_sum{{{text}}} {distribution.total:.6g}")
            result.append(f"{self.name}_count{{{text}}} {cumulative}")
        return result


def _label_text(names: Sequence[str], values: Labels) -> str:
    escaped = [value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for value in values]
    return ",".join([f'{name}="{value}"' for name, value in zip(names, escaped, strict=True)])


_LATENCY_MICROS = exponential(10, 1.8, 33)
_BATCH_SIZES = exponential(1, 2, 14)


class Metrics:
    """Everything that the server counts."""

    def __init__(self, *, batching: bool) -> None:
        """`batching`: whether the batch-size metrics exist; the original knows them only once it batches."""
        self.request_count = Counter("/tensorflow/serving/request_count", "model_name", "status")
        self.request_latency = Histogram(
            "/tensorflow/serving/request_latency", "model_name", "API", "entrypoint", bounds=_LATENCY_MICROS
        )
        self.runtime_latency = Histogram(
            "/tensorflow/serving/runtime_latency", "model_name", "API", "runtime", bounds=_LATENCY_MICROS
        )
        self.example_counts = Histogram(
            "/tensorflow/serving/request_example_counts", "model", bounds=exponential(1, 2, 15)
        )
        self.example_count_total = Counter("/tensorflow/serving/request_example_count_total", "model")
        self.warmup_latency = Histogram(
            "/tensorflow/serving/model_warmup_latency", "model_path", "status", bounds=_LATENCY_MICROS
        )
        self.queuing_latency = Histogram(
            "/tensorflow/serving/batching_session/queuing_latency",
            "thread_pool_name",
            bounds=exponential(100, 1.2, 52),
        )
        self.wrapped_run_count = Counter("/tensorflow/serving/batching_session/wrapped_run_count")
        self.input_batch_size = Histogram("/tensorflow/serving/batching_session/input_batch_size", bounds=_BATCH_SIZES)
        self.processed_batch_size = Histogram(
            "/tensorflow/serving/batching_session/processed_batch_size", bounds=_BATCH_SIZES
        )
        self.padding_size = Histogram(
            "/tensorflow/serving/batching_session/padding_size", "execution_batch_size", bounds=_BATCH_SIZES
        )
        self.request_log_count = Counter("/tensorflow/serving/request_log_count", "model_name", "status")
        self.mlmd_map = Gauge("/tensorflow/serving/mlmd_map", "model_name", "version", "mlmd_uuid")
        self.load_attempt_count = Counter("/tensorflow/cc/saved_model/load_attempt_count", "model_path", "status")
        self.load_latency = Counter("/tensorflow/cc/saved_model/load_latency", "model_path")
        lazy = {self.input_batch_size, self.processed_batch_size, self.padding_size}
        self._page = sorted(
            (
                metric
                for metric in vars(self).values()
                if isinstance(metric, Counter | Histogram) and (batching or metric not in lazy)
            ),
            key=lambda metric: metric.name,
        )

    def page(self) -> str:
        """The metrics page."""
        lines = []
        for metric in self._page:
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            lines += metric.lines()
        return "\n".join(lines) + "\n"
