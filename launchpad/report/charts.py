"""The charts of a report, each with what it shows in words."""

from __future__ import annotations

import math
from typing import Any

from launchpad import drawing
from launchpad.report.facts import Facts


def draw(facts: Facts) -> dict[str, tuple[str, str]]:
    """Return {name: (SVG, what it shows in words)} for the charts that the facts have data for."""
    charts = {}
    if any(second.p50_ms is not None for second in facts.seconds):
        charts["latency"] = drawing.svg(_latency, facts, "Latency by second"), _latency_in_words(facts)
    if facts.seconds:
        charts["throughput"] = drawing.svg(_throughput, facts, "Answers by second"), _throughput_in_words(facts)
    if facts.percentiles:
        charts["percentiles"] = drawing.svg(_percentiles, facts, "Latency by percentile"), _percentiles_in_words(facts)
    if facts.spent:
        charts["spent"] = drawing.svg(_spent, facts, "Where a request's time goes"), _spent_in_words(facts)
    if sum(facts.server.get("batches", {}).get("counts", ())):
        charts["batches"] = drawing.svg(_batches, facts, "Batches by size"), _batches_in_words(facts)
    if any(row[1] is not None for row in facts.server.get("use", ())):
        charts["cpu"] = drawing.svg(_cpu, facts, "Processor time of the server"), _cpu_in_words(facts)
        charts["memory"] = drawing.svg(_memory, facts, "Memory of the server"), _memory_in_words(facts)
    if any(row[3] is not None for row in facts.server.get("use", ())):
        charts["gpu"] = drawing.svg(_gpu, facts, "Busiest GPU"), _gpu_in_words(facts)
    if facts.summary["warmup"]:
        charts["warmup"] = drawing.svg(_warmup, facts, "First request against steady state"), _warmup_in_words(facts)
    return charts


def _latency(axes: Any, facts: Facts) -> None:
    seconds = [second.second for second in facts.seconds]
    for label, color in zip(("p50", "p95", "p99"), drawing.SERIES, strict=False):
        values = [getattr(second, f"{label}_ms") for second in facts.seconds]
        axes.plot(seconds, [math.nan if value is None else value for value in values], color=color, label=label)
    _objective(axes, facts)
    _changes(axes, facts)
    _seconds(axes, "ms")
    axes.set_ylim(bottom=0)


def _changes(axes: Any, facts: Facts) -> None:
    """Mark where the configuration changed."""
    for number, change in enumerate(facts.changes):
        label = "configuration changed" if number == 0 else None
        axes.axvline(change.second, color=drawing.SERIES[3], linestyle=":", linewidth=1.5, label=label)


def _changed(facts: Facts) -> str:
    said = [f"{change.title} at {change.second:.0f} s" for change in facts.changes]
    return f" Configuration changed: {'; '.join(said)}." if said else ""


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
    figures = f"p50 was {totals['p50_ms']} ms, p95 {totals['p95_ms']} ms, p99 {totals['p99_ms']} ms"
    return f"Over the run {figures}.{_changed(facts)}"


def _throughput(axes: Any, facts: Facts) -> None:
    seconds = [second.second for second in facts.seconds]
    names = list(facts.seconds[0].by_model)
    stacks = [[second.by_model[name] for second in facts.seconds] for name in names]
    axes.stackplot(seconds, *stacks, labels=names, colors=drawing.SERIES, alpha=0.75)
    failures = [second.failures for second in facts.seconds]
    if any(failures):
        axes.plot(seconds, failures, color=drawing.RED, label="failures")
    _changes(axes, facts)
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
    said = [
        f"{name}: " + ", ".join(f"p{p:g} {value:g} ms" for p, value in points if p in (50, 99, 99.9, 99.99))
        for name, points in facts.percentiles.items()
    ]
    return "; ".join(said) + "."


