"""`invoke capacity`: the capacity search against the launched server, with its evidence in a run folder."""

from __future__ import annotations

import datetime
import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from launchpad import console, drawing, files, machine
from launchpad.backends import how_ended
from launchpad.errors import DeclarationError, EnvironmentFault, GateFailed
from launchpad.loadtest import generator, summary
from launchpad.loadtest.capacity import HIGHEST_RPS, LOWEST_RPS, Capacity, Misses, Probe, search
from launchpad.loadtest.cores import apart
from launchpad.loadtest.latencies import unpacked
from launchpad.loadtest.stage import new_run, refuse_absent
from launchpad.loadtest.summary import FULL_CPU, generator_health
from launchpad.runfolder import CAPACITY, RESPONSE, SERVICE
from launchpad.server import Server
from launchpad.spec import OpenLoop, Traffic
from launchpad.stage import Context, Stopwatch

PROTOCOLS = get_args(Traffic.model_fields["protocol"].annotation)
CHART = "capacity.svg"
PROBE_S = 12.0
"""Longest a probe lasts; most are clear sooner."""
START_RPS = 200.0
NEAR_STEP = 1.1
"""First step of a search that is told where to begin."""
TIME_LIMIT_S = 240.0


Lines = Collection[dict[str, Any]]
"""What a process, or all of them, recorded of each line of traffic in a second."""


@dataclass
class _Observer:
    """Counts a probe's misses as its seconds come in, and ends it when they are clear.

    The first second, in which connections are opened, does not count. A second counts when all `processes` have handed
    it over. `misses` counts from when requests were due; `of_server` from when they were sent, and those that no
    connection was free for. Of the last part, handed over after all answers that come have come, what failed counts:
    requests that were never answered are in no second.
    """

    objective_us: float
    processes: int = 1
    misses: Misses = field(default_factory=Misses)
    of_server: Misses = field(default_factory=Misses)
    failures: int = 0
    _handed_over: defaultdict[int, list[Lines]] = field(default_factory=lambda: defaultdict(list))

    def __call__(self, part: dict[str, Any]) -> bool:
        if part["second"] == 0:
            return True
        if part["last"]:
            if self.misses.clear is None:
                self._count(part["lines"].values(), last=True)
            return True
        parts = self._handed_over[part["second"]]
        parts.append(part["lines"].values())
        if len(parts) == self.processes:
            self._count([line for lines in self._handed_over.pop(part["second"]) for line in lines])
        return self.misses.clear is None

    def _count(self, lines: Lines, last: bool = False) -> None:
        failures = sum(many for line in lines for _, _, many in line["failures"])
        answering = [] if last else lines
        sent = failures + sum(line["answered"] for line in answering)
        if sent:
            held = sum(line["held"] for line in answering)
            self.failures += failures
            self.misses.seconds.append((sent, failures + self._late(answering, RESPONSE)))
            self.of_server.seconds.append((sent, min(sent, failures + held + self._late(answering, SERVICE))))

    def _late(self, lines: Lines, kind: str) -> int:
        kept = (unpacked(line["latencies"][kind]) for line in lines if kind in line["latencies"])
        return sum(int((latencies_us > self.objective_us).sum()) for latencies_us in kept)

    def in_the_way(self, health: dict[str, Any]) -> str:
        """Return why the generator was in the way; empty where it was not.

        Lateness alone does not tell: on cores that they share, a server that cannot keep up makes its generator late.
        Where requests miss from when they were sent, too, and the generator had time to spare, it is the server.
        """
        spare = health["cpu"] is not None and health["cpu"] < FULL_CPU
        return "" if spare and self.of_server.clear is False else health["why"]


