"""The charts of a report, each with what it shows in words."""

from __future__ import annotations

import math
from typing import Any

from launchpad import drawing
from launchpad.report.facts import Facts


def draw(facts: Facts) -> dict[str, tuple[str, str]]:
    """Return {name: (SVG, what it shows in words)} for the charts that the facts have data for."""
    charts = {}
    if facts.seconds:
        charts["latency"] = drawing.svg(_latency, facts, "Latency by second"), _latency_in_words(facts)
        charts["throughput"] = drawing.svg(_throughput, facts, "Answers by second"), _throughput_in_words(facts)
    if facts.percentiles:
        charts["percentiles"] = drawing.svg(_percentiles, facts, "Latency by percentile"), _percentiles_in_words(facts)
    if facts.summary["warmup"]:
        charts["warmup"] = drawing.svg(_warmup, facts, "First request against steady state"), _warmup_in_words(facts)
    return charts


def _latency(axes: Any, facts: Facts) -> None:
    seconds = [second.second for second in facts.seconds]
    for label, color in zip(("p50", "p95", "p99"), drawing.SERIES, strict=False):
        values = [getattr(second, f"{label}_ms") for second in facts.seconds]
        axes.plot(seconds, [math.nan if value is None else value for value in values], color=color, label=label)
    _objective(axes, facts)
    _seconds(axes, "ms")
    axes.set_ylim(bottom=0)


def _seconds(axes: Any, unit: str) -> None:
    axes.set(xlabel="seconds of the run", ylabel=unit)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _objective(axes: Any, facts: Facts) -> None:
    """Draw the p99 objective where it is near enough to the data to be of use."""
    limits = [gate.limit for gate in facts.gates if gate.name.startswith("p99") and gate.limit]
    highest = axes.get_ylim()[1]
    if limits and limits[0] < 3 * highest:
        axes.axhline(limits[0], color=drawing.RED, linestyle="--", linewidth=1, label="objective for p99")


def _latency_in_words(facts: Facts) -> str:
    totals = facts.summary["totals"]
    return f"Over the run p50 was {totals['p50_ms']} ms, p95 {totals['p95_ms']} ms, p99 {totals['p99_ms']} ms."


def _throughput(axes: Any, facts: Facts) -> None:
    seconds = [second.second for second in facts.seconds]
    names = list(facts.seconds[0].by_model)
    stacks = [[second.by_model[name] for second in facts.seconds] for name in names]
    axes.stackplot(seconds, *stacks, labels=names, colors=drawing.SERIES, alpha=0.75)
    failures = [second.failures for second in facts.seconds]
    if any(failures):
        axes.plot(seconds, failures, color=drawing.RED, label="failures")
    _seconds(axes, "requests/s")
    axes.set_ylim(bottom=0)


def _throughput_in_words(facts: Facts) -> str:
    totals = facts.summary["totals"]
    return f"{totals['throughput_rps']} right answers a second on average, {totals['failures']} failures in all."


def _percentiles(axes: Any, facts: Facts) -> None:
    """Draw latency over the percentile, the tail stretched: the axis is -log10(1 - percentile)."""
    ticks = [50, 90, 99, 99.9, 99.99]
    for (name, points), color in zip(facts.percentiles.items(), drawing.SERIES, strict=False):
        axes.plot([_tail(p) for p, _ in points], [value for _, value in points], color=color, label=name)
    axes.set_xticks([_tail(tick) for tick in ticks], [f"p{tick:g}" for tick in ticks])
    axes.set(xlabel="percentile", ylabel="ms")
    axes.set_ylim(bottom=0)


def _tail(percentile: float) -> float:
    return -math.log10(1 - percentile / 100)


def _percentiles_in_words(facts: Facts) -> str:
    said = [f"{name}: p99.9 {dict(points)[99.9]:g} ms" for name, points in facts.percentiles.items()]
    return "; ".join(said) + "."


def _warmup(axes: Any, facts: Facts) -> None:
    rows = [row for row in facts.summary["warmup"] if row["first_ms"] and row["steady_ms"]]
    places = range(len(rows))
    axes.barh(
        [place - 0.2 for place in places],
        [row["first_ms"] for row in rows],
        0.38,
        color=drawing.SERIES[1],
        label="first",
    )
    axes.barh(
        [place + 0.2 for place in places],
        [row["steady_ms"] for row in rows],
        0.38,
        color=drawing.SERIES[0],
        label="steady median",
    )
    axes.set_yticks(list(places), [f"{row['model']} {row['signature']} {row['protocol']}" for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="ms")


def _warmup_in_words(facts: Facts) -> str:
    known = [row for row in facts.summary["warmup"] if row["first_ms"] and row["steady_ms"]]
    cold = [row for row in known if row["met_cold_server"]]
    if not known:
        return "No first request was answered."
    worst = max(cold or known, key=lambda row: row["first_ms"])
    return (
        f"{len(cold) or 'No'} first request{'s' if len(cold) > 1 else ''} met a cold server; the slowest, "
        f"{worst['model']} {worst['signature']} over {worst['protocol']}, took {worst['first_ms']:.1f} ms against a "
        f"steady median of {worst['steady_ms']:.1f} ms."
    )
