"""Whether the simulator predicts what is measured, and whether tuning finds what an exhaustive grid finds.

    python -m tests.benchmarks.tune predicted              # 14 configurations, about 10 minutes a model
    python -m tests.benchmarks.tune grid                   # 45 configurations, about half an hour a model
    python -m tests.benchmarks.tune report                 # what has been measured so far; measures nothing
    flock MACHINE python -m tests.benchmarks.tune grid --model digits-cnn --seconds 280

Each configuration is measured once, by the capacity search, and kept in `results/tune.json` as it comes in: a run goes
on where the last one ended, and `--seconds` ends it after a while, so that an hour can be measured in slices. The
profile that predictions rest on is made first, in the same file; of the configurations only `off` takes part in it.

`predicted` also puts 70 % of the predicted capacity on each configuration, three times, and compares p99; since that
differs from time to time, so does the simulated one, with the stretch of the machine's pace that a run meets. `grid`
compares the best of the grid with what `tune` chooses by its own rules when it may look up this grid's measurements,
and with Optuna's TPE that may look up as many (median of 20 seeds); the measuring time of either is that of what it
looked up.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from pydantic import TypeAdapter

from launchpad import declaration, files, machine, tuned
from launchpad.examples import Examples
from launchpad.layout import Layout
from launchpad.server import Server
from launchpad.spec import BatchQueue, Traffic
from launchpad.tune import predict, profile
from launchpad.tune.bench import Bench
from launchpad.tune.predict import Configuration, Goal, Limits, Model

ROOT = Path(__file__).resolve().parents[2]
KEPT = Path(__file__).parent / "results" / "tune.json"
MODELS = ("digits-mlp", "digits-cnn")
REQUEST_THREADS = 64
GOAL = Goal("rate", Limits(0.1, 0.001))
SHARE = 0.7
RATE_S = 8.0
REPEATS = 3
"""How often p99 is measured."""
RUNS = 9
"""How often it is simulated, each with a stretch of its own of the machine's pace."""
BOUND = 64
ENOUGH = 3
"""Configurations that tune measures beside `off`."""
SEEDS = 20
MOST_FOR_OTHERS = 0.1
"""Share of the cores that others may take during a measurement that counts."""


def batched(size: int, timeout_us: int, threads: int, bound: int = BOUND, sizes: tuple[int, ...] = ()) -> Configuration:
    queue = BatchQueue(
        max_batch_size=size, batch_timeout_micros=timeout_us, max_enqueued_batches=bound, allowed_batch_sizes=sizes
    )
    return Configuration(queue, threads, REQUEST_THREADS)


OFF = Configuration(None, 1, REQUEST_THREADS)
PREDICTED = (
    OFF,
    batched(16, 500, 2),
    batched(128, 1000, 8, 1000),
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
    batched(128, 1000, 8, 1000),
    batched(64, 500, 8),
)

Kept = dict[str, Any]
CONFIGURATION = TypeAdapter(Configuration)
PROFILE = TypeAdapter(profile.Profile)


def kept() -> Kept:
    return json.loads(KEPT.read_text()) if KEPT.exists() else {"machine": machine.describe(), "models": {}}


def of(document: Kept, model: str) -> Kept:
    return document["models"].setdefault(model, {"profile": None, "measured": []})


def configuration(row: Kept) -> Configuration:
    return CONFIGURATION.validate_json(json.dumps(row["configuration"]))


def row_of(part: Kept, chosen: Configuration) -> Kept | None:
    return next((row for row in part["measured"] if configuration(row) == chosen), None)


def save(document: Kept) -> None:
    KEPT.parent.mkdir(exist_ok=True)
    files.write_json(KEPT, document)


def profiled(document: Kept, model: str) -> profile.Profile:
    """Return the profile that predictions rest on; measured when there is none."""
    part = of(document, model)
    if part["profile"] is None:
        layout = Layout(ROOT)
        examples = Examples.load(layout.evidence(model, 1) / "examples.npz")
        line = Traffic(model=model)
        found = profile.measure(bench(model), line, examples, tuned.model_digest(layout, model), print)
        part["profile"] = PROFILE.dump_python(found, mode="json")
        save(document)
    return PROFILE.validate_json(json.dumps(part["profile"]))


