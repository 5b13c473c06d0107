"""`invoke tune`: the whole grid by simulation, the few that could be best by measurement, the best of these kept.

What was measured is kept as it comes in, in `.launchpad/tune/<model>/progress.json`: a run that was interrupted goes on
from there, as long as model, machine, profile, server, flags and goal are the same.
"""

from __future__ import annotations

import datetime
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from launchpad import batching, console, exported, files, machine, notes, runfolder, tuned
from launchpad.backends import choose
from launchpad.errors import DeclarationError, EnvironmentFault, GateFailed, Problem
from launchpad.layout import Layout
from launchpad.loadtest.summary import failed_share
from launchpad.spec import Batching, BatchQueue, Traffic
from launchpad.stage import Context, Stopwatch
from launchpad.tune import predict, profile, profiling, reporting
from launchpad.tune.bench import Bench
from launchpad.tune.predict import Configuration, Expected, Goal, Limits, Model
from launchpad.tune.simulate import Result

WIDESPREAD = BatchQueue(max_batch_size=128, batch_timeout_micros=1000, max_enqueued_batches=1_000_000)
WIDESPREAD_THREADS = 8
"""Parameters that articles on TensorFlow Serving recommend, one after the other."""
AGAIN = 2
"""How many of the best are measured a second time, in the opposite order."""
SAME = 0.02
"""Values that differ by less are the same: the plainer configuration is taken."""
FRESH = datetime.timedelta(minutes=10)
"""A profile that was measured so lately is used untried."""
RATE_S = 6.0
"""Length of a measurement at a given rate."""


@dataclass(frozen=True)
class Measured:
    """A configuration, measured once: the goal's value and its interval (None: the limits do not hold at any rate).

    probes: (rate in requests/s, p50 ms, p99 ms, share missed) of each rate that was tried. limited: how the load
    generator was in the way, in which case the value is not used.
    """

    chosen: Configuration
    value: float | None
    low: float | None
    high: float | None
    probes: list[tuple[float, float | None, float | None, float]]
    limited: str
    run: str
    seconds: float


@dataclass(frozen=True)
class Judged:
    """All measurements of a configuration as one: the middle of their values, the interval that spans theirs."""

    chosen: Configuration
    value: float
    low: float
    high: float
    runs: tuple[str, ...]


@dataclass
class Progress:
    """What has been done, in a file that is written after each step."""

    path: Path
    key: str
    measured: list[Measured]

    @classmethod
    def at(cls, path: Path, key: str) -> Progress:
        """Return what an earlier run with the same key left; nothing where there is none."""
        content = files.read_json(path)
        if isinstance(content, dict) and content.get("key") == key:
            return cls(path, key, _MEASURED.validate_json(json.dumps(content["measured"])))
        return cls(path, key, [])

    def add(self, measured: Measured) -> None:
        self.measured.append(measured)
        files.write_json(self.path, {"key": self.key, "measured": _MEASURED.dump_python(self.measured, mode="json")})

    def of(self, chosen: Configuration) -> list[Measured]:
        return [one for one in self.measured if one.chosen == chosen]


_MEASURED = TypeAdapter(list[Measured])


@dataclass(frozen=True)
class Tuning:
    """All that is known when a model has been tuned; what the report shows."""

    model: str
    line: Traffic
    goal: Goal
    profile: profile.Profile
    configurations: int
    ranked: list[Expected]
    named: dict[str, Configuration]
    measured: list[Measured]
    judged: list[Judged]
    best: Judged
    skipped: list[Configuration]
    seconds: float

    def name(self, chosen: Configuration) -> str:
        """What a configuration is known as, such as `declared`; empty for one that has no name."""
        return ", ".join(name for name, named in self.named.items() if named == chosen)

    def expected(self, chosen: Configuration) -> Expected:
        """What the simulator expects of a configuration."""
        for one in self.ranked:
            if one.chosen == chosen and one.high > one.low:
                return one
        return predict.expected(Model.of(self.profile), chosen, self.goal, rows=self.line.batch)


def goal_of(context: Context) -> Goal:
    """Return the declared goal. Raises DeclarationError without a latency to hold."""
    declared, objectives = context.declaration.pipeline.tune, context.declaration.pipeline.objectives
    p99_ms = declared.p99_ms or objectives.p99_ms
    if p99_ms is None:
        raise DeclarationError(
            "no p99 to hold", context.declaration.where("objectives"), "declare objectives.p99_ms or tune.p99_ms"
        )
    return Goal(declared.goal, Limits(p99_ms / 1e3, objectives.tolerated_errors), declared.rate_rps or 0.0)


