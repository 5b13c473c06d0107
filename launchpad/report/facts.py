"""What a report says, gathered from a run folder and the manifests. Missing files are named, the rest is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launchpad import files, runfolder
from launchpad.gates import Gate
from launchpad.layout import Layout
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
class Facts:
    """Everything that the templates use.

    percentiles: [(percentile, latency in ms)] for each model, from the merged histograms.
    """

    summary: dict[str, Any]
    gates: list[Gate]
    seconds: list[Second] = field(default_factory=list)
    percentiles: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    configuration: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

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
    def generator(self) -> str:
        """Say what the load generator itself took part in the figures."""
        health = self.summary["generator"]
        said = [f"{health['processes']} process{'es' if health['processes'] > 1 else ''}"]
        if health["cpu"] is not None:
            said.append(f"at most {health['cpu']:.0%} of a core")
        if health["send_lag_p99_ms"] is not None:
            said.append(f"requests sent {health['send_lag_p99_ms']:.2f} ms late at p99")
        if health["held"]:
            said.append(f"{health['held']:,} requests waited for a free connection")
        said.append(f"limited the run: {health['why']}" if health["limited"] else "did not limit the run")
        return ", ".join(said) + "."

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


def gather(layout: Layout, run: str, summary: dict[str, Any]) -> Facts:
    """Read a run folder. A file that is missing or broken is named in `missing`."""
    folder = layout.results(run)
    missing: list[str] = []
    models = models_of_lines(summary)
    seconds: list[Second] = []
    percentiles: dict[str, list[tuple[float, float]]] = {}
    needed = [folder / runfolder.HISTORY, folder / runfolder.HISTOGRAMS]
    missing += [layout.relative(path) for path in needed if not path.exists()]
    if not missing:
        seconds = _seconds(folder, models)
        percentiles = _percentiles(folder, models)
    manifests = {}
    for name in dict.fromkeys(models.values()):
        path = _manifest(layout, name)
        manifest = files.read_json(path)
        if manifest is None:
            missing.append(layout.relative(path))
        else:
            manifests[name] = manifest
    config = folder / "config"
    configuration = {name: (config / name).read_text(encoding="utf-8") for name in files.tree(config) if name != "."}
    if not configuration:
        missing.append(layout.relative(config))
    gates = [Gate(**{key: value for key, value in row.items() if key != "passed"}) for row in summary["objectives"]]
    return Facts(summary, gates, seconds, percentiles, manifests, configuration, missing)


def models_of_lines(summary: dict[str, Any]) -> dict[str, str]:
    """Return {line of traffic: the model that it asks}."""
    return {traffic.line: traffic.model for traffic in map(Traffic.model_validate, summary["traffic"])}


def _manifest(layout: Layout, name: str) -> Path:
    versions = sorted(layout.evidence(name, 0).parent.glob("*"), key=lambda path: int(path.name))
    return (versions[-1] if versions else layout.evidence(name, 1)) / "manifest.json"


def _seconds(folder: Path, models: dict[str, str]) -> list[Second]:
    histograms: dict[int, Any] = {}
    for _, second, histogram in runfolder.read_histograms(folder):
        histograms.setdefault(int(second), runfolder.histogram()).add(histogram)
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in runfolder.read_history(folder):
        rows.setdefault(row["second"], []).append(row)
    found = []
    for second, lines in sorted(rows.items()):
        by_model = dict.fromkeys(models.values(), 0)
        for row in lines:
            by_model[models[row["line"]]] += row["requests"] - row["failures"]
        whole = histograms.get(second)
        p50, p95, p99 = (whole.get_value_at_percentile(p) / 1000 if whole else None for p in (50, 95, 99))
        found.append(Second(second, by_model, sum(row["failures"] for row in lines), p50, p95, p99))
    return found


def _percentiles(folder: Path, models: dict[str, str]) -> dict[str, list[tuple[float, float]]]:
    merged: dict[str, Any] = {}
    for line, _, histogram in runfolder.read_histograms(folder):
        merged.setdefault(models[line], runfolder.histogram()).add(histogram)
    return {
        name: [(p, histogram.get_value_at_percentile(p) / 1000) for p in PERCENTILES]
        for name, histogram in merged.items()
    }