def traffic_of(context: Context, model: str | None, signature: str | None, protocol: str) -> tuple[Traffic, ...]:
    """Return the traffic to search with: one model's signature, or without a model that of the default profile.

    Raises DeclarationError for a model or signature that is not declared, and for a protocol that is off.
    """
    pipeline = context.declaration.pipeline
    if model is None:
        return pipeline.traffic(pipeline.loadtest.profiles[context.profile or pipeline.loadtest.profile])
    if model not in pipeline.models:
        raise DeclarationError(f"there is no model {model!r}", fix=f"declared: {', '.join(pipeline.models)}")
    known = pipeline.models[model].signatures
    signature = signature or next(iter(known))
    if signature not in known:
        raise DeclarationError(f"{model} has no signature {signature!r}", fix=f"declared: {', '.join(known)}")
    if not pipeline.serving.ports.of(protocol):
        place = context.declaration.where("serving", "ports")
        raise DeclarationError(f"{protocol} is off", place, "give it a port, or ask over the other protocol")
    return (Traffic(model=model, signature=signature, protocol=protocol),)  # type: ignore[arg-type]


def measure(
    context: Context, traffic: tuple[Traffic, ...], p99_ms: float, start_rps: float | None = None
) -> tuple[Capacity, Path]:
    """Search the capacity for some traffic; return it and the folder of its evidence.

    start_rps: a rate that is expected to be near it.

    Raises EnvironmentFault if the server does not answer or ends, GateFailed if no rate holds.
    """
    server = Server.ready(context.layout)
    refuse_absent(server)
    run = new_run()
    folder = context.layout.results(run)
    folder.mkdir(parents=True)
    clock = Stopwatch()
    probes: list[Probe] = []
    with console.progress("capacity") as advance, apart(server, context.processes):

        def probe(rate: float) -> Probe:
            advance(min(clock.seconds, TIME_LIMIT_S), TIME_LIMIT_S)
            result = _probe(context, server, traffic, rate, p99_ms, folder / "probes" / f"{len(probes):02d}")
            probes.append(result)
            return result

        found = search(probe, start_rps, NEAR_STEP) if start_rps else search(probe, START_RPS)
    _keep(context, server, run, traffic, p99_ms, found, folder, clock.seconds)
    if found.low_rps is None:
        least = found.probes[-1]
        failed = f", {least.failed:.2%} fail" if least.failed > least.tolerated else ""
        raise GateFailed(
            f"no rate holds p99 of {p99_ms:g} ms, not even {least.rate_rps:g} requests/s{failed}", f"run {run}"
        )
    return found, folder


def _probe(
    context: Context, server: Server, traffic: tuple[Traffic, ...], rate: float, p99_ms: float, folder: Path
) -> Probe:
    folder.mkdir(parents=True)
    profile = OpenLoop(loop="open", rate_rps=rate, duration_s=PROBE_S, traffic=traffic, seed=int(rate))
    observer, ending = _Observer(p99_ms * 1000, context.processes), generator.Ending()
    clock, before = Stopwatch(), machine.usage(server.pid)
    generator.drive(context.layout, lambda: how_ended(server), profile, context.processes, folder, ending, observer)
    after, seconds = machine.usage(server.pid), clock.seconds
    if ending.status != "completed":
        raise EnvironmentFault(ending.why, context.layout.relative(folder))
    measured = summary.of_folder(folder, {line.line: line.model for line in traffic}, ending.measured_s)["totals"]
    health = generator_health(folder, context.processes, ending.cpu, ending.held)
    low, high = observer.misses.interval()
    return Probe(
        rate_rps=round(rate, 1),
        measured_s=round(ending.measured_s, 1),
        sent=observer.misses.sent,
        share=observer.misses.share,
        low=low,
        high=high,
        p50_ms=measured["p50_ms"],
        p99_ms=measured["p99_ms"],
        limited=observer.in_the_way(health),
        mean_ms=measured["mean_ms"],
        server_cores=_cores(before, after, ending.measured_s, seconds),
        failed=observer.failures / max(1, observer.misses.sent),
        tolerated=context.declaration.pipeline.objectives.tolerated_errors,
    )


def _cores(
    before: machine.Usage | None, after: machine.Usage | None, measured_s: float, seconds: float
) -> float | None:
    """Return how many cores the server used while it was asked; what it uses idle is little beside it."""
    if before is None or after is None or not measured_s:
        return None
    return round((after.cpu_s - before.cpu_s) / min(measured_s, seconds), 3)


