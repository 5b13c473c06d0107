"""The capacity result that manifests and plans follow from: the newest that is for these models and this machine.

`invoke capacity` leaves results in run folders; `invoke manifests` keeps the one that it used as `k8s/capacity.json`,
so that a fresh clone renders the same files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchpad import files, machine
from launchpad.errors import EnvironmentFault, Problem
from launchpad.layout import Layout
from launchpad.runfolder import CAPACITY
from launchpad.stage import Context

KEPT = (
    "run",
    "made",
    "objective",
    "capacity_rps",
    "interval_rps",
    "limited",
    "traffic",
    "models",
    "machine",
    "server",
    "server_peak_mib",
    "probes",
)
"""What `k8s/capacity.json` keeps of a result; of the server its backend and its load time."""
MAKE_ONE = "run `invoke launch`, then `invoke capacity`"


@dataclass(frozen=True)
class Probed:
    """A rate of Poisson arrivals at one server, and the latency that it met."""

    rate_rps: float
    mean_ms: float
    p50_ms: float
    p99_ms: float
    server_cores: float | None


@dataclass(frozen=True)
class Measured:
    """What one server was found to hold.

    capacity_rps: highest rate at which p99 was held; p99_ms: that objective.
    ready_s: from its start to every model AVAILABLE. cores: processor that it used at capacity; None where not known.
    peak_mib: most memory that it held. traffic: what was asked.
    despite: reasons for which the result was not to be used, and was with --force.
    """

    run: str
    made: str
    capacity_rps: float
    p99_ms: float
    ready_s: float
    cores: float | None
    peak_mib: float | None
    machine: Mapping[str, Any]
    backend: str
    limited: str
    probes: tuple[Probed, ...]
    traffic: tuple[Mapping[str, Any], ...] = ()
    despite: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The machine, in a few words."""
        return f"{self.machine['processor']}, {self.machine['cores']} cores, {self.backend} server"


