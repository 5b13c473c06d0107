"""The summary of a run, computed from its artifacts alone: any figure can be computed again from the same files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram

from launchpad import runfolder
from launchpad.gates import Gate
from launchpad.spec import Objectives

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


def figures(histogram: HdrHistogram, requests: int, failures: int, measured_s: float) -> dict[str, Any]:
    """Return the figures of a set of requests. Latencies in ms, of answered requests; None where there are none.

    Percentiles come from the merged histogram of every request, the mean likewise (three significant digits).
    """
    answered = histogram.get_total_count()
    latencies: dict[str, float | None] = {"mean_ms": None, **{_key(p): None for p in PERCENTILES}, "max_ms": None}
    if answered:
        latencies = {
            "mean_ms": round(histogram.get_mean_value() / 1000, 3),
            **{_key(p): histogram.get_value_at_percentile(p) / 1000 for p in PERCENTILES},
            "max_ms": histogram.get_max_value() / 1000,
        }
    return {
        "requests": requests,
        "failures": failures,
        "success_rate": (requests - failures) / requests if requests else None,
        "throughput_rps": round(answered / measured_s, 1) if measured_s else 0.0,
        **latencies,
    }


def of_folder(folder: Path, models: dict[str, str], measured_s: float | None) -> dict[str, Any]:
    """Return the figures of a run folder: in all, by model, and by line of traffic.

    models: {line: its model}. measured_s: length of the run; the seconds in its history where it is not known.
    """
    history = runfolder.read_history(folder)
    seconds = measured_s or float(len({row["second"] for row in history}))
    merged = {line: runfolder.histogram() for line in models}
    for line, _, histogram in runfolder.read_histograms(folder):
        merged[line].add(histogram)
    requests = {line: sum(row["requests"] for row in history if row["line"] == line) for line in models}
    failures = {line: sum(row["failures"] for row in history if row["line"] == line) for line in models}

    def over(lines: Iterable[str]) -> dict[str, Any]:
        chosen = list(lines)
        whole = runfolder.histogram()
        for line in chosen:
            whole.add(merged[line])
        return figures(whole, sum(requests[x] for x in chosen), sum(failures[x] for x in chosen), seconds)

    return {
        "measured_s": round(seconds, 3),
        "totals": over(models),
        "models": {
            name: over(line for line in models if models[line] == name) for name in dict.fromkeys(models.values())
        },
        "lines": {line: over([line]) for line in models},
        "errors": runfolder.read_errors(folder),
    }


SEND_LAG_SHARE = 0.1
SEND_LAG_MS = 5.0
FULL_CPU = 0.95
"""A generator limits its run when it is at full CPU, or when its own send lag at p99 is both more than SEND_LAG_MS and
more than SEND_LAG_SHARE of the response time at p99."""


def generator_health(folder: Path, processes: int, cpu: dict[int, float], held: int) -> dict[str, Any]:
    """Return what the generator itself took part in the figures: {cpu, send lag, whether it limited the run, why}.

    cpu: {process: largest share of a core in any second}. held: requests that waited for a connection. Send lag is
    known in open loops only.
    """
    lag, response = runfolder.histogram(), runfolder.histogram()
    for kind, whole in ((runfolder.LAG, lag), (runfolder.RESPONSE, response)):
        for _, _, histogram in runfolder.read_histograms(folder, kind):
            whole.add(histogram)
    lag_ms = lag.get_value_at_percentile(99) / 1000 if lag.get_total_count() else None
    busiest = max(cpu.values(), default=None)
    reasons = []
    if busiest is not None and busiest >= FULL_CPU:
        reasons.append(f"a generator process took {busiest:.0%} of a core")
    if lag_ms is not None and lag_ms > max(SEND_LAG_MS, SEND_LAG_SHARE * response.get_value_at_percentile(99) / 1000):
        reasons.append(f"requests were sent {lag_ms:.1f} ms late at p99")
    return {
        "processes": processes,
        "cpu": busiest,
        "send_lag_p99_ms": lag_ms,
        "held": held,
        "limited": bool(reasons),
        "why": "; ".join(reasons),
    }


def failed_share(measured: dict[str, Any]) -> float | None:
    """Return the share of requests without a right answer, by `figures`; None where none was sent.

    Exactly what was allowed, where that many failed; 1 - success_rate can be more, by rounding.
    """
    return measured["failures"] / measured["requests"] if measured["requests"] else None


def objectives(measured: dict[str, Any], declared: Objectives) -> list[Gate]:
    """Hold the figures of a run against the declared objectives: latency and errors by model, throughput in all."""
    gates = []
    for name, model in measured["models"].items():
        if declared.p99_ms is not None:
            why = "no request was answered"
            gates.append(Gate(f"p99 of {name}", model["p99_ms"], "<=", declared.p99_ms, "ms", why))
        if declared.error_rate is not None:
            why = "no request was sent"
            gates.append(Gate(f"error rate of {name}", failed_share(model), "<=", declared.error_rate, why=why))
    if declared.throughput_rps is not None:
        rate = measured["totals"]["throughput_rps"]
        gates.append(Gate("throughput", rate, ">=", declared.throughput_rps, "requests/s"))
    return gates


def _key(percentile: float) -> str:
    return f"p{percentile:g}_ms"
