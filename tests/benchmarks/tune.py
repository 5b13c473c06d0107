"""Whether the simulator predicts what is measured, and whether tuning finds what an exhaustive grid finds.

    python -m tests.benchmarks.tune predicted              # capacity of 14 configurations, half an hour a model
    python -m tests.benchmarks.tune percentiles            # p50 and p99 of the same, 20 minutes a model
    python -m tests.benchmarks.tune grid                   # 45 configurations, about half an hour a model
    python -m tests.benchmarks.tune finalists              # the best of the grid again, in turn, five minutes a model
    python -m tests.benchmarks.tune report                 # what has been measured so far; measures nothing
    python -m tests.benchmarks.tune grid --model digits-cnn --seconds 280

Each configuration is measured once, by the capacity search, and kept in `results/tune.json` as it comes in: a run goes
on where the last one ended, and `--seconds` ends it after a while, so that an hour can be measured in slices. What is
measured for one part does not count for the other, since hours differ. Of the configurations only `off` takes part in a
profile.

`predicted` profiles the model anew before each configuration, since the machine is another after some minutes: the
simulator is compared with what it describes.
`percentiles` has a server for each configuration, all at once, of which one is loaded at a time, and measures in ROUNDS
rounds: in each the model is profiled, and each configuration loaded for some seconds with SHARE of the capacity that
was predicted in the first round, in opposite order each time. What neighbours take of the machine within a minute moves
a percentile by more than any simulator is off: in a short round all configurations meet the same, and over all rounds
it is as much for what is profiled as for what is measured. So the medians of what was measured are compared with what
is predicted of the medians of the loads in all profiles, and of the machine's pace in all of them; and the rounds,
resampled, say how many are surely as near as they should be, and of how many they do not rule it out. Nearer to the
capacity the p99 of a run is made by the worst stall of the machine that it meets. So p99 of seconds is compared as
well: of the median one, and of the calm one, which a quarter of them are below. The profile takes what a run costs from
the calm quarter of a load, too: neighbours only ever add to both.
`grid` profiles once, as `tune` does, and compares the best of the grid with what `tune` chooses by its own rules when
it may look up this grid's measurements, and with Optuna's TPE that may look up as many as the same time allows (median
of 20 seeds). The measuring time is that of what was looked up, and of the profile, without which TPE does.
`finalists` measures the best BEST of the grid and the one that `tune` chooses AGAIN times more, in turn and in
opposite order each time: of 45 single measurements on a machine that others share, the highest is partly the luckiest.
It always begins anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pydantic import TypeAdapter

from launchpad import declaration, exported, files, machine, runfolder, tuned
from launchpad.layout import Layout
from launchpad.loadtest.generator import Ending
from launchpad.server import Server
from launchpad.spec import BatchQueue, OpenLoop, Traffic, Tune
from launchpad.tune import predict, profile, profiling, tuning
from launchpad.tune.bench import Bench
from launchpad.tune.predict import Configuration, Goal, Limits, Model
from launchpad.tune.simulate import Result

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).parent / "results" / "tune.json"
MODELS = ("digits-mlp", "digits-cnn")
REQUEST_THREADS = 64
GOAL = Goal("rate", Limits(0.1, 0.001))
SHARE = 0.3
RATE_S = 4.0
FRESH_S = 1.0
"""How long a server is loaded before that counts: the first requests that come at once wait longer."""
ROUNDS = 8
RUNS = 9
"""How often percentiles are simulated, each with a stretch of its own of the machine's pace."""
NEAR = 0.15
"""Share by which a percentile may be off."""
RESAMPLED = 500
BOUND = 64
SEEDS = 20
BEST, AGAIN = 3, 3
MOST_FOR_OTHERS = 0.1
"""Share of the cores that others may take during a measurement that counts."""


