"""`invoke plan`: how many replicas hold a rate, from what one was measured to hold; docs/kubernetes.md says how."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from launchpad import console
from launchpad.errors import DeclarationError, EnvironmentFault, GateFailed
from launchpad.kubernetes import autoscaler, fleet, measured, simulated
from launchpad.kubernetes.autoscaler import Ramp
from launchpad.kubernetes.fleet import BALANCERS, Balancer, Fit, Observed
from launchpad.kubernetes.measured import Measured
from launchpad.kubernetes.simulated import Simulated
from launchpad.kubernetes.sizing import replicas_for, size, with_zone_lost
from launchpad.spec import Kubernetes
from launchpad.stage import Context

HIGHEST_RPS = 1e7
UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
RAMP_S = 60.0
ROUNDS = 4
"""Under round robin what a replica holds depends on how many there are: counted anew until it stays."""


@dataclass(frozen=True)
class Fleet:
    """A number of replicas for a purpose, and what they do.

    each_rps: what each gets; p99_s of that. after_p99_s: once what the purpose is about is lost; None where nothing is.
    """

    balancer: Balancer
    purpose: str
    replicas: int
    each_rps: float
    utilisation: float
    p99_s: float
    after_p99_s: float | None


@dataclass(frozen=True)
class Plan:
    """The answer.

    fit, computed_by: the replica, and where it is from. holds_rps: by balancer, what a replica holds.
    target_rps: of an autoscaler that keeps up; 0 where none does.
    """

    fit: Fit
    computed_by: tuple[str, ...]
    holds_rps: dict[Balancer, float]
    fleets: list[Fleet]
    ramp: Ramp
    target_rps: float
    lag_s: float


def make(
    found: Measured,
    declared: Kubernetes,
    rate_rps: float,
    limit_s: float,
    ramp: Ramp,
    server: Simulated | str = "",
) -> Plan:
    """Return the plan for a rate and a p99.

    server: the measured one as the simulator has it, or why it does not.
    Raises GateFailed where no replica holds that p99, however idle, EnvironmentFault where the probes make no sense.
    """
    try:
        fitted, computed_by = _replica(found, server)
    except ValueError as error:
        what = f"the capacity result cannot be used: {error}"
        raise EnvironmentFault(what, f"run {found.run}", measured.MAKE_ONE) from None
    fleets: list[Fleet] = []
    holds: dict[Balancer, float] = {}
    for balancer in BALANCERS:
        replicas, holds[balancer] = _needed(fitted, balancer, rate_rps, limit_s)
        spread = with_zone_lost(replicas, declared.zones)
        fleets += [
            _fleet(fitted, balancer, "the rate", replicas, rate_rps, 0),
            _fleet(fitted, balancer, "one to spare", replicas + 1, rate_rps, 1),
        ]
        if declared.zones > 1:
            lost = math.ceil(spread / declared.zones)
            fleets.append(_fleet(fitted, balancer, f"one zone of {declared.zones} lost", spread, rate_rps, lost))
    target = autoscaler.target_for(ramp, holds["random"], found.ready_s, size(declared, found).replicas_min)
    return Plan(fitted, computed_by, holds, fleets, ramp, target, autoscaler.lag_s(found.ready_s))


def _replica(found: Measured, server: Simulated | str) -> tuple[Fit, tuple[str, ...]]:
    """Return the replica that is nearer to the probes, the fitted station or the simulated server; lines on both.

    Raises ValueError where the probes make no sense.
    """
    observed = [Observed(one.rate_rps, one.p50_ms / 1e3, one.p99_ms / 1e3) for one in found.probes]
    station = fleet.fit(observed, found.capacity_rps)
    if isinstance(server, str):
        return station, (_how_far(station), f"not the simulator: {server}")
    other = simulated.fit(server, observed, found.capacity_rps)
    nearer, further = sorted((station, other), key=lambda fit: fit.cost)
    return nearer, (_how_far(nearer), f"not by {_how_far(further)}")


def _how_far(fit: Fit) -> str:
    return (
        f"{fit.replica.title}: p50 within a factor of {fit.p50_off:.1f} of every rate that was held, "
        f"p99 within {fit.p99_off:.1f}"
    )


def _needed(fitted: Fit, balancer: Balancer, rate_rps: float, limit_s: float) -> tuple[int, float]:
    replicas = 2
    for _ in range(ROUNDS):
        holds = fleet.highest_rate(fitted.replica, balancer, replicas, limit_s)
        if not holds:
            idle_ms = fitted.replica.idle_s * 1e3
            what = f"no replica holds p99 of {limit_s * 1e3:g} ms: a request takes {idle_ms:.1f} ms where nobody waits"
            raise GateFailed(what, "--p99", "allow more, or make the model faster")
        before, replicas = replicas, replicas_for(rate_rps, holds)
        if replicas == before or balancer == "random":
            break
    return replicas, holds


def _fleet(fitted: Fit, balancer: Balancer, purpose: str, replicas: int, rate_rps: float, lost: int) -> Fleet:
    each = rate_rps / replicas
    left = replicas - lost
    return Fleet(
        balancer=balancer,
        purpose=purpose,
        replicas=replicas,
        each_rps=each,
        utilisation=each / fitted.replica.saturation_rps,
        p99_s=fleet.p99_s(fitted.replica, balancer, replicas, each),
        after_p99_s=fleet.p99_s(fitted.replica, balancer, left, rate_rps / left) if lost else None,
    )


def duration_s(text: str, option: str) -> float:
    """Return a duration such as 50ms, 0.05s or 2m in seconds. Raises DeclarationError for anything else."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(us|ms|s|m)", text.strip())
    if not found or float(found[1]) <= 0:
        raise DeclarationError(f"{option} {text}: is no duration", fix="give a number and its unit, such as 50ms or 2m")
    return float(found[1]) * UNITS_S[found[2]]


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 1 <= rate <= HIGHEST_RPS:
        raise DeclarationError(f"--rate {text}: cannot be planned", fix=f"give 1 to {HIGHEST_RPS:,.0f} requests/s")
    return rate


