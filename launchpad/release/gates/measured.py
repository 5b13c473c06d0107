"""Gates on the running server: cold start, objectives, regression, capacity. Each keeps the run it was judged by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from launchpad import files, pipeline
from launchpad.compare import differences, unlike
from launchpad.errors import EnvironmentFault
from launchpad.gates import Gate
from launchpad.release.candidate import Candidate, Finding, not_run
from launchpad.runfolder import CAPACITY, SUMMARY
from launchpad.stage import Context

PERCENTILES = (50.0, 99.0)
"""Percentiles that must not get worse."""


def cold_start(candidate: Candidate) -> Finding:
    """No first request after a fresh start meets a cold server."""
    pipeline.stage("launch").run(replace(candidate.context, force=True))
    pipeline.stage("warmup").run(candidate.context)
    rows = (files.read_json(candidate.layout.warmup_result) or {}).get("warmed", [])
    known = [row for row in rows if row["first_ms"] and row["steady_ms"]]
    if not known:
        return not_run("first requests that met a cold server", "no first request was answered")
    worst = max(known, key=lambda row: row["first_ms"] / row["steady_ms"])
    cold = [row for row in known if row["met_cold_server"]]
    written, published = candidate.keep("warmup.json")
    files.write_json(written, rows)
    notes = [
        f"slowest against its steady median: {worst['model']} {worst['signature']} over {worst['protocol']}, "
        f"{worst['first_ms']:.1f} ms against {worst['steady_ms']:.1f} ms"
    ]
    return Finding([Gate("first requests that met a cold server", len(cold), "<=", 0)], [published], notes)


def objectives(candidate: Candidate) -> Finding:
    """Every declared objective holds under the release profile."""
    run, summary = load(candidate, "objectives")
    pipeline.stage("report").run(replace(candidate.context, run=run))
    evidence = [candidate.layout.results(run) / SUMMARY, candidate.layout.report(run) / "report.html"]
    refused = _unusable(summary)
    if refused:
        return Finding([Gate("objectives", None, "<=", None, why=refused)], evidence)
    candidate.measured = summary
    gates = [Gate(**{key: value for key, value in row.items() if key != "passed"}) for row in summary["objectives"]]
    if not gates:
        return not_run("objectives", "none is declared")
    totals = summary["totals"]
    notes = [f"{totals['requests']:,} requests, {totals['throughput_rps']:,.0f}/s, {summary['profile']['title']}"]
    return Finding(gates, evidence, notes)


def regression(candidate: Candidate) -> Finding:
    """No model's latency is surely worse than in the previous release by more than the limit.

    The lower end of the bootstrap interval of the difference is held against the limit, so noise is no regression.
    """
    what = "p99 surely slower"
    if candidate.previous is None:
        return not_run(what, "there is no previous release to compare with")
    if candidate.measured is None:
        return not_run(what, "the run under the release profile cannot be judged")
    version, earlier = candidate.previous["version"], candidate.previous["runs"].get("objectives", "")
    before = files.read_json(candidate.layout.results(earlier) / SUMMARY)
    if before is None:
        return not_run(what, f"the run of release {version}, {earlier or 'none'}, is not here any more")
    differing = unlike(before, dict(candidate.measured), ("profile", "traffic", "machine", "backend"))
    if differing:
        return not_run(what, f"the run of release {version} was not alike: {differing}")
    now = candidate.runs["objectives"]
    rows = differences(candidate.layout, {earlier: before, now: dict(candidate.measured)})
    gates, notes = [], [f"against release {version}, run {earlier}; limit on the sure part of the difference"]
    for row in rows:
        if row.percentile in PERCENTILES:
            name = f"p{row.percentile:g} of {row.scope} surely slower"
            gates.append(Gate(name, row.low_ms / row.before_ms, "<=", candidate.pipeline.release.regression))
            notes.append(
                f"p{row.percentile:g} of {row.scope}: {row.before_ms:.1f} → {row.after_ms:.1f} ms, "
                f"{row.low_ms:+.2f} to {row.high_ms:+.2f} ms: {row.verdict}"
            )
    folders = [candidate.layout.results(run) for run in (earlier, now)]
    return Finding(gates, folders, notes) if gates else not_run(what, "the runs have no model in common")


def capacity(candidate: Candidate) -> Finding:
    """The highest rate of random arrivals at which p99 holds is at least the declared one."""
    from launchpad.loadtest.probing import measure, traffic_of

    release, objective = candidate.pipeline.release, candidate.pipeline.objectives
    target = release.capacity_rps or objective.throughput_rps
    if objective.p99_ms is None or target is None:
        return not_run("capacity", "it needs objectives.p99_ms and release.capacity_rps, or objectives.throughput_rps")
    context = replace(candidate.context, profile=candidate.profile)
    found, folder = measure(context, traffic_of(context, None, None, "rest"), objective.p99_ms)
    candidate.runs["capacity"] = folder.name
    above = f"{found.high_rps:,.0f} requests/s do not hold" if found.high_rps else "no rate was met that does not hold"
    notes = [f"p99 of {objective.p99_ms:g} ms; {above}"]
    if found.limited:
        notes.append(f"a lower bound: above it the generator was in the way ({found.limited})")
    return Finding([Gate("capacity", found.low_rps, ">=", target, "requests/s")], [folder / CAPACITY], notes)


def load(candidate: Candidate, purpose: str, duration_s: float | None = None) -> tuple[str, dict[str, Any]]:
    """Put the release profile on the server; return the run's id and summary. Raises EnvironmentFault without one."""
    from launchpad.loadtest.stage import new_run

    run = new_run()
    context: Context = replace(candidate.context, profile=candidate.profile, duration_s=duration_s, run=run)
    pipeline.stage("loadtest").run(context)
    summary = files.read_json(candidate.layout.results(run) / SUMMARY)
    if summary is None:
        raise EnvironmentFault(
            "the load test left no summary", candidate.layout.relative(candidate.layout.results(run))
        )
    candidate.runs[purpose] = run
    return run, summary


def _unusable(summary: dict[str, Any]) -> str:
    """Say why a run proves nothing of the server; empty when it does."""
    if summary["status"] != "completed":
        return f"the run {summary['status']}: {summary['why']}"
    return f"the run is generator-limited: {summary['generator']['why']}" if summary["generator"]["limited"] else ""