def bench(model: str) -> Bench:
    return Bench(declaration.load(ROOT), ROOT / ".launchpad" / "tune" / "benchmark" / model, [Traffic(model=model)])


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
        "configuration": CONFIGURATION.dump_python(chosen, mode="json"),
        "title": chosen.title,
        "others": others,
        "capacity_rps": capacity["interval_rps"],
        "limited": capacity["limited"],
        "seconds": round(time.monotonic() - began, 1),
        "at": time.strftime("%Y-%m-%d %H:%M"),
    }


def measure_p99(model: str, chosen: Configuration, found: profile.Profile) -> Kept:
    """Measure a configuration's p99 at SHARE of the predicted capacity, REPEATS times."""
    rate = round(SHARE * guessed(found, chosen), 1)
    loads = {"share": {"loop": "open", "rate_rps": rate, "duration_s": RATE_S}}
    with serving(model, chosen, loads) as (place, server):
        used = [profile.use(place, server, "share") for _ in range(REPEATS)]
        totals = [summary["totals"] for summary in place.results("summary.json")[-REPEATS:]]
    return {
        "rate_rps": rate,
        "p99_ms": [one["p99_ms"] for one in totals],
        "p50_ms": [one["p50_ms"] for one in totals],
        "p99_others": max(one.others for one in used),
    }


def guessed(found: profile.Profile, chosen: Configuration) -> float:
    expected = predict.expected(Model.of(found), chosen, GOAL).value
    return expected if expected > 0 else 500.0


@contextmanager
def serving(
    model: str, chosen: Configuration, loads: dict[str, dict[str, Any]] | None = None
) -> Iterator[tuple[Bench, Server]]:
    """A server with this configuration, on the bench; stopped in the end."""
    place = bench(model)
    place.declare({model: chosen.queue}, chosen.threads, loads, chosen.flags)
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


def run(models: list[str], configurations: tuple[Configuration, ...], with_p99: bool, end: float) -> None:
    document = kept()
    for model in models:
        found = profiled(document, model)
        part = of(document, model)
        for chosen in configurations:
            row = row_of(part, chosen)
            if row and ("p99_ms" in row or not with_p99):
                continue
            if time.monotonic() > end:
                print("time is over; run it again to go on")
                return
            if row is None:
                row = measure_capacity(model, chosen, found)
                part["measured"].append(row)
            if with_p99:
                row |= measure_p99(model, chosen, found)
            print(model, row["title"], row["capacity_rps"], row.get("p99_ms", ""), flush=True)
            save(document)


def middle(row: Kept) -> float:
    low, high = row["capacity_rps"]
    return math.sqrt(low * (high or low)) if low else 0.0


def show(models: list[str]) -> None:
    document = kept()
    for model in models:
        part = of(document, model)
        if part["measured"]:
            show_predictions(model, part)
            show_grid(model, part)


def with_predictions(part: Kept) -> list[Kept]:
    """Return what was measured, beside what the profile and the simulator as they are now predict."""
    simulated = Model.of(PROFILE.validate_json(json.dumps(part["profile"])))
    rows = []
    for row in part["measured"]:
        chosen = configuration(row)
        predicted = {"predicted_rps": predict.expected(simulated, chosen, GOAL).value}
        if "p99_ms" in row:
            requests = int(row["rate_rps"] * RATE_S)
            results = [simulated.at(chosen, row["rate_rps"], requests, seed=seed) for seed in range(RUNS)]
            predicted["predicted_p99_ms"] = sorted(result.percentile_ms(99) for result in results)
        rows.append(row | predicted)
    return rows