def batched(size: int, timeout_us: int, threads: int, bound: int = BOUND, sizes: tuple[int, ...] = ()) -> Configuration:
    queue = BatchQueue(
        max_batch_size=size, batch_timeout_micros=timeout_us, max_enqueued_batches=bound, allowed_batch_sizes=sizes
    )
    return Configuration(queue, threads, REQUEST_THREADS)


OFF = Configuration(None, 1, REQUEST_THREADS)
WIDESPREAD = batched(128, 1000, 8, 1000)
PREDICTED = (
    OFF,
    batched(16, 500, 2),
    WIDESPREAD,
    batched(64, 0, 1),
    batched(4, 0, 2),
    batched(8, 1000, 1),
    batched(32, 2000, 2),
    batched(64, 500, 8),
    batched(128, 0, 2),
    batched(2, 0, 1),
    batched(32, 0, 4, 64, (8, 16, 32)),
    batched(128, 5000, 1),
    batched(16, 0, 8),
    batched(64, 2000, 2, 16),
)
GRID = (
    OFF,
    *(
        batched(size, timeout, threads)
        for size in (4, 8, 16, 32, 64, 128)
        for timeout in (0, 1000)
        for threads in (1, 2, 4)
    ),
    *(batched(size, 5000, 2) for size in (8, 16, 32, 64, 128)),
    batched(16, 500, 2),
    WIDESPREAD,
    batched(64, 500, 8),
)

PARTS = {"predicted": PREDICTED, "grid": GRID}
PERCENTILES, FINALISTS = "percentiles", "finalists"

Kept = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """What of rows is compared: a percentile of the one value that each has under a key, or of its several."""

    title: str
    key: str
    percentile: float = 50

    def of(self, rows: list[Kept]) -> float:
        """Return it, of all rows together."""
        return float(np.percentile(np.hstack([row[self.key] for row in rows]), self.percentile))


FIGURES = (
    Figure("processor time of a request", "server_us"),
    Figure("p50", "p50_ms"),
    Figure("p99 of the calm second", "second_p99_ms", profiling.CALM),
    Figure("p99 of the median second", "second_p99_ms"),
    Figure("p99", "p99_ms"),
)
CONFIGURATION = TypeAdapter(Configuration)
PROFILE = TypeAdapter(profile.Profile)


def kept() -> Kept:
    return json.loads(KEPT.read_text()) if KEPT.exists() else {"models": {}}


def of(document: Kept, model: str) -> Kept:
    return document["models"].setdefault(
        model, {"profile": None, "predicted": [], PERCENTILES: [], "grid": [], FINALISTS: []}
    )


def configuration(row: Kept) -> Configuration:
    return CONFIGURATION.validate_json(json.dumps(row["configuration"]))


def row_of(rows: list[Kept], chosen: Configuration) -> Kept | None:
    return next((row for row in rows if configuration(row) == chosen), None)


def save(document: Kept) -> None:
    """Write what was measured, without indentation: a pace has thousands of numbers, which would be a line each."""
    KEPT.parent.mkdir(exist_ok=True)
    files.write_text(KEPT, json.dumps(document, separators=(",", ":")) + "\n")


def profiled(model: str) -> Kept:
    """Measure what predictions rest on; return it with numbers as long as they mean something."""
    layout = Layout(ROOT)
    examples = exported.examples(layout, model, 1)
    found = profiling.measure(bench(model), Traffic(model=model), examples, tuned.model_digest(layout, model), print)
    document: Kept = json.loads(json.dumps(PROFILE.dump_python(found, mode="json")), parse_float=_rounded)
    return document


def _rounded(number: str) -> float:
    return float(f"{float(number):.5g}")


def profile_of(document: Kept) -> profile.Profile:
    return PROFILE.validate_json(json.dumps(document))


def bench(model: str, number: int = 0) -> Bench:
    """Return a workbench of its own for each number."""
    place = ROOT / ".launchpad" / "tune" / "benchmark" / model / str(number)
    return Bench(declaration.load(ROOT), place, [Traffic(model=model)])


