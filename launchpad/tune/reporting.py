"""The report of a tuning: tables, charts and a paragraph in plain words, as files."""

from __future__ import annotations

import itertools
import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from launchpad import drawing, files, runfolder
from launchpad.tune.predict import Configuration, Model, mean_sizes
from launchpad.tune.profile import MOST_FOR_OTHERS, is_another_machine

if TYPE_CHECKING:
    from launchpad.tune.tuning import Judged, Measured, Tuning

REPORT = "report.md"
MEASUREMENTS = "measurements.json"


def write(done: Tuning, folder: Path) -> None:
    """Write the report into its folder: report.md, charts, and every measurement as JSON."""
    files.remove(folder)
    folder.mkdir(parents=True)
    charts = {
        "pareto.svg": drawing.svg(_pareto, done, "p99 by rate, measured", (3, 3)),
        "predicted.svg": drawing.svg(_predicted, done, "Predicted against measured", (3, 3)),
    }
    for name, chart in charts.items():
        files.write_text(folder / name, drawing.on_paper(chart))
    files.write_text(folder / REPORT, text(done))
    from launchpad.tune.tuning import Measured as Kept

    files.write_json(folder / MEASUREMENTS, TypeAdapter(list[Kept]).dump_python(done.measured, mode="json"))


def text(done: Tuning) -> str:
    """Return the report in Markdown."""
    machine = done.profile.machine
    head = f"# Batching of {done.model}\n\n{why(done)}\n\n"
    about = (
        f"Traffic: {done.line.line}, Poisson arrivals. Goal: {goal_in_words(done)}. "
        f"{done.configurations} configurations simulated, {len({one.chosen for one in done.measured})} measured in "
        f"{done.seconds / 60:.1f} min. {done.profile.backend} backend, {machine['processor']}, {machine['cores']} "
        "cores shared with the load generator.\n\n"
    )
    about += "".join(f"**Doubtful**: {doubt}.\n\n" for doubt in doubts(done))
    columns = ("configuration", "", f"measured {done.goal.unit}", "interval", "expected", "difference")
    body = table(columns, rows(done))
    left = [f"- {one.title}" for one in done.skipped]
    skipped = "\nNot measured, because the time was over:\n\n" + "\n".join(left) + "\n" if left else ""
    charts = "\n![p99 by rate](pareto.svg)\n\n![Predicted against measured](predicted.svg)\n"
    return head + about + body + skipped + charts


def doubts(done: Tuning) -> list[str]:
    """Return what speaks against the figures."""
    found = []
    others = done.profile.others
    if others > MOST_FOR_OTHERS:
        found.append(f"others took {others:.0%} of the cores while the profile was measured")
    expected = [(judged.value, _expected(done, judged.chosen)) for judged in done.judged]
    typical = statistics.median([value / its for value, its in expected if its > 0] or [1.0])
    if done.goal.kind == "rate" and is_another_machine(typical):  # the simulator is not so right of percentiles
        found.append(
            f"what was measured is {typical:.2f} times what was expected, in the median: the machine was faster or "
            "slower than while it was profiled; the choice rests on what was measured, `invoke profile` looks anew"
        )
    return found


