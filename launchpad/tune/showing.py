"""What `invoke profile`, `invoke tune` and `invoke tune --explain` print."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from pydantic import ValidationError

from launchpad import console, declaration, tuned
from launchpad.errors import DeclarationError
from launchpad.spec import Batching, BatchQueue
from launchpad.stage import Context
from launchpad.tune import predict, profile, reporting, tuning
from launchpad.tune.predict import Configuration, Model

RATES = (0.25, 0.5, 0.75, 0.9, 1.1)
"""Shares of the expected capacity at which a configuration is explained."""


def show_profile(context: Context, model: str | None) -> None:
    """Measure and print the profile of models."""
    for name in tuning.models_of(context, model):
        found = tuning.measure_profile(context, name)
        rows = [
            (size, f"{alone * 1e3:.3f}", f"{low * 1e3:.3f} to {high * 1e3:.3f}", f"{found.batch_s[size] * 1e3:.3f}")
            for size, alone, (low, high) in zip(found.sizes, found.run_s, found.spread_s, strict=True)
        ]
        columns = ("rows", "run alone ms", "quartiles", "right after another ms")
        console.table(f"{found.traffic.line} on {found.backend}", columns, rows, right=columns)
        for what, seconds in (
            ("a request outside its run, under full load", found.front_s),
            ("a request adds to a batch of 16, or saves", found.task_s[16]),
            ("a request adds to a batch of 64, or saves", found.task_s[64]),
            ("a request that comes while many are in flight costs more", found.crowd_s),
            ("a run takes more where the last one is long ago, of one row", found.cold_s[1]),
            ("of that comes back after so long, all but 1/e", found.cool_s),
            ("a request that comes while nothing is under way costs more", found.wake_s),
            ("a turn of the event loop, shared by what is read in it", found.turn_s),
            ("a batch that is handed to a thread takes more", found.thread_s),
            ("the load generator, a request under full load", found.full.generator_s),
        ):
            console.say(f"  {seconds * 1e6:6.1f} µs  {what}")
        console.say(f"  {found.batch_cores:6.2f} cores kept busy by a large batch; measured in {found.seconds:.0f} s")
        for doubt in profile.doubts(found, context.layout):
            console.say(f"  ! {doubt}", "yellow")
        console.say(f"  {context.layout.relative(context.layout.service_profile(name))}")


def show_tuning(context: Context, model: str | None) -> None:
    """Tune models, print what was measured and what was found."""
    names = tuning.models_of(context, model)
    limit_s = context.declaration.pipeline.tune.time_limit_s / len(names)
    for name in names:
        done = tuning.tune(context, name, limit_s)
        columns = ("configuration", "", f"measured {done.goal.unit}", "interval", "expected", "difference")
        rows = [tuple(cell.replace("*", "") for cell in row) for row in reporting.rows(done)]
        console.table(f"{name}: {reporting.goal_in_words(done)}", columns, rows, right=columns[2:])
        console.say(reporting.why(done))
        for doubt in reporting.doubts(done):
            console.say(f"  ! {doubt}", "yellow")
        for flag, value in tuning.missing_flags(context, done.line, done.best.chosen).items():
            console.say(f"  ! it was measured with {flag} {value}: declare it in serving.flags", "yellow")
        if done.skipped:
            console.say(f"  ! time was over before {len(done.skipped)} configurations were measured", "yellow")
        console.say(f"  {done.seconds / 60:.1f} min; reports/tuning/, {context.layout.relative(context.layout.tuned)}")
    if not _obeyed(context):
        console.say("  pipeline.yaml does not say `batching: tuned`: nothing changes before it does", "yellow")


def _obeyed(context: Context) -> bool:
    pipeline = context.declaration.pipeline
    return pipeline.serving.batching == "tuned" or any(one.batching == "tuned" for one in pipeline.models.values())


def show_explanation(context: Context, model: str | None, parameters: str) -> None:
    """Print what the simulator expects of a configuration at some rates, and what bounds it.

    parameters: YAML such as `{max_batch_size: 16, num_batch_threads: 2}` or `off`; what is declared unless given.
    Raises DeclarationError for parameters that are none, EnvironmentFault for a model without a profile.
    """
    for name in tuning.models_of(context, model):
        found = profile.load(context.layout, name)
        chosen = parse(parameters, tuning.request_threads(context, found.traffic)[0]) if parameters else None
        explain(context, found, chosen or tuning.declared_configuration(context, name))
        kept = context.layout.relative(context.layout.service_profile(name))
        console.say(f"  costs of {found.measured[:10]} ({kept}); `invoke tune` tries whether they still hold")
        for doubt in [*profile.doubts(found, context.layout), *tuned.doubts(context.declaration)]:
            console.say(f"  ! {doubt}", "yellow")


def parse(text: str, request_threads: int) -> Configuration:
    """Return the configuration that a YAML text names. Raises DeclarationError for one that names none."""
    try:
        value: Any = declaration.value("--parameters", text)
        if value in (False, "off"):
            return Configuration(None, 1, request_threads)
        batching = Batching.model_validate_json(json.dumps(value))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise DeclarationError(f"{text!r} are no batching parameters: {faults}") from None
    except TypeError:
        raise DeclarationError(
            f"{text!r} is no YAML", fix="such as '{max_batch_size: 16, num_batch_threads: 2}'"
        ) from None
    queue = BatchQueue.model_validate(batching.model_dump(include=set(BatchQueue.model_fields)))
    return Configuration(queue, batching.num_batch_threads, request_threads)


def explain(context: Context, found: profile.Profile, chosen: Configuration) -> None:
    goal, model, rows = tuning.goal_of(context), Model.of(found), found.traffic.batch
    rate_goal = predict.Goal("rate", goal.limits)
    expected = predict.expected(model, chosen, rate_goal, rows=rows)
    if math.isnan(expected.value):
        console.say(
            f"{found.traffic.line}, {chosen.title}: no rate holds p99 of {goal.limits.p99_s * 1e3:g} ms", "bold"
        )
        return
    lines = []
    for share in RATES:
        rate = share * expected.value
        result = model.at(chosen, rate, predict.FINE_REQUESTS, rows)
        waited = result.queued_s[~np.isnan(result.latency_s)].mean() * 1e3
        lines.append(
            (
                f"{rate:,.0f}",
                f"{result.percentile_ms(50):.2f}",
                f"{result.percentile_ms(99):.2f}",
                f"{waited:.2f}",
                f"{result.mean_batch:.1f}",
                f"{result.thread_use:.0%}" if chosen.queue else "",
                f"{result.processor_use:.0%}",
                f"{result.generator_use:.0%}",
                f"{result.refused_share:.2%}",
            )
        )
    columns = (
        *("requests/s", "p50 ms", "p99 ms", "waits for its batch ms", "rows a batch", "batch threads", "cores"),
        *("generator", "refused"),
    )
    console.table(f"{found.traffic.line}, {chosen.title}, by simulation", columns, lines, right=columns)
    console.say(
        f"capacity: {expected.value:,.0f} requests/s ({expected.low:,.0f} to {expected.high:,.0f}, were costs "
        f"{predict.DOUBT:.0%} higher or lower) hold p99 of {goal.limits.p99_s * 1e3:g} ms",
        "bold",
    )
    console.say(f"  {bound(found, chosen, model.at(chosen, 0.95 * expected.value, predict.FINE_REQUESTS, rows))}")


def bound(found: profile.Profile, chosen: Configuration, result: Any) -> str:
    """Return in words what bounds the rate: the queue's bound, batch threads, cores, or the request work."""
    batches = f"a batch has {predict.mean_sizes(result)}; " if chosen.queue else ""
    if result.refused_share > 0.001:
        return f"{batches}the queue's bound refuses requests: max_enqueued_batches is low for bursts"
    if result.processor_use + result.generator_use / found.machine["cores"] > 0.9:
        return f"{batches}the cores are all in use; the generator has {result.generator_use:.0%} of one"
    if chosen.queue and result.thread_use > 0.9:
        return f"{batches}the batch threads are always busy"
    added = found.task_s[min(round(result.mean_batch), len(found.task_s) - 1)] if len(result.batch_rows) else 0.0
    front = found.front_s + added
    return f"{batches}reading and answering, {front * 1e6:.0f} µs a request, keep the request work at its limit"