def models_of(context: Context, model: str | None) -> list[str]:
    """Return the models to tune. Raises DeclarationError for one that is not declared."""
    pipeline = context.declaration.pipeline
    if model is not None and model not in pipeline.models:
        raise DeclarationError(f"there is no model {model!r}", fix=f"declared: {', '.join(pipeline.models)}")
    return [model] if model else list(pipeline.tune.models or pipeline.models)


def line_of(context: Context, model: str) -> Traffic:
    """Return the line of the load-test profile's traffic that asks a model most."""
    pipeline = context.declaration.pipeline
    lines = pipeline.traffic(pipeline.loadtest.profiles[context.profile or pipeline.loadtest.profile])
    own = [line for line in lines if line.model == model]
    return max(own, key=lambda line: line.weight, default=pipeline.plain_traffic(model))


def workplace(layout: Layout, model: str) -> Path:
    return layout.private / "tune" / model


def measure_profile(context: Context, model: str) -> profile.Profile:
    """Measure a model's profile and keep it."""
    layout = context.layout
    line = line_of(context, model)
    bench = Bench(context.declaration, workplace(layout, model) / "bench", [line])
    examples = exported.examples(layout, model, context.declaration.pipeline.models[model].version)
    steps = iter(range(profiling.STEPS))
    with console.progress(f"profile of {line.line}") as advance:
        found = profiling.measure(
            bench,
            line,
            examples,
            tuned.model_digest(layout, model),
            lambda now: advance(next(steps), profiling.STEPS, now),
        )
    profile.save(layout, found)
    return found


def usable_profile(context: Context, model: str) -> profile.Profile:
    """Return the kept profile of a model if it speaks for it here and now, else a new one."""
    try:
        kept = profile.load(context.layout, model)
    except EnvironmentFault:
        return measure_profile(context, model)
    backend = choose(context).backend.name
    threads, _ = profiling.operation_threads(context.declaration.pipeline.serving.flags, backend)
    fits = (kept.traffic, kept.backend, kept.operation_threads) == (line_of(context, model), backend, threads)
    if fits and not profile.doubts(kept, context.layout) and (_is_fresh(kept) or _holds(context, kept)):
        return kept
    return measure_profile(context, model)


def _is_fresh(kept: profile.Profile) -> bool:
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(kept.measured)
    return datetime.timedelta(0) <= age < FRESH


def _holds(context: Context, kept: profile.Profile) -> bool:
    """Try a kept profile by the first thing that it measured under load: no description of a machine says how fast its
    host is today, nor what has become of the server's program."""
    model, then_rps = kept.traffic.model, kept.full.rate_rps
    bench = Bench(context.declaration, workplace(context.layout, model) / "bench", [kept.traffic])
    with console.progress(f"tries the kept profile of {kept.traffic.line}"):
        now_rps = profiling.highest_rate(bench, kept.traffic, then_rps).rate_rps
    if profile.is_another_machine(now_rps / then_rps):
        what = f"{then_rps:,.0f} requests/s without batching then, {now_rps:,.0f} now"
        console.say(f"  the profile of {kept.measured[:10]} no longer holds ({what}): it is measured anew", "yellow")
        return False
    return True


def declared_configuration(context: Context, model: str) -> Configuration:
    """Return what the declaration has for a model now."""
    found = batching.effective(context.declaration)
    queue = found.queues[model]
    threads = found.server.num_batch_threads if queue and isinstance(found.server, Batching) else 1
    return Configuration(queue, threads, request_threads(context, line_of(context, model))[0])


def request_threads(context: Context, line: Traffic) -> tuple[int, ...]:
    """Return the numbers of request threads to consider, the declared one first."""
    pipeline = context.declaration.pipeline
    declared = profile.request_threads(line, pipeline.serving.flags, int(machine.describe()["cores"]))
    return (declared, *(many for many in pipeline.tune.request_threads if many != declared))


def missing_flags(context: Context, line: Traffic, chosen: Configuration) -> dict[str, int]:
    """Return the flags that a configuration needs for such requests and that neither the declaration nor their default
    says."""
    declared = context.declaration.pipeline.serving.flags
    threads = profile.request_threads(line, declared, int(machine.describe()["cores"]))
    now = {**declared, profile.threads_flag(line): threads}
    return {
        flag: value
        for flag, value in chosen.flags.items()
        if flag in (profile.threads_flag(line), profile.INTRA_OP) and now.get(flag) != value
    }