def measure_capacity(model: str, chosen: Configuration, found: profile.Profile) -> Kept:
    """Measure a configuration's capacity."""
    began = time.monotonic()
    guess = guessed(found, chosen)
    with serving(model, chosen) as (place, server):
        neighbours = Neighbours(server.pid)
        words = ("capacity", "--p99", f"{GOAL.limits.p99_s * 1e3:g}", "--start", f"{guess:.0f}")
        place.invoke(*words, allowed=(0, 1))
        capacity = place.results("capacity.json")[-1]
        others = neighbours.share()
    return {
        "others": others,
        "capacity_rps": capacity["interval_rps"],
        "limited": capacity["limited"],
        "seconds": round(time.monotonic() - began, 1),
        **naming(chosen),
    }


def measure_percentiles(model: str, chosen: Configuration, place: Bench, server: Server, rate_rps: float) -> Kept:
    """Measure percentiles at a rate, and the server's processor time of a request, on a server that runs."""
    load = OpenLoop(loop="open", rate_rps=rate_rps, duration_s=FRESH_S + RATE_S, traffic=(Traffic(model=model),))
    neighbours, process = Neighbours(server.pid), psutil.Process(server.pid)
    before = process.cpu_times()
    run = place.put(load, server, Ending())
    after = process.cpu_times()
    others = neighbours.share()
    requests = sum(row["requests"] for row in runfolder.read_history(run))
    seconds = [histogram for _, second, histogram in runfolder.read_histograms(run) if second >= FRESH_S]
    whole = runfolder.histogram()
    for histogram in seconds:
        whole.add(histogram)
    used_s = after.user + after.system - before.user - before.system
    return {
        "rate_rps": rate_rps,
        "server_us": round(used_s / requests * 1e6, 1),
        "p50_ms": whole.get_value_at_percentile(50) / 1e3,
        "second_p99_ms": [histogram.get_value_at_percentile(99) / 1e3 for histogram in seconds],
        "p99_ms": whole.get_value_at_percentile(99) / 1e3,
        "others": others,
        **naming(chosen),
    }


def naming(chosen: Configuration) -> Kept:
    return {
        "configuration": CONFIGURATION.dump_python(chosen, mode="json"),
        "title": chosen.title,
        "at": time.strftime("%Y-%m-%d %H:%M"),
    }


def guessed(found: profile.Profile, chosen: Configuration) -> float:
    expected = predict.expected(Model.of(found), chosen, GOAL).value
    return expected if expected > 0 else 500.0


@contextmanager
def serving(model: str, chosen: Configuration, number: int = 0) -> Iterator[tuple[Bench, Server]]:
    """A server with this configuration, on a bench; stopped in the end."""
    place = bench(model, number)
    place.declare({model: chosen.queue}, chosen.threads, chosen.flags)
    server = place.launch()
    try:
        yield place, server
    finally:
        place.stop()


class Neighbours:
    """What of the processor others took since this was made: neither this process, nor its children, nor a server."""

    def __init__(self, server: int) -> None:
        self._server = psutil.Process(server)
        self._began, self._before = time.monotonic(), self._others_s()

    def _others_s(self) -> float:
        whole, server = psutil.cpu_times(), self._server.cpu_times()
        own = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        own_s = sum(used.ru_utime + used.ru_stime for used in own) + server.user + server.system
        return float(whole.user + whole.nice + whole.system + whole.steal) - own_s

    def share(self) -> float:
        """Return the share of all cores."""
        length_s = time.monotonic() - self._began
        return max(0.0, self._others_s() - self._before) / length_s / int(machine.describe()["cores"])