def _spent(axes: Any, facts: Facts) -> None:
    left = 0.0
    for (name, value), color in zip(facts.spent, drawing.SERIES, strict=False):
        axes.barh([0], [value], 0.5, left=left, color=color, label=name)
        left += value
    axes.set_yticks([])
    axes.set(xlabel="mean of a request, ms", ylim=(-0.8, 0.8))


def _spent_in_words(facts: Facts) -> str:
    said = ", ".join(f"{name} {value:.2f} ms" for name, value in facts.spent)
    server = facts.server
    waited = f"{server['queued']:,} of {server['answered']:,} answered requests waited for a batch thread"
    tail = f", p99 {server['queueing_p99_ms']:.1f} ms" if server.get("queueing_p99_ms") is not None else ""
    return f"Mean of a request: {said}. {waited if server['queued'] else 'Nothing was batched'}{tail}."


def _batches(axes: Any, facts: Facts) -> None:
    names, counts = _batch_sizes(facts)
    axes.bar(names, counts, 0.8, color=drawing.SERIES[0], label="batches run")
    axes.set(xlabel="examples in a batch", ylabel="batches")


def _batch_sizes(facts: Facts) -> tuple[list[str], list[int]]:
    """Return the server's buckets as ranges of sizes, with the batches in each; empty ones at the ends left out.

    A bucket counts sizes from the bound before it to below its own.
    """
    batches = facts.server["batches"]
    lows = [0, *(int(bound) for bound in batches["bounds"])]
    highs = [int(bound) - 1 for bound in batches["bounds"]]
    names = [f"{low}" if low == high else f"{low}–{high}" for low, high in zip(lows, highs, strict=False)]
    names.append(f"{lows[-1]} and more")
    filled = [place for place, count in enumerate(batches["counts"]) if count]
    chosen = slice(filled[0], filled[-1] + 1)
    return names[chosen], batches["counts"][chosen]


def _batches_in_words(facts: Facts) -> str:
    names, counts = _batch_sizes(facts)
    batches = facts.server["batches"]
    most = names[counts.index(max(counts))]
    share = max(counts) / sum(counts)
    padding = facts.server["padding"]
    padded = f", {padding:,.0f} examples were padding" if padding else ""
    return f"{sum(counts):,} batches of {batches['mean']:.2f} examples on average; {share:.0%} had {most}{padded}."


def _cpu(axes: Any, facts: Facts) -> None:
    _use(axes, facts, 1, "cores in use", drawing.SERIES[1])
    _seconds(axes, "cores")


def _memory(axes: Any, facts: Facts) -> None:
    _use(axes, facts, 2, "resident", drawing.SERIES[3])
    _seconds(axes, "MiB")


def _use(axes: Any, facts: Facts, column: int, label: str, color: str) -> None:
    rows = [row for row in facts.server["use"] if row[column] is not None]
    axes.plot([row[0] for row in rows], [row[column] for row in rows], color=color, label=label)
    axes.set_ylim(0, 1.1 * max(row[column] for row in rows) or 1)


def _cpu_in_words(facts: Facts) -> str:
    known = [cores for _, cores, *_ in facts.server["use"] if cores is not None]
    cores = facts.summary["machine"]["cores"]
    return f"The server used {sum(known) / len(known):.2f} of {cores} cores on average, {max(known):.2f} at most."


def _gpu(axes: Any, facts: Facts) -> None:
    _use(axes, facts, 3, "share of its time", drawing.SERIES[2])
    _seconds(axes, "share")


def _gpu_in_words(facts: Facts) -> str:
    busy = [row[3] for row in facts.server["use"] if row[3] is not None]
    memory = max(row[4] for row in facts.server["use"] if row[4] is not None)
    return f"The busiest GPU worked {sum(busy) / len(busy):.0%} of the time; GPU memory was {memory:,.0f} MiB at most."


def _memory_in_words(facts: Facts) -> str:
    known = [row[2] for row in facts.server["use"]]
    return f"Resident memory went from {known[0]:,.0f} to {known[-1]:,.0f} MiB, {max(known):,.0f} MiB at most."


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