def _keep(
    context: Context,
    server: Server,
    run: str,
    traffic: tuple[Traffic, ...],
    p99_ms: float,
    found: Capacity,
    folder: Path,
    seconds: float,
) -> None:
    used = machine.usage(server.pid)
    document = {
        "run": run,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "objective": {
            "p99_ms": p99_ms,
            "error_rate": context.declaration.pipeline.objectives.tolerated_errors,
        },
        "capacity_rps": found.low_rps,
        "interval_rps": [found.low_rps, found.high_rps],
        "limited": found.limited,
        "seconds": round(seconds, 1),
        "traffic": [line.model_dump(mode="json") for line in traffic],
        "configuration": server.configuration,
        "models": {name: files.digest(files.tree(context.layout.versions(name))) for name in server.models},
        "server": asdict(server),
        "server_peak_mib": round(used.peak_mib, 1) if used else None,
        "machine": machine.describe(),
        "probes": [asdict(probe) for probe in found.probes],
    }
    files.write_json(folder / CAPACITY, document)
    files.write_text(folder / CHART, drawing.on_paper(drawing.svg(_chart, (found, p99_ms), "Latency by rate")))


def _chart(axes: Any, drawn: tuple[Capacity, float]) -> None:
    found, p99_ms = drawn
    probes = sorted((probe for probe in found.probes if probe.p99_ms), key=lambda probe: probe.rate_rps)
    rates = [probe.rate_rps for probe in probes]
    for label, values in (("p50", [p.p50_ms for p in probes]), ("p99", [p.p99_ms for p in probes])):
        axes.plot(rates, values, marker="o", markersize=3, label=label)
    axes.axhline(p99_ms, color=drawing.RED, linestyle="--", linewidth=1, label="objective for p99")
    if found.low_rps and found.high_rps:
        axes.axvspan(found.low_rps, found.high_rps, alpha=0.2, label="capacity")
    axes.set(xlabel="requests/s due", ylabel="ms", xscale="log", yscale="log")


def show(
    context: Context,
    model: str | None,
    signature: str | None,
    protocol: str,
    p99_ms: float | None,
    start_rps: float | None = None,
) -> None:
    """Search, and print every probe and what was found.

    Raises DeclarationError without an objective, for numbers that are none, and for an unknown protocol.
    """
    for option, value, unit in (("p99", p99_ms, "ms"), ("start", start_rps, "requests/s")):
        if value is not None and not 0 < value < math.inf:
            raise DeclarationError(f"--{option} {value:g} is none", fix=f"give {unit}, more than 0")
    if start_rps is not None and not LOWEST_RPS <= start_rps <= HIGHEST_RPS:
        raise DeclarationError(f"--start {start_rps:g} is none", fix=f"give {LOWEST_RPS:g} to {HIGHEST_RPS:,.0f}")
    if protocol not in PROTOCOLS:
        raise DeclarationError(f"there is no protocol {protocol!r}", fix=f"known: {', '.join(PROTOCOLS)}")
    objective = p99_ms or context.declaration.pipeline.objectives.p99_ms
    if objective is None:
        raise DeclarationError(
            "no p99 to hold", context.declaration.where("objectives"), "declare p99_ms or give --p99"
        )
    found, folder = measure(context, traffic_of(context, model, signature, protocol), objective, start_rps)
    columns = ("rate /s", "seconds", "requests", "missed", "95 % interval", "p50 ms", "p99 ms", "")
    rows = [
        (
            f"{probe.rate_rps:,.0f}",
            f"{probe.measured_s:.1f}",
            f"{probe.sent:,}",
            f"{probe.share:.2%}",
            f"{probe.low:.2%} to {probe.high:.2%}",
            probe.p50_ms,
            probe.p99_ms,
            "holds" if probe.holds else "does not hold",
        )
        for probe in found.probes
    ]
    console.table("Probes", columns, rows, right=columns[:-1])
    above = f", {found.high_rps:,.0f} does not" if found.high_rps else ""
    console.say(f"capacity: {found.low_rps:,.0f} requests/s hold p99 of {objective:g} ms{above}", "bold")
    if found.limited:
        console.say(f"  ! a lower bound: above it the generator was in the way ({found.limited})", "yellow")
    console.say(f"  {context.layout.relative(folder)}")