def tune(context: Context, model: str, time_limit_s: float) -> Tuning:
    """Tune one model; write `serving/tuned.yaml` and the report's files.

    Raises GateFailed where no configuration holds the limits, or where the load generator was in the way of all.
    """
    clock, goal, line = Stopwatch(), goal_of(context), line_of(context, model)
    found = usable_profile(context, model)
    for doubt in profile.doubts(found, context.layout):
        console.say(f"  ! {doubt}", "yellow")
    operation_threads = (0, found.otherwise.threads) if found.otherwise else (0,)
    threads = request_threads(context, line)
    considered = predict.grid(found.machine["cores"], threads, line.batch, operation_threads=operation_threads)
    if goal.kind == "rate":
        least = _least(found, goal, considered, line.batch)
        if not any(goal.limits.hold(at) for at in least.values()):
            raise GateFailed(_unreachable(least, goal))
    with console.progress(f"simulates {len(considered)} configurations") as advance:
        ranked = predict.rank(Model.of(found), considered, goal, advance, line.batch, found.machine["cores"])
    if math.isnan(ranked[0].value):
        raise GateFailed(_unreachable(_least(found, goal, considered, line.batch), goal))
    named = {
        "off": Configuration(None, 1, threads[0]),
        "widespread": Configuration(WIDESPREAD, WIDESPREAD_THREADS, threads[0]),
        "declared": declared_configuration(context, model),
    }
    few = predict.worth_measuring(ranked, goal, context.declaration.pipeline.tune.candidates)
    chosen = list(dict.fromkeys([few[0], *named.values(), *few]))
    flags = repr(sorted(context.declaration.pipeline.serving.flags.items()))
    question = [found.model_digest, found.backend, machine.describe(), found.measured, repr(goal), line.line, flags]
    progress = Progress.at(workplace(context.layout, model) / "progress.json", files.digest(question))
    state = _State(context, model, line, goal, found, ranked, progress, clock, time_limit_s)
    skipped = _measure_all(state, chosen)
    judged = judge(progress.measured, goal)
    try:
        if not judged:
            raise GateFailed(_nothing_holds(progress.measured, goal, len(skipped)))
        best = decide(judged, goal)
        _refuse_if_outdone(progress.measured, best, goal)
    except GateFailed:
        if not skipped:  # that was a verdict, no interruption: the next run measures anew
            progress.path.unlink(missing_ok=True)
        raise
    done = Tuning(
        model,
        line,
        goal,
        found,
        len(considered),
        ranked,
        named,
        progress.measured,
        judged,
        best,
        skipped,
        clock.seconds,
    )
    folder = context.layout.root / "reports" / "tuning" / f"{model}-{datetime.date.today():%Y%m%d}"
    reporting.write(done, folder)
    _keep(context, done, folder)
    progress.path.unlink(missing_ok=True)
    return done


@dataclass(frozen=True)
class _State:
    context: Context
    model: str
    line: Traffic
    goal: Goal
    profile: profile.Profile
    ranked: Sequence[Expected]
    progress: Progress
    clock: Stopwatch
    time_limit_s: float


def _measure_all(state: _State, chosen: list[Configuration]) -> list[Configuration]:
    """Measure configurations, then the best of them again in the opposite order; return those that time ran out for."""
    skipped = []
    with console.progress(f"measures {len(chosen)} configurations of {state.model}") as advance:
        for number, one in enumerate(chosen):
            advance(number, len(chosen) + AGAIN)
            if not state.progress.of(one):
                if state.clock.seconds > state.time_limit_s:
                    skipped.append(one)
                    continue
                state.progress.add(_measure(state, one))
        best = [one.chosen for one in judge(state.progress.measured, state.goal)[:AGAIN]]
        for number, one in enumerate(reversed(best)):
            advance(len(chosen) + number, len(chosen) + AGAIN)
            if len(state.progress.of(one)) < 2 and state.clock.seconds < state.time_limit_s:
                state.progress.add(_measure(state, one))
    return skipped


def _measure(state: _State, chosen: Configuration) -> Measured:
    """Measure one configuration on a server of its own."""
    clock = Stopwatch()
    bench = Bench(state.context.declaration, workplace(state.context.layout, state.model) / "bench", [state.line])
    load = None
    if state.goal.kind != "rate":
        duration_s = max(RATE_S, profiling.Window.at(state.goal.rate_rps).load_s)
        load = {"loop": "open", "rate_rps": state.goal.rate_rps, "duration_s": duration_s}
    bench.declare({state.model: chosen.queue}, chosen.threads, chosen.flags, load)
    try:
        bench.launch()
        if state.goal.kind == "rate":
            measured = _measure_capacity(bench, state, chosen)
        else:
            measured = _measure_at_rate(bench, state, chosen)
    finally:
        bench.stop()
    return replace(measured, seconds=round(clock.seconds, 1))