def run(models: list[str], part: str, end: float) -> None:
    document = kept()
    for model in models:
        its = of(document, model)
        rows = its[part]
        for chosen in PARTS[part]:
            if row_of(rows, chosen):
                continue
            if time.monotonic() > end:
                print("time is over; run it again to go on")
                return
            if part == "grid":
                its["profile"] = its["profile"] or profiled(model)
                row = measure_capacity(model, chosen, profile_of(its["profile"]))
            else:
                found = profiled(model)
                row = {"profile": found, **measure_capacity(model, chosen, profile_of(found))}
            rows.append(row)
            print(model, row["title"], row["capacity_rps"], flush=True)
            save(document)


def run_percentiles(models: list[str], end: float) -> None:
    """Measure the rounds that are missing; one that is not whole does not count."""
    document = kept()
    for model in models:
        rounds = of(document, model)[PERCENTILES]
        if len(rounds) >= ROUNDS:
            continue
        with ExitStack() as serve:
            servers = {
                chosen: serve.enter_context(serving(model, chosen, number))
                for number, chosen in enumerate(PREDICTED, start=1)
            }
            while len(rounds) < ROUNDS:
                if time.monotonic() > end:
                    print("time is over; run it again to go on")
                    return
                rounds.append(measure_round(model, servers, rounds))
                save(document)


def measure_round(model: str, servers: dict[Configuration, tuple[Bench, Server]], before: list[Kept]) -> Kept:
    """Profile the model and measure each configuration once, at the rates of the rounds before."""
    found = profiled(model)
    rates = {configuration(row): row["rate_rps"] for row in before[0]["rows"]} if before else {}
    rows = []
    for chosen in PREDICTED[:: 1 if len(before) % 2 == 0 else -1]:
        rate_rps = rates.get(chosen) or round(SHARE * guessed(profile_of(found), chosen), 1)
        rows.append(measure_percentiles(model, chosen, *servers[chosen], rate_rps))
        print(model, rows[-1]["title"], rows[-1]["p50_ms"], rows[-1]["p99_ms"], flush=True)
    return {"profile": found, "rows": rows}


def run_finalists(models: list[str], end: float) -> None:
    """Measure the finalists of each model's grid again; a round that is not whole does not count."""
    document = kept()
    for model in models:
        its = of(document, model)
        rows = measured_grid(its)
        if len(rows) < len(GRID):
            print(f"{model}: the grid is not whole")
            continue
        its[FINALISTS] = []
        found = profile_of(its["profile"])
        playing = finalists(rows, chosen_by_tune(its, rows))
        for number in range(AGAIN):
            if time.monotonic() > end:
                print("time is over")
                break
            order = playing if number % 2 == 0 else playing[::-1]
            its[FINALISTS].append([measure_capacity(model, chosen, found) for chosen in order])
            print(model, [(row["title"], row["capacity_rps"]) for row in its[FINALISTS][-1]], flush=True)
            save(document)


def finalists(rows: dict[Configuration, Kept], looked: list[Configuration]) -> list[Configuration]:
    """Return the one that is the best of those that tune looked at, and the best of all."""
    best = sorted(rows, key=lambda one: -middle(rows[one]))[:BEST]
    return list(dict.fromkeys([tunes_best(rows, looked), *best]))


def tunes_best(rows: dict[Configuration, Kept], looked: list[Configuration]) -> Configuration:
    return max(looked, key=lambda one: middle(rows[one]))


def measured_grid(part: Kept) -> dict[Configuration, Kept]:
    return {chosen: row for chosen in GRID if (row := row_of(part["grid"], chosen))}


def middle(row: Kept) -> float:
    low, high = row["capacity_rps"]
    return math.sqrt(low * (high or low)) if low else 0.0


def show(models: list[str]) -> None:
    document = kept()
    for model in models:
        part = of(document, model)
        if part["predicted"]:
            show_capacities(model, part["predicted"])
        if part[PERCENTILES]:
            show_percentiles(model, part[PERCENTILES])
        if part["grid"]:
            show_grid(model, part)