def show_predictions(model: str, part: Kept) -> None:
    measured = with_predictions(part)
    print(f"\n### {model}: predicted beside measured\n")
    print("| configuration | capacity, predicted | measured | off by | at rate | p99, predicted | measured |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in measured:
        expected, value = row["predicted_rps"], middle(row)
        off = f"{expected / value - 1:+.0%}" if value else ""
        low, high = row["capacity_rps"]
        mark = (" !" if row["limited"] else "") + (" ~" if disturbed(row) else "")
        text = f"| {row['title']} | {expected:,.0f} | {low or 0:,.0f} to {high or 0:,.0f}{mark} | {off} "
        if "p99_ms" in row:
            text += f"| {row['rate_rps']:,.0f} | {spread(row['predicted_p99_ms'])} | {spread(row['p99_ms'])} |"
        else:
            text += "| | | |"
        print(text)
    fair = [row for row in measured if not disturbed(row) and not row["limited"]]
    errors = [abs(row["predicted_rps"] / middle(row) - 1) for row in fair if middle(row)]
    late = [row for row in fair if "p99_ms" in row]
    exact = [row for row in late if abs(typical(row["predicted_p99_ms"]) / typical(row["p99_ms"]) - 1) <= 0.15]
    met = [row for row in late if meet(row["predicted_p99_ms"], row["p99_ms"])]
    ratios = [max(row["p99_ms"]) / min(row["p99_ms"]) for row in late]
    print(f"\ncapacity within 10 %: {sum(error <= 0.1 for error in errors)} of {len(errors)}", end="; ")
    print(f"median p99 within 15 %: {len(exact)} of {len(late)}; ranges that meet: {len(met)}", end="")
    print(f"; measured again, p99 is {statistics.median(ratios):.1f} times itself (median), {max(ratios):.0f} at most")
    print("not counted: ! the generator was in the way; ~ others took more than a tenth of the cores")


def typical(values: list[float]) -> float:
    return statistics.median(values)


def meet(one: list[float], other: list[float]) -> bool:
    return min(one) <= max(other) and min(other) <= max(one)


def spread(values: list[float]) -> str:
    return f"{typical(values):.1f} ms ({min(values):.1f} to {max(values):.1f})"


def disturbed(row: Kept) -> bool:
    return max(row["others"], row.get("p99_others", 0.0)) > MOST_FOR_OTHERS


def show_grid(model: str, part: Kept) -> None:
    rows = {chosen: row for chosen in GRID if (row := row_of(part, chosen))}
    print(f"\n### {model}: {len(rows)} of the grid's {len(GRID)} configurations are measured", end="")
    print(f", {sum(map(disturbed, rows.values()))} of them while others took more than a tenth of the cores")
    if len(rows) < len(GRID):
        print("not run: the comparison with the exhaustive grid needs all of them")
        return
    best = max(map(middle, rows.values()))
    whole_s = sum(row["seconds"] for row in rows.values())
    print(f"best of the grid {best:,.0f} requests/s; whole grid {whole_s / 60:.0f} min")
    all_looked = chosen_by_tune(part, rows)
    for many in range(2, len(all_looked) + 1):
        looked = all_looked[:many]
        found = max(middle(rows[one]) for one in looked)
        time_s = sum(rows[one]["seconds"] for one in looked)
        shares = sorted(chosen_by_optuna(rows, many, seed) / best for seed in range(SEEDS))
        print(
            f"{many} measured, {time_s / whole_s:.0%} of the time: tune reaches {found / best:.1%} of it, Optuna's TPE "
            f"{statistics.median(shares):.1%} (median of {SEEDS} seeds; worst {shares[0]:.1%})"
        )


def chosen_by_tune(part: Kept, rows: dict[Configuration, Kept]) -> list[Configuration]:
    """Return what tune measures if the grid is all there is: off, and those that could be best, the likeliest first."""
    found = PROFILE.validate_json(json.dumps(part["profile"]))
    ranked = predict.rank(Model.of(found), list(rows), GOAL, lambda done, total: None, workers=1, finer=len(rows))
    return list(dict.fromkeys([OFF, *predict.worth_measuring(ranked, GOAL, ENOUGH)]))


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
    parser.add_argument("part", choices=("predicted", "grid", "report"))
    parser.add_argument("--model", choices=MODELS, help="this model alone")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further measurement after so long")
    given = parser.parse_args()
    models = [given.model] if given.model else list(MODELS)
    end = time.monotonic() + given.seconds
    if given.part == "predicted":
        run(models, PREDICTED, True, end)
    elif given.part == "grid":
        run(models, GRID, False, end)
    show(models)


if __name__ == "__main__":
    main()