def _measure_capacity(bench: Bench, state: _State, chosen: Configuration) -> Measured:
    guess = predict.capacity(
        Model.of(state.profile), chosen, state.goal.limits, _near(state.ranked), rows=state.line.batch
    )
    words = ["capacity", "--p99", f"{state.goal.limits.p99_s * 1e3:g}", "--start", f"{max(guess, 1.0):.0f}"]
    found = bench.outcome(*words, file=runfolder.CAPACITY)
    low, high = found["interval_rps"]
    probes = [(probe["rate_rps"], probe["p50_ms"], probe["p99_ms"], probe["share"]) for probe in found["probes"]]
    middle = math.sqrt(low * (high or low)) if low else None
    return Measured(chosen, middle, low, high or low, probes, found["limited"], found["run"], 0.0)


def _near(ranked: Sequence[Expected]) -> float:
    return ranked[0].value if ranked[0].value > 0 else 1000.0


def _measure_at_rate(bench: Bench, state: _State, chosen: Configuration) -> Measured:
    found = bench.outcome("loadtest", file=runfolder.SUMMARY)
    folder, totals = bench.layout.results(found["run"]), found["totals"]
    failed = failed_share(totals)
    missed = 1.0 if failed is None else failed
    probes = [(state.goal.rate_rps, totals["p50_ms"], totals["p99_ms"], missed)]
    holds = missed <= state.goal.limits.error_rate and totals["p99_ms"] is not None
    if state.goal.kind == "latency":
        value = totals["p99_ms"]
        spread = reporting.spread_by_second(folder)
    else:
        holds = holds and totals["p99_ms"] <= state.goal.limits.p99_s * 1e3
        value = 100 * _server_cores(folder) / int(state.profile.machine["cores"])
        spread = 0.03 * value  # processor time is counted in ticks of 10 ms, over some seconds
    low, high = (value - spread, value + spread) if holds else (None, None)
    limited = found["generator"]["why"]
    return Measured(chosen, value if holds else None, low, high, probes, limited, found["run"], 0.0)


def _server_cores(run: Path) -> float:
    """Return how many cores the server used over a run, on average of its seconds."""
    known = [cores for _, cores, *_ in files.read_json(run / runfolder.SERVER)["use"] if cores is not None]
    if not known:
        raise EnvironmentFault("the server's processor time cannot be seen from here", str(run))
    return sum(known) / len(known)


def judge(measured: Sequence[Measured], goal: Goal) -> list[Judged]:
    """Return each configuration that holds with all its measurements as one, the best first.

    A measurement in which the load generator was in the way says nothing of the server and is not used.
    """
    judged = []
    for chosen in dict.fromkeys(one.chosen for one in measured):
        used = [one for one in measured if one.chosen == chosen and one.value is not None and not one.limited]
        values = [one.value for one in used if one.value is not None]
        if values:
            low = min(one.low for one in used if one.low is not None)
            high = max(one.high for one in used if one.high is not None)
            middle = math.exp(sum(map(math.log, values)) / len(values))
            judged.append(Judged(chosen, middle, low, high, tuple(one.run for one in used)))
    return sorted(judged, key=lambda one: -one.value if goal.higher_is_better else one.value)


def decide(judged: Sequence[Judged], goal: Goal) -> Judged:
    """Return the best by measured value; of those that are as good within SAME, the plainest."""
    best = judged[0]
    as_good = [one for one in judged if abs(one.value - best.value) <= SAME * best.value]
    return min(as_good, key=lambda one: one.chosen.plainness)


def _refuse_if_outdone(measured: Sequence[Measured], best: Judged, goal: Goal) -> None:
    """Raise GateFailed where a configuration that was not used, for the generator's sake, held a higher rate."""
    more = [one for one in measured if one.limited and one.low and goal.kind == "rate" and one.low > best.high]
    if more:
        what = f"{more[0].chosen.title} held {more[0].low:,.0f} requests/s, but the load generator was in the way"
        raise GateFailed(
            f"{what}: nothing is decided", fix="leave the machine to the measurement, or load it from another"
        )