def show_capacities(model: str, rows: list[Kept]) -> None:
    """Print capacities beside what each one's profile and the simulator as it is now predict."""
    profiles = [row["profile"] for row in rows]
    head(model, "capacity, predicted beside measured", profiles, ("predicted", "measured", "off by"))
    ratios = []
    for row in rows:
        predicted = predict.expected(Model.of(profile_of(row["profile"])), configuration(row), GOAL).value
        measured, (low, high) = middle(row), row["capacity_rps"]
        ratio = predicted / measured if measured else math.nan
        print(
            f"| {row['title']}{mark(row)} | {predicted:,.0f} | {low or 0:,.0f} to {high or 0:,.0f} | {ratio - 1:+.0%} |"
        )
        if not mark(row) and measured:
            ratios.append(ratio)
    print(f"\ncapacity within 10 %: {within(ratios, 0.1)}")


def show_percentiles(model: str, rounds: list[Kept]) -> None:
    """Print percentiles beside what the rounds' profiles and the simulator predict, medians of the rounds."""
    found = median_profile([profile_of(one["profile"]) for one in rounds])
    what = f"percentiles, predicted beside measured, medians of {len(rounds)} rounds"
    columns = [column for figure in FIGURES for column in (f"{figure.title}, predicted", "measured")]
    head(model, what, [one["profile"] for one in rounds], ("at rate", *columns))
    ratios: dict[Figure, list[float]] = {figure: [] for figure in FIGURES}
    surely, perhaps = dict.fromkeys(FIGURES, 0), dict.fromkeys(FIGURES, 0)
    again = []
    for chosen in PREDICTED:
        rows = [row for one in rounds for row in one["rows"] if configuration(row) == chosen and not disturbed(row)]
        if not rows:
            print(f"| {chosen.title} ~ |")
            continue
        rate_rps = rows[0]["rate_rps"]
        predicted = predicted_percentiles(found, chosen, rate_rps)
        cells = []
        for figure in FIGURES:
            expected, measured = figure.of([predicted]), figure.of(rows)
            ratios[figure].append(expected / measured)
            high, low = (expected / end for end in interval(rows, figure))
            surely[figure] += low >= 1 - NEAR and high <= 1 + NEAR
            perhaps[figure] += low <= 1 + NEAR and high >= 1 - NEAR
            unit = "µs" if figure.key == "server_us" else "ms"
            cells += [
                f"{value:,.0f} {unit}" if value >= 100 else f"{value:.2f} {unit}" for value in (expected, measured)
            ]
        p99s = [row["p99_ms"] for row in rows]
        again.append(max(p99s) / min(p99s))
        print(f"| {chosen.title} | {rate_rps:,.0f} |", " | ".join(cells), f"({min(p99s):.1f} to {max(p99s):.1f}) |")
    print()
    for figure in FIGURES:
        print(
            f"{figure.title} within {NEAR:.0%}: {within(ratios[figure], NEAR)}; by the rounds, resampled, "
            f"{surely[figure]} surely are and {perhaps[figure]} may be; predicted over measured "
            f"{typical(ratios[figure]):.2f}"
        )
    print(f"from round to round, p99 is {typical(again):.1f} times itself (median), {max(again):.0f} at most")


def median_profile(profiles: list[profile.Profile]) -> profile.Profile:
    """Return the medians of what profiles of one model have measured, at the pace of all of them, calibrated."""

    def median(name: str) -> Any:
        return np.median([getattr(one, name) for one in profiles], axis=0).tolist()

    def load(name: str) -> profile.Use:
        uses = [asdict(getattr(one, name)) for one in profiles]
        return profile.Use(**{quantity: typical([use[quantity] for use in uses]) for quantity in uses[0]})

    first = profiles[0]
    loads = {
        field.name: load(field.name) for field in fields(first) if isinstance(getattr(first, field.name), profile.Use)
    }
    together = {many: typical([one.together[many] for one in profiles]) for many in first.together}
    paces = tuple(itertools.chain.from_iterable(one.paces for one in profiles))
    runs = {"run_s": tuple(median("run_s")), "residuals": tuple(median("residuals"))}
    return profile.calibrated(replace(first, together=together, paces=paces, **runs, **loads), REQUEST_THREADS)