def table(columns: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    shown = [columns, tuple("---" for _ in columns), *lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in shown)


def rows(done: Tuning) -> list[tuple[str, ...]]:
    """Return a row for each measured configuration, the best first, those that were not used last."""
    found = [_row(done, one) for one in done.judged]
    used = {one.chosen for one in done.judged}
    for one in done.measured:
        if one.chosen not in used:
            used.add(one.chosen)
            why_not = f"not used: {one.limited}" if one.limited else "does not hold"
            found.append(
                (one.chosen.title, done.name(one.chosen), why_not, "", _number(_expected(done, one.chosen)), "")
            )
    return found


def _row(done: Tuning, judged: Judged) -> tuple[str, ...]:
    expected = _expected(done, judged.chosen)
    names = [done.name(judged.chosen), "**tuned**" if judged == done.best else ""]
    return (
        judged.chosen.title,
        ", ".join(filter(None, names)),
        _number(judged.value),
        f"{_number(judged.low)} to {_number(judged.high)}",
        _number(expected),
        f"{expected / judged.value - 1:+.0%}" if expected == expected else "",
    )


def _expected(done: Tuning, chosen: Configuration) -> float:
    return done.expected(chosen).value


def _number(value: float) -> str:
    return "does not hold" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def goal_in_words(done: Tuning) -> str:
    """Return what was looked for."""
    limit = f"p99 of {done.goal.limits.p99_s * 1e3:g} ms and an error rate of {done.goal.limits.error_rate:g}"
    if done.goal.kind == "rate":
        return f"the highest rate with {limit} held"
    if done.goal.kind == "latency":
        return f"the lowest p99 at {done.goal.rate_rps:g} requests/s"
    return f"the least processor time at {done.goal.rate_rps:g} requests/s with {limit} held"


def why(done: Tuning) -> str:
    """Return in plain words what was found and why it is the best."""
    best, off = done.best, next((one for one in done.judged if one.chosen.queue is None), None)
    model = Model.of(done.profile)
    rate = done.goal.rate_rps or best.value * 0.9
    result = model.at(best.chosen, rate, 30_000, done.line.batch)
    times, batches = done.profile, done.profile.batch_s
    one, many = batches[1] * 1e6, batches[min(16, len(batches) - 1)] * 1e6 / 16
    added = times.task_s[min(16, len(batches) - 1)] * 1e6
    costs = (
        f"A request costs {times.front_s * 1e6:.0f} µs of processor time outside the model; the model takes "
        f"{one:.0f} µs for one row and {many:.0f} µs a row in a batch of 16; to work on so many at once "
        f"{'costs' if added > 0 else 'saves'} {abs(added):.0f} µs a request."
    )
    value = f"{_number(best.value)} {done.goal.unit} ({_number(best.low)} to {_number(best.high)})"
    if best.chosen.queue is None:
        second = next((one for one in done.judged if one.chosen.queue is not None), None)
        said = f"Without batching, {done.model} reaches {value}."
        if second:
            said += f" The best batching that was measured, {second.chosen.title}, reaches {_number(second.value)}"
            said += ": what batches save in the model, forming them costs." if not _better(done, second, best) else "."
            if _better(done, second, best):
                said += " That is within the error of measurement, and no batching is the plainer of the two."
        return f"{said} {costs}"
    said = f"{best.chosen.title}: {done.model} reaches {value}"
    if off:
        said += f", against {_number(off.value)} without batching"
    return f"{said}. {costs} At {rate:,.0f} requests/s a batch has {mean_sizes(result)}, by simulation."


def _better(done: Tuning, one: Judged, other: Judged) -> bool:
    return one.value > other.value if done.goal.higher_is_better else one.value < other.value


def spread_by_second(folder: Path) -> float:
    """Return the 95 % half-width in ms of a run's p99, from the scatter of the p99s of its seconds."""
    values = [float(row["p99_ms"]) for row in runfolder.read_history(folder) if row["p99_ms"]]
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return 1.96 * math.sqrt(variance / len(values))


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (rate, p99) points that no other beats in both: a higher rate at no higher p99."""
    front: list[tuple[float, float]] = []
    for rate, p99 in sorted(points, key=lambda point: (-point[0], point[1])):
        if not front or p99 < front[-1][1]:
            front.append((rate, p99))
    return front[::-1]


def medians(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the median p99 of each rate, by rate: what was asked twice is one finding."""
    by_rate = itertools.groupby(sorted(points), key=lambda point: point[0])
    return [(rate, statistics.median(p99 for _, p99 in of_rate)) for rate, of_rate in by_rate]


def _pareto(axes: Any, done: Tuning) -> None:
    points: list[tuple[float, float]] = []
    shown = list(dict.fromkeys(one.chosen for one in done.measured))
    for chosen, color in zip(shown, drawing.SERIES * 3, strict=False):
        own = _points([one for one in done.measured if one.chosen == chosen])
        if not own:  # nothing was answered
            continue
        axes.plot(*zip(*own, strict=True), "o", color=color, markersize=3, alpha=0.6)
        typical = medians(own)
        axes.plot(*zip(*typical, strict=True), color=color, linewidth=1, label=_label(done, chosen))
        points += typical
    front = pareto(points)
    axes.plot(*zip(*front, strict=True), color=drawing.INK, linewidth=1.5, linestyle=":")
    axes.axhline(done.goal.limits.p99_s * 1e3, color=drawing.RED, linestyle="--", linewidth=1, label="p99 to hold")
    axes.set(xlabel="requests/s due (lines: medians; dotted: their Pareto front)", ylabel="p99 of a whole probe, ms")
    axes.set_yscale("log")
    drawing.plain_numbers(axes.yaxis)


def _label(done: Tuning, chosen: Configuration) -> str:
    """Return how a chart names a configuration: briefly, since the tables say all."""
    if done.name(chosen) or chosen.queue is None:
        return done.name(chosen) or "off"
    queue = chosen.queue
    brief = f"{queue.max_batch_size}, {queue.batch_timeout_micros} µs, {chosen.threads} thr."
    return brief + (", padded" if queue.allowed_batch_sizes else "")


def _points(measured: list[Measured]) -> list[tuple[float, float]]:
    return [(rate, p99) for one in measured for rate, _, p99, _ in one.probes if p99 is not None]


def _predicted(axes: Any, done: Tuning) -> None:
    for judged, color in zip(done.judged, drawing.SERIES * 3, strict=False):
        expected = done.expected(judged.chosen)
        axes.errorbar(
            [expected.value],
            [judged.value],
            xerr=[[max(0.0, expected.value - expected.low)], [max(0.0, expected.high - expected.value)]],
            yerr=[[max(0.0, judged.value - judged.low)], [max(0.0, judged.high - judged.value)]],
            fmt="o",
            color=color,
            markersize=4,
            label=_label(done, judged.chosen),
        )
    ends = [min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])]
    axes.plot(ends, ends, color=drawing.INK, alpha=0.4, linewidth=1, label="as predicted")
    axes.set(xlabel=f"predicted {done.goal.unit}", ylabel=f"measured {done.goal.unit}")