def _unreachable(tried: Mapping[Configuration, Result], goal: Goal) -> list[Problem]:
    """Return that no configuration holds the limits in simulation, with the one that comes nearest."""
    nearest = min(tried, key=lambda one: tried[one].percentile_ms(99))
    p99_ms, rate = tried[nearest].percentile_ms(99), _least_rate(goal)
    what = f"no configuration is expected to hold p99 of {goal.limits.p99_s * 1e3:g} ms at {rate:g} requests/s"
    return [Problem(what, fix=f"the nearest is {nearest.title}: p99 {p99_ms:.1f} ms; nothing was measured")]


def _least_rate(goal: Goal) -> float:
    return goal.rate_rps if goal.kind == "resource" else 1.0


def _least(
    found: profile.Profile, goal: Goal, considered: Sequence[Configuration], rows: int
) -> dict[Configuration, Result]:
    """Return what becomes of the least that is asked: the declared rate where there is one, else a request a second."""
    model = Model.of(found)
    wait_free = [one for one in considered if one.queue is None or one.queue.batch_timeout_micros == 0]
    return {one: model.at(one, _least_rate(goal), 2000, rows) for one in wait_free}


def _nothing_holds(measured: Sequence[Measured], goal: Goal, skipped: int) -> list[Problem]:
    """Return why no measurement can be used: time, the load generator, or limits, with the nearest."""
    if not measured:
        return [Problem("the time was over before anything was measured", "tune.time_limit_s", "allow more")]
    limited = [one for one in measured if one.limited]
    if limited and all(one.limited or one.value is None for one in measured):
        return [
            Problem(
                f"the load generator was in the way of every measurement: {limited[0].limited}",
                fix="generate the load on another machine, or leave it more of this one",
            )
        ]
    seen = [(p99, rate, one.chosen) for one in measured for rate, _, p99, _ in one.probes if p99 is not None]
    nearest = min(seen, key=lambda one: one[0]) if seen else None
    what = f"no configuration holds p99 of {goal.limits.p99_s * 1e3:g} ms"
    if skipped:
        what = f"the time was over with {skipped} to measure, and so far {what}"
    shown = (
        f"the nearest is {nearest[2].title}: p99 {nearest[0]:.1f} ms at {nearest[1]:,.0f} requests/s" if nearest else ""
    )
    return [Problem(what, fix=shown)]


def _keep(context: Context, done: Tuning, folder: Path) -> None:
    """Write the tuned parameters, and keep the runs that they rest on beside the report."""
    best, layout = done.best, context.layout
    results = workplace(layout, done.model) / "bench" / "loadtests" / "results"
    for run in dict.fromkeys(one.run for one in done.measured):
        for name in (runfolder.CAPACITY, runfolder.SUMMARY):
            if (results / run / name).exists():
                files.copy(results / run / name, folder / "runs" / run / name)
    evidence = {
        "goal": done.goal.kind,
        "p99_ms": done.goal.limits.p99_s * 1e3,
        "rate_rps": done.goal.rate_rps or None,
        "value": round(best.value, 2),
        "interval": [round(best.low, 2), round(best.high, 2)],
        "unit": done.goal.unit,
        "traffic": done.line.model_dump(mode="json"),
        "model_digest": done.profile.model_digest,
        "backend": done.profile.backend,
        "machine": machine.describe(),
        "runs": list(best.runs),
        "flags": missing_flags(context, done.line, best.chosen),
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "report": layout.relative(folder / "report.md"),
    }
    changed = tuned.write(layout, done.model, best.chosen.queue, best.chosen.threads, evidence)
    shutil.rmtree(results, ignore_errors=True)
    if changed:
        _note(context, done, changed, folder)


def _note(context: Context, done: Tuning, changed: dict[str, tuple[Any, Any]], folder: Path) -> None:
    """Note what was found where it differs from what was tuned before, beside what the declared parameters gave."""
    best, goal = done.best, done.goal
    shown = [one for one in done.judged if one.chosen in (best.chosen, done.named["declared"])]
    names = [f"{done.name(one.chosen) or 'found'}: {one.chosen.title}" for one in shown]
    rows = [
        f"| {name} | {one.value:,.1f} | {one.low:,.1f} to {one.high:,.1f} |"
        for name, one in zip(names, shown, strict=True)
    ]
    table = "\n".join([f"| measured | {goal.unit} | interval |", "| --- | ---: | ---: |", *rows])
    report = context.layout.relative(folder / "report.md")
    link = f"[Report](../../{report}). Obeyed where pipeline.yaml says `batching: tuned`."
    why = f"best of {len(done.judged)} measured configurations: {reporting.goal_in_words(done)}"
    title = f"{done.model}: {best.chosen.title}"
    notes.record(context.declaration, "tune", changed, why, title=title, evidence=f"{table}\n\n{link}")