def interval(rows: list[Kept], figure: Figure) -> tuple[float, float]:
    """Return where 90 % of the figures lie that other rounds might have had: bootstrap of the rows, whole rounds."""
    chance = np.random.default_rng(0)
    drawn = (chance.choice(len(rows), len(rows)) for _ in range(RESAMPLED))
    found = [figure.of([rows[index] for index in picked]) for picked in drawn]
    low, high = np.quantile(found, (0.05, 0.95))
    return float(low), float(high)


def predicted_percentiles(found: profile.Profile, chosen: Configuration, rate_rps: float) -> Kept:
    simulated, requests = Model.of(found), int(rate_rps * RATE_S)
    results = [simulated.at(chosen, rate_rps, requests, seed=seed) for seed in range(RUNS)]
    return {
        "server_us": [result.processor_use * simulated.host.cores / rate_rps * 1e6 for result in results],
        "p50_ms": [result.percentile_ms(50) for result in results],
        "second_p99_ms": [p99 for result in results for p99 in by_second(result)],
        "p99_ms": [result.percentile_ms(99) for result in results],
    }


def by_second(result: Result) -> list[float]:
    """Return p99 in ms of each simulated second."""
    parts = np.array_split(result.latency_s * 1e3, round(RATE_S))
    return [float(np.nanpercentile(part, 99)) for part in parts]


def head(model: str, what: str, profiles: list[Kept], columns: tuple[str, ...]) -> None:
    print(f"\n### {model}: {what}\n")
    print(f"profiled and measured on {machines(profiles)}; not counted: ! the generator was in")
    print("the way; ~ others took more than a tenth of the cores\n")
    print("| configuration |", " | ".join(columns), "|")
    print("| --- |" + " ---: |" * len(columns))


def mark(row: Kept) -> str:
    return (" !" if row.get("limited") else "") + (" ~" if disturbed(row) else "")


def within(ratios: list[float], share: float) -> str:
    return f"{sum(abs(ratio - 1) <= share for ratio in ratios)} of {len(ratios)}"


def machines(profiles: list[Kept]) -> str:
    """Return the machines that profiles are of."""
    known = [profile["machine"] for profile in profiles]
    return ", ".join(sorted({f"{one['cores']} cores of {one['processor']}" for one in known}))


def typical(values: list[float]) -> float:
    return statistics.median(values)


def disturbed(row: Kept) -> bool:
    return bool(row["others"] > MOST_FOR_OTHERS)


def show_grid(model: str, part: Kept) -> None:
    rows = measured_grid(part)
    print(f"\n### {model}: {len(rows)} of the grid's {len(GRID)} configurations are measured", end="")
    print(f", {sum(map(disturbed, rows.values()))} of them while others took more than a tenth of the cores")
    if len(rows) < len(GRID):
        print("not run: the comparison with the exhaustive grid needs all of them")
        return
    best = max(map(middle, rows.values()))
    whole_s = sum(row["seconds"] for row in rows.values())
    where = machines([part["profile"]])
    print(f"best of the grid {best:,.0f} requests/s, on {where}; whole grid {whole_s / 60:.0f} min")
    all_looked = chosen_by_tune(part, rows)
    for many in range(2, len(all_looked) + 1):
        looked = all_looked[:many]
        found = max(middle(rows[one]) for one in looked)
        time_s = part["profile"]["seconds"] + sum(rows[one]["seconds"] for one in looked)
        trials = round(time_s / whole_s * len(rows))
        shares = sorted(chosen_by_optuna(rows, trials, seed) / best for seed in range(SEEDS))
        print(
            f"profile and {many} measured, {time_s / whole_s:.1%} of the time: tune reaches {found / best:.1%} of it, "
            f"Optuna's TPE by {trials} measured {statistics.median(shares):.1%} (median of {SEEDS} seeds; worst "
            f"{shares[0]:.1%})"
        )
    looked = list(dict.fromkeys([*all_looked, WIDESPREAD]))
    again = sorted(looked, key=lambda one: -middle(rows[one]))[: tuning.AGAIN]
    time_s = part["profile"]["seconds"] + sum(rows[one]["seconds"] for one in [*looked, *again])
    print(
        f"with all that `invoke tune` does besides, the profile, the widespread parameters to compare with, the best "
        f"{tuning.AGAIN} again: {time_s / whole_s:.0%} of the time"
    )
    show_finalists(part, tunes_best(rows, all_looked))