def show(context: Context, rate: str, p99: str, ramp: str, ramp_from: float) -> None:
    """Print the plan.

    Raises DeclarationError for arguments that cannot be, and, once it is printed, where the replicas do not fit into
    kubernetes.replicas.max however they are balanced; and what `measured.latest` and `make` raise.
    """
    rate_rps = _rate(rate)
    found, _ = measured.latest(context, context.force)
    declared = context.declaration.pipeline.kubernetes
    limit = duration_s(p99, "--p99") if p99 else found.p99_ms / 1e3
    begin = ramp_from or rate_rps / 2
    if not 0 < begin < rate_rps:
        raise DeclarationError(
            f"--ramp-from {begin:g}: is not below the rate", fix="give more than 0, less than --rate"
        )
    climb = Ramp(begin, rate_rps, duration_s(ramp, "--ramp") if ramp else RAMP_S)
    plan = make(found, declared, rate_rps, limit, climb, simulated.of(context, found))
    for reason in found.despite:
        console.say(f"! taken with --force: the capacity {reason}", "yellow")
    console.say(f"one replica: {found.capacity_rps:,.0f} requests/s held p99 of {found.p99_ms:g} ms, run {found.run}")
    console.say(f"  {found.place}")
    if found.limited:
        console.say(f"  ! a lower bound: above it {found.limited}", "yellow")
    _show_fleets(plan, declared, rate_rps, limit)
    _show_ramp(plan, declared)
    console.say(f"computed by {plan.computed_by[0]}", "dim")
    for line in plan.computed_by[1:]:
        console.say(f"  {line}", "dim")
    _refuse_beyond_limit(context, plan)


def _show_fleets(plan: Plan, declared: Kubernetes, rate_rps: float, limit_s: float) -> None:
    priced = declared.price_per_hour is not None
    columns = ["balancing", "for", "replicas", "requests/s each", "busy", "p99 ms", "p99 ms after the loss"]
    rows = []
    for one in plan.fleets:
        after = "" if one.after_p99_s is None else _ms(one.after_p99_s)
        row = [one.balancer, one.purpose, f"{one.replicas:,}", f"{one.each_rps:,.0f}", f"{one.utilisation:.0%}"]
        cost = [f"{one.replicas * (declared.price_per_hour or 0):,.2f}"] if priced else []
        rows.append([*row, _ms(one.p99_s), after, *cost])
    title = f"{rate_rps:,.0f} requests/s with p99 within {limit_s * 1e3:g} ms"
    console.table(title, columns + (["price an hour"] if priced else []), rows, right=[*columns[2:], "price an hour"])


def _show_ramp(plan: Plan, declared: Kubernetes) -> None:
    ramp, share = plan.ramp, plan.target_rps / plan.holds_rps["random"]
    headroom = declared.autoscaling.headroom
    climb = (
        f"from {ramp.from_rps:,.0f} to {ramp.to_rps:,.0f} requests/s in {ramp.seconds:g} s: a new pod takes load "
        f"{plan.lag_s:.0f} s after it is needed, so "
    )
    if not plan.target_rps:
        console.say(f"{climb}no headroom is enough")
        console.say("  ! have the replicas there before: raise kubernetes.replicas.min", "yellow")
        return
    console.say(
        f"{climb}replicas must work at {plan.target_rps:,.0f} requests/s or less, {share:.0%} of what they hold"
    )
    if share < headroom:
        console.say(f"  ! kubernetes.autoscaling.headroom is {headroom:g}: too much for this ramp", "yellow")
    else:
        console.say(f"  kubernetes.autoscaling.headroom is {headroom:g}: the objective holds while new pods warm up")


def _refuse_beyond_limit(context: Context, plan: Plan) -> None:
    """Warn of balancers under which the replicas exceed the declared limit; raise DeclarationError where all do."""
    most = context.declaration.pipeline.kubernetes.replicas.max
    needed = {one.balancer: 0 for one in plan.fleets}
    for one in plan.fleets:
        needed[one.balancer] = max(needed[one.balancer], one.replicas)
    beyond = {balancer: count for balancer, count in needed.items() if count > most}
    if not beyond:
        return
    words = ", ".join(f"{count:,} ({balancer})" for balancer, count in beyond.items())
    what = f"kubernetes.replicas.max is {most:,}, this takes {words}"
    where = context.declaration.where("kubernetes", "replicas", "max")
    if len(beyond) == len(needed):
        raise DeclarationError(what, where, f"raise it to {min(beyond.values()):,} or more, or plan for less")
    console.say(f"  ! {where}: {what}", "yellow")


def _ms(seconds: float) -> str:
    return "never" if math.isinf(seconds) else f"{seconds * 1e3:,.1f}"