def read(document: Mapping[str, Any], where: str) -> Measured:
    """Return a result. Raises EnvironmentFault if it lacks what is needed, such as one of an older version."""
    try:
        probes = [probe for probe in document["probes"] if probe["p99_ms"] is not None]
        rates = tuple(
            Probed(p["rate_rps"], p["mean_ms"], p["p50_ms"], p["p99_ms"], p["server_cores"])
            for p in sorted(probes, key=lambda probe: probe["rate_rps"])
        )
        held = [probe for probe in rates if probe.rate_rps <= document["capacity_rps"] * 1.001]
        return Measured(
            run=document["run"],
            made=document["made"],
            capacity_rps=float(document["capacity_rps"]),
            p99_ms=float(document["objective"]["p99_ms"]),
            ready_s=float(document["server"]["ready_s"]),
            cores=held[-1].server_cores if held else None,
            peak_mib=document["server_peak_mib"],
            machine=document["machine"],
            backend=document["server"]["backend"],
            limited=document["limited"],
            probes=rates,
            traffic=tuple(document.get("traffic", ())),
            despite=tuple(document.get("despite", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EnvironmentFault(
            f"is no whole capacity result ({type(error).__name__} {error})", where, MAKE_ONE
        ) from None


def latest(context: Context, force: bool = False) -> tuple[Measured, dict[str, Any]]:
    """Return the newest capacity result for the declared traffic and objective, and what to keep of it.

    The kept one counts as well; it was accepted when it was kept, so its machine is not asked for again. A result that
    is only a lower bound says nothing against a higher one for the same models, machine and backend: that one stands.
    Raises EnvironmentFault where there is none, or where the newest is of other models or another machine: `force`
    takes that one all the same, and the result says so.
    """
    layout = context.layout
    kept_path = layout.kubernetes_capacity
    kept = files.read_mapping(kept_path)
    found = [*_results(context), *([(kept_path, kept)] if kept and not _asked_otherwise(kept, context) else [])]
    if not found:
        raise EnvironmentFault("no capacity has been measured for the declared traffic and objective", fix=MAKE_ONE)
    found.sort(key=lambda pair: (pair[1]["made"], pair[0] == kept_path), reverse=True)
    path, document = next((pair for pair in found if _stands_against(pair[1], found[0][1])), found[0])
    where = layout.relative(path)
    reasons = [reason for reason in _other_models(document, layout) if reason not in document.get("despite", ())]
    if path != kept_path:
        reasons += _other_machine(document)
        document = kept_of(document)
    if reasons and not force:
        fix = f"{MAKE_ONE} here, or take it all the same with --force"
        raise EnvironmentFault([Problem(reason, where, fix) for reason in reasons])
    if reasons:
        document = {**document, "despite": sorted({*document.get("despite", ()), *reasons})}
    return read(document, where), document


def _stands_against(older: Mapping[str, Any], newest: Mapping[str, Any]) -> bool:
    """Tell whether a newer result is a mere lower bound, and an older one of the same server is above it."""
    same = all(older.get(name) == newest.get(name) for name in ("models", "machine")) and (
        (older.get("server") or {}).get("backend") == (newest.get("server") or {}).get("backend")
    )
    return bool(newest.get("limited")) and same and older["capacity_rps"] > newest["capacity_rps"]


def kept_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a result in the repository."""
    kept = {name: document[name] for name in KEPT if name in document}
    server = document.get("server") or {}
    return kept | {"server": {name: server.get(name) for name in ("backend", "ready_s")}}


def accepted(context: Context) -> Measured:
    """Return the kept result.

    Raises EnvironmentFault where there is none, or where models, declared traffic or objective have changed since.
    """
    layout = context.layout
    kept = files.read_mapping(layout.kubernetes_capacity)
    where = layout.relative(layout.kubernetes_capacity)
    if not kept:
        raise EnvironmentFault("is not there, or not whole", where, f"{MAKE_ONE}, then `invoke manifests`")
    reasons = [reason for reason in _other_models(kept, layout) if reason not in kept.get("despite", ())]
    reasons += _asked_otherwise(kept, context)
    if reasons:
        raise EnvironmentFault([Problem(reason, where, f"{MAKE_ONE}, then `invoke manifests`") for reason in reasons])
    return read(kept, where)


def _results(context: Context) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the capacity results of run folders that are for the declared traffic and objective, and found a rate."""
    for path in context.layout.results("").glob(f"*/{CAPACITY}"):
        document = files.read_json(path)
        if not isinstance(document, dict) or not document.get("capacity_rps"):
            continue
        if not _asked_otherwise(document, context):
            yield path, document


def _asked_otherwise(document: Mapping[str, Any], context: Context) -> list[str]:
    """Return reasons why a result is not for the declared traffic and objective."""
    pipeline = context.declaration.pipeline
    declared = pipeline.traffic(pipeline.loadtest.profiles[pipeline.loadtest.profile])
    objective, measured = pipeline.objectives.p99_ms, (document.get("objective") or {}).get("p99_ms")
    reasons = []
    if document.get("traffic") != [line.model_dump(mode="json") for line in declared]:
        reasons.append("was measured with other traffic than is declared")
    if objective and measured != objective:
        reasons.append(f"was measured for a p99 of {measured} ms; {objective:g} is declared")
    return reasons


def _other_models(document: Mapping[str, Any], layout: Layout) -> list[str]:
    """Return a reason for each model whose exported versions are not those that were measured."""
    measured = document.get("models") or {}
    return [
        f"was measured on other versions of {name} than are exported here"
        for name, digest in measured.items()
        if files.digest(files.tree(layout.versions(name))) != digest
    ] or ([] if measured else ["does not say which models it was measured on"])


def _other_machine(document: Mapping[str, Any]) -> list[str]:
    here, there = machine.describe(), document.get("machine") or {}
    names = ("processor", "cores")
    if all(here[name] == there.get(name) for name in names):
        return []
    words = [f"{m.get('processor', 'an unknown processor')} with {m.get('cores', '?')} cores" for m in (there, here)]
    return [f"was measured on another machine: {words[0]}; this is {words[1]}"]