def show_finalists(part: Kept, tunes: Configuration) -> None:
    rounds = part.get(FINALISTS, [])
    names = {configuration(row): row["title"] for row in rounds[0]} if rounds else {}
    if tunes not in names:
        print(f"not run: {tunes.title}, which tune chooses, beside the best of the grid in turn")
        return
    played = [row for one_round in rounds for row in one_round]
    again = {chosen: typical([middle(row) for row in played if configuration(row) == chosen]) for chosen in names}
    best = max(again.values())
    print(f"the best of the grid and what tune chooses, again in turn, medians of {len(rounds)} rounds:")
    for chosen, value in again.items():
        mark = ", chosen by tune" if chosen == tunes else ""
        print(f"- {names[chosen]}: {value:,.0f} requests/s, {value / best:.1%} of the best{mark}")


def chosen_by_tune(part: Kept, rows: dict[Configuration, Kept]) -> list[Configuration]:
    """Return what tune measures if the grid is all there is: off, and those that could be best, the likeliest first."""
    found = profile_of(part["profile"])
    ranked = predict.rank(Model.of(found), list(rows), GOAL, lambda done, total: None, workers=1, finer=len(rows))
    return list(dict.fromkeys([OFF, *predict.worth_measuring(ranked, GOAL, Tune().candidates)]))


def chosen_by_optuna(rows: dict[Configuration, Kept], trials: int, seed: int) -> float:
    """Return the best capacity that TPE meets in so many looks at the grid, told nothing of it beforehand."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sizes = sorted({one.queue.max_batch_size for one in rows if one.queue})
    timeouts = sorted({one.queue.batch_timeout_micros for one in rows if one.queue})
    pools = sorted({one.threads for one in rows if one.queue})

    def look(trial: Any) -> float:
        if not trial.suggest_categorical("batching", [True, False]):
            return middle(rows[OFF])
        wish = (
            trial.suggest_categorical("size", sizes),
            trial.suggest_categorical("timeout", timeouts),
            trial.suggest_categorical("threads", pools),
        )
        nearest = min((one for one in rows if one.queue), key=lambda one: _distance(one, wish))
        return middle(rows[nearest])

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(look, n_trials=trials)
    return float(study.best_value)


def _distance(one: Configuration, wish: tuple[int, int, int]) -> float:
    assert one.queue
    size, timeout, threads = wish
    apart = abs(math.log2(one.queue.max_batch_size / size)) + abs(math.log2(one.threads / threads))
    return apart + abs(one.queue.batch_timeout_micros - timeout) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*PARTS, PERCENTILES, FINALISTS, "report"))
    parser.add_argument("--model", choices=MODELS, help="this model alone")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further measurement after so long")
    given = parser.parse_args()
    models = [given.model] if given.model else list(MODELS)
    end = time.monotonic() + given.seconds
    if given.part in PARTS:
        run(models, given.part, end)
    elif given.part == PERCENTILES:
        run_percentiles(models, end)
    elif given.part == FINALISTS:
        run_finalists(models, end)
    show(models)


if __name__ == "__main__":
    main()
