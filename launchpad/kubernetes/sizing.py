"""From what one server was measured to hold, to what pods ask for and how many there are. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launchpad.kubernetes.measured import Measured
from launchpad.spec import Kubernetes

CPU_STEP = 0.1
MEMORY_STEP_MIB = 64
MEMORY_SPARE = 1.25
LEAST_STARTUP_S = 60.0
STARTUP_SPARE = 5.0
"""How many times the measured load time a pod may take: a busy node, a cold disk."""
STARTUP_PERIOD_S = 2
AFTER_DRAIN_S = 10
"""Grace beyond the drain: the server ends at once on SIGTERM, so this is for a kubelet that is late."""
CONNECTION_AGE_SHARE = 0.75
"""Of the drain: age at which the server asks gRPC clients to connect anew, so that all have left before it ends; gRPC
spreads it by a tenth either way."""


@dataclass(frozen=True)
class Sizing:
    """What a pod asks for, and how many there are.

    target_rps: rate that a replica is to work at. cpu_request, cpu_limit in cores, memory_mib: what a pod is granted.
    cpu_origin, memory_origin: where these come from. cpu_target_percent: of the request, what a pod uses at target_rps.
    startup_s: how long a pod may load. connection_age_s: of gRPC.
    replicas_min, replicas_max: the autoscaler's bounds; min_origin says why. peak_replicas: for the declared peak with
    a zone lost; None where no demand is declared.
    in_flight: requests in flight of a replica at target_rps.
    """

    target_rps: float
    cpu_request: float
    cpu_limit: float
    cpu_origin: str
    cpu_target_percent: int
    memory_mib: int
    memory_origin: str
    startup_s: float
    grace_s: int
    connection_age_s: int
    replicas_min: int
    replicas_max: int
    min_origin: str
    peak_replicas: int | None
    in_flight: float

    @property
    def startup_failures(self) -> int:
        return math.ceil(self.startup_s / STARTUP_PERIOD_S)


def size(declared: Kubernetes, measured: Measured) -> Sizing:
    """Return the sizing. A peak beyond `replicas.max` is returned as it is; whoever renders refuses it."""
    target = measured.capacity_rps * declared.autoscaling.headroom
    request, limit, cpu_origin = _cpu(declared, measured)
    memory, memory_origin = _memory(declared, measured)
    fewest, origin, peak = declared.replicas.min, "kubernetes.replicas.min", None
    if declared.demand:
        usual = replicas_for(declared.demand.usual_rps, target) + 1
        if usual > fewest:
            fewest = usual
            origin = f"{declared.demand.usual_rps:g} requests/s (kubernetes.demand.usual_rps) and one to spare"
        peak = with_zone_lost(replicas_for(declared.demand.peak_rps, target), declared.zones)
    return Sizing(
        target_rps=target,
        cpu_request=request,
        cpu_limit=limit,
        cpu_origin=cpu_origin,
        cpu_target_percent=max(1, round(declared.autoscaling.headroom * (measured.cores or request) / request * 100)),
        memory_mib=memory,
        memory_origin=memory_origin,
        startup_s=max(LEAST_STARTUP_S, STARTUP_SPARE * measured.ready_s),
        grace_s=declared.drain_s + AFTER_DRAIN_S,
        connection_age_s=max(1, int(declared.drain_s * CONNECTION_AGE_SHARE)),
        replicas_min=fewest,
        replicas_max=declared.replicas.max,
        min_origin=origin,
        peak_replicas=peak,
        in_flight=target * latency_at(measured, target, "mean_ms") / 1000,
    )


def replicas_for(rate_rps: float, target_rps: float) -> int:
    """Return how many replicas hold a rate when each works at `target_rps`."""
    return max(1, math.ceil(rate_rps / target_rps - 1e-9))


def with_zone_lost(needed: int, zones: int) -> int:
    """Return the fewest replicas, spread evenly over zones, of which `needed` are left when the fullest zone is lost.

    With one zone there is nothing left to count on: the answer is `needed`.
    """
    if zones < 2:
        return needed
    replicas = needed
    while replicas - math.ceil(replicas / zones) < needed:
        replicas += 1
    return replicas


def latency_at(measured: Measured, rate_rps: float, which: str) -> float:
    """Return a measured latency in ms at a rate, interpolated between probes; that of the nearest end outside them."""
    rates = [probe.rate_rps for probe in measured.probes]
    values = [float(getattr(probe, which)) for probe in measured.probes]
    if rate_rps <= rates[0]:
        return values[0]
    for (low, at_low), (high, at_high) in zip(
        zip(rates, values, strict=True), zip(rates[1:], values[1:], strict=True), strict=False
    ):
        if rate_rps <= high:
            return at_low + (at_high - at_low) * (rate_rps - low) / (high - low) if high > low else at_high
    return values[-1]


def _cpu(declared: Kubernetes, measured: Measured) -> tuple[float, float, str]:
    if declared.resources.cpu:
        return declared.resources.cpu, declared.resources.cpu, "kubernetes.resources.cpu"
    cores = float(measured.machine["cores"])
    if measured.cores is None:
        return cores, cores, f"the cores of the machine of run {measured.run}; what the server used is not known"
    used = min(cores, math.ceil(measured.cores / CPU_STEP - 1e-9) * CPU_STEP)
    return round(used, 1), cores, f"{measured.cores:.2f} cores used at capacity, of {cores:g} (run {measured.run})"


def _memory(declared: Kubernetes, measured: Measured) -> tuple[int, str]:
    if declared.resources.memory:
        amount, unit = int(declared.resources.memory[:-2]), declared.resources.memory[-2:]
        return max(1, amount * {"Ki": 1, "Mi": 1024, "Gi": 1024**2, "Ti": 1024**3}[unit] // 1024), (
            "kubernetes.resources.memory"
        )
    if measured.peak_mib is None:
        return 2048, "not measured: declare kubernetes.resources.memory"
    steps = math.ceil(measured.peak_mib * MEMORY_SPARE / MEMORY_STEP_MIB)
    origin = f"peak of {measured.peak_mib:,.0f} MiB (run {measured.run}) and a quarter more"
    return steps * MEMORY_STEP_MIB, origin
