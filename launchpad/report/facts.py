"""What a report says, gathered from a run folder and the manifests. Missing files are named, the rest is shown."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launchpad import files, notes, runfolder
from launchpad.compare import Difference, differences, unlike
from launchpad.gates import Gate
from launchpad.layout import Layout, numbered
from launchpad.spec import Traffic


@dataclass(frozen=True)
class Second:
    """One second of a run, over all lines of traffic; latencies in ms, None where nothing was answered."""

    second: float
    by_model: dict[str, int]
    failures: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class Change:
    """A change of configuration in the middle of the run; second: of the run."""

    second: float
    title: str


@dataclass(frozen=True)
class Comparison:
    """The run beside an earlier one. `caution`: how the two differ beside what is compared; empty when they do not.

    why: why there is nothing to compare with; empty when there is.
    """

    title: str
    run: str
    rows: list[Difference] = field(default_factory=list)
    throughput: str = ""
    caution: str = ""
    why: str = ""

    @property
    def words(self) -> str:
        """What has changed, in a sentence."""
        if self.why:
            return self.why
        moved = [row for row in self.rows if row.verdict != "noise"]
        if not moved:
            return f"Against {self.run} no percentile moved by more than noise."
        said = [f"p{row.percentile:g} of {row.scope} is {row.verdict}" for row in moved]
        return f"Against {self.run}: {', '.join(said)}; the rest is noise."


@dataclass(frozen=True)
class Facts:
    """Everything that the templates use.

    percentiles: [(percentile, latency in ms)] for each model, from the merged histograms.
    server: what the server said of itself, as `server.json` has it; empty where it said nothing.
    """

    summary: dict[str, Any]
    gates: list[Gate]
    seconds: list[Second] = field(default_factory=list)
    percentiles: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    configuration: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    server: dict[str, Any] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    def lines_of(self, model: str) -> list[str]:
        """Return the lines of traffic that ask a model."""
        return [line for line, asked in models_of_lines(self.summary).items() if asked == model]

    @property
    def loop(self) -> str:
        """Say what latency counts from, and what that is worth."""
        if self.summary["profile"]["loop"] == "open":
            return "A request's latency counts from the time that it was due, whenever it was sent."
        return (
            "A request's latency counts from its sending. A closed loop slows down with its server, so its tail is no "
            "promise for traffic that does not."
        )

    @property
    def health(self) -> list[tuple[str, str, str]]:
        """Return what the load generator itself took part in the figures: (what, value, what that means)."""
        health = self.summary["generator"]
        rows = [("processes", f"{health['processes']}", "that sent requests")]
        if health["cpu"] is not None:
            rows.append(("processor", f"{health['cpu']:.0%} of a core", "the busiest process in its busiest second"))
        if health["send_lag_p99_ms"] is not None:
            lag = f"{health['send_lag_p99_ms']:.2f} ms"
            rows.append(("send lag, p99", lag, "from when a request was due to when it was sent; counts as latency"))
        rows.append(("held requests", f"{health['held']:,}", "waited for a free connection of the generator"))
        limited = f"yes: {health['why']}" if health["limited"] else "no"
        rows.append(("limited the run", limited, "whether the figures are of the generator as much as of the server"))
        return rows

    @property
    def spent(self) -> list[tuple[str, float]]:
        """Return where the mean time of a request went: [(part, ms)]. Empty where the server did not say."""
        mean, runtime = self.server.get("latency_mean_ms"), self.server.get("runtime_mean_ms")
        if not (mean and runtime and self.server.get("answered")):
            return []
        queued = (self.server.get("queueing_mean_ms") or 0.0) * self.server["queued"] / self.server["answered"]
        parts = [("queueing", queued), ("compute", runtime - queued), ("decoding and encoding", mean - runtime)]
        outside = (self.summary["totals"].get("mean_ms") or 0.0) - mean
        return [(name, max(value, 0.0)) for name, value in [*parts, ("sockets, network, client", outside)]]

    @property
    def verdict(self) -> tuple[str, str]:
        """Return (`passed`, `failed` or `unjudged`, a sentence)."""
        if self.summary["status"] != "completed":
            return "failed", f"The run {self.summary['status']}: {self.summary['why']}."
        failed = [gate for gate in self.gates if gate.passed is not True]
        if failed:
            missed = ", ".join(f"{gate.name} ({gate.measured}, must be {gate.required})" for gate in failed)
            return "failed", f"{len(failed)} of {len(self.gates)} objectives missed: {missed}."
        if not self.gates:
            return "unjudged", "No objective is declared."
        return "passed", f"All {len(self.gates)} objectives hold."


PERCENTILES = [*range(1, 100), 99.5, 99.9, 99.95, 99.99]


def gather(layout: Layout, run: str, summary: dict[str, Any], baseline: str = "") -> Facts:
    """Read a run folder. A file that is missing or broken is named in `missing`, and the rest is read.

    baseline: a run to compare with, beside the one before.
    """
    folder = layout.results(run)
    missing: list[str] = []
    models = models_of_lines(summary)
    seconds, percentiles = _measured(layout, folder, models, missing)
    server = files.read_json(folder / runfolder.SERVER)
    if not isinstance(server, dict):
        missing.append(layout.relative(folder / runfolder.SERVER))
        server = {}
    manifests = {}
    for name in dict.fromkeys(models.values()):
        path = _manifest(layout, name)
        manifest = files.read_mapping(path)
        if not manifest:
            missing.append(layout.relative(path))
        else:
            manifests[name] = manifest
    config = folder / "config"
    configuration = {name: (config / name).read_text(encoding="utf-8") for name in files.tree(config) if name != "."}
    if not configuration:
        missing.append(layout.relative(config))
    gates = [Gate(**{key: value for key, value in row.items() if key != "passed"}) for row in summary["objectives"]]
    return Facts(
        summary=summary,
        gates=gates,
        seconds=seconds,
        percentiles=percentiles,
        manifests=manifests,
        configuration=configuration,
        missing=missing,
        server=server,
        changes=_changes(layout, summary, server),
        comparisons=_comparisons(layout, summary, baseline),
    )


def models_of_lines(summary: dict[str, Any]) -> dict[str, str]:
    """Return {line of traffic: the model that it asks}."""
    return {traffic.line: traffic.model for traffic in map(Traffic.model_validate, summary["traffic"])}


def _manifest(layout: Layout, name: str) -> Path:
    versions = numbered(layout.evidence(name, 0).parent)
    return (versions[-1] if versions else layout.evidence(name, 1)) / "manifest.json"


def _measured(
    layout: Layout, folder: Path, models: dict[str, str], missing: list[str]
) -> tuple[list[Second], dict[str, list[tuple[float, float]]]]:
    """Return what the history and the histograms say; a file that cannot be read is named and left out."""
    merged: dict[str, Any] = {}
    by_second: dict[int, Any] = {}
    rows: dict[int, list[dict[str, Any]]] = {}
    try:
        for line, second, histogram in runfolder.read_histograms(folder):
            by_second.setdefault(int(second), runfolder.histogram()).add(histogram)
            merged.setdefault(models[line], runfolder.histogram()).add(histogram)
    except (OSError, ValueError, KeyError):
        missing.append(layout.relative(folder / runfolder.HISTOGRAMS))
    try:
        for row in runfolder.read_history(folder):
            rows.setdefault(row["second"], []).append(row)
    except (OSError, ValueError, KeyError):
        missing.append(layout.relative(folder / runfolder.HISTORY))
    seconds = [_second(second, rows[second], by_second.get(second), models) for second in sorted(rows)]
    return seconds, {name: _curve(histogram) for name, histogram in merged.items()}


def _second(second: int, rows: list[dict[str, Any]], whole: Any, models: dict[str, str]) -> Second:
    by_model = dict.fromkeys(models.values(), 0)
    for row in rows:
        by_model[models[row["line"]]] += row["requests"] - row["failures"]
    p50, p95, p99 = (whole.get_value_at_percentile(p) / 1000 if whole else None for p in (50, 95, 99))
    return Second(second, by_model, sum(row["failures"] for row in rows), p50, p95, p99)


def _curve(histogram: Any) -> list[tuple[float, float]]:
    """Return the percentiles that so many requests can tell: at least one lies above each."""
    known = [p for p in PERCENTILES if histogram.get_total_count() * (100 - p) >= 100]
    return [(p, histogram.get_value_at_percentile(p) / 1000) for p in known]


def _changes(layout: Layout, summary: dict[str, Any], server: dict[str, Any]) -> list[Change]:
    """Return the changes of configuration that were noted while the run went on; not those that it began with."""
    began = datetime.datetime.fromisoformat(server.get("began") or summary["started"])
    found = []
    for note in notes.read_all(layout):
        second = (note.at - began).total_seconds()
        if note.what and note.run_after != summary["run"] and 0 <= second <= summary["measured_s"]:
            found.append(Change(second, note.title))
    return found


def _comparisons(layout: Layout, summary: dict[str, Any], baseline: str) -> list[Comparison]:
    """Return the run beside the one before it, and beside the baseline where one is named."""
    earlier = _previous(layout, summary)
    none = f"No earlier run of profile {summary['profile']['name']} is here."
    found = [
        _comparison(layout, "the run before", earlier, summary)
        if earlier
        else Comparison("the run before", "", why=none)
    ]
    if baseline and baseline != summary["run"]:
        found.append(_comparison(layout, "the baseline", baseline, summary))
    return found


def _previous(layout: Layout, summary: dict[str, Any]) -> str:
    """Return the newest earlier run under the same load that completed; empty if there is none."""
    folders = sorted(layout.results("x").parent.glob(f"*/{runfolder.SUMMARY}"), reverse=True)
    for path in folders:
        if path.parent.name < summary["run"]:
            other = files.read_json(path)
            if (
                isinstance(other, dict)
                and other.get("status") == "completed"
                and other.get("profile")
                and unlike(other, summary, ("profile", "traffic")) == ""
            ):
                return path.parent.name
    return ""


def _comparison(layout: Layout, title: str, run: str, summary: dict[str, Any]) -> Comparison:
    other = files.read_mapping(layout.results(run) / runfolder.SUMMARY)
    if not other:
        return Comparison(title, run, why=f"Run {run} is not here: nothing to compare with.")
    try:
        rows = differences(layout, {run: other, summary["run"]: summary})
        caution = unlike(other, summary, ("profile", "traffic", "machine", "backend"))
        was, now = other["totals"]["throughput_rps"], summary["totals"]["throughput_rps"]
    except (OSError, ValueError, KeyError) as error:
        return Comparison(title, run, why=f"Run {run} cannot be compared with: {error}.")
    if not rows:
        return Comparison(title, run, why=f"Run {run} has no answers of the same model.")
    return Comparison(title, run, rows, f"{was:,.0f} → {now:,.0f} requests/s", caution)
