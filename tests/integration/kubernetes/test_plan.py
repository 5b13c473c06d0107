"""Fleets computed: held against queueing theory, against what was observed, and against what a person expects."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from launchpad import declaration
from launchpad.errors import DeclarationError, GateFailed
from launchpad.kubernetes import autoscaler, fleet, measured, plan, simulated
from launchpad.kubernetes.autoscaler import Ramp
from launchpad.kubernetes.fleet import Observed, Replica
from launchpad.kubernetes.measured import Probed
from launchpad.kubernetes.simulated import Simulated
from launchpad.spec import BatchQueue, Kubernetes
from launchpad.stage import Context
from launchpad.tune.simulate import Host, Queue, ServiceTimes
from tests.conftest import ROOT
from tests.unit.test_manifests import MEASURED

TINY = "name: tiny\nmodels:\n  tiny: {source: model.py:build}\n"
EXPONENTIAL_LIKE = Replica(places=1, service_s=0.01, spread=1.0, way_s=0.0)
STEADY = Replica(places=1, service_s=0.01, spread=0.0, way_s=0.0)


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_the_mean_wait_is_that_of_pollaczek_and_khinchine(busy, spread):
    """M/G/1: mean wait = busy × service × (1 + spread²) / (2 (1 - busy))."""
    replica = Replica(1, 0.01, spread, 0.0)
    computed = fleet.latencies(replica, "random", 1, busy / 0.01, 400_000).mean()
    expected = 0.01 + busy * 0.01 * (1 + spread**2) / (2 * (1 - busy))
    assert computed == pytest.approx(expected, rel=0.06)


def test_several_places_wait_as_erlang_says():
    """M/M/c would need exponential times; with steady ones the wait is about half of Erlang C's (Cosmetatos)."""
    places, busy = 4, 0.8
    offered = places * busy
    terms = [offered**k / math.factorial(k) for k in range(places)]
    last = offered**places / math.factorial(places) / (1 - busy)
    erlang_c = last / (sum(terms) + last)
    wait_mmc = erlang_c * 0.01 / (places * (1 - busy))
    computed = (
        fleet.latencies(Replica(places, 0.01, 0.0, 0.0), "random", 1, places * busy / 0.01, 400_000).mean() - 0.01
    )
    assert 0.5 * wait_mmc < computed < 0.65 * wait_mmc


def test_steady_times_in_turn_never_wait_when_the_turn_is_long():
    taken = fleet.latencies(STEADY, "round robin", 10_000, 90.0)
    assert np.percentile(taken, 99) < 0.0105


def test_least_loaded_beats_round_robin_beats_random():
    p99 = {one: fleet.p99_s(EXPONENTIAL_LIKE, one, 10, 80.0) for one in fleet.BALANCERS}
    assert p99["least loaded"] < p99["round robin"] < p99["random"]


def test_one_replica_is_one_replica_however_it_is_balanced():
    p99 = [fleet.p99_s(EXPONENTIAL_LIKE, one, 1, 70.0) for one in fleet.BALANCERS]
    assert max(p99) / min(p99) < 1.1


def test_nothing_holds_at_saturation():
    assert fleet.p99_s(STEADY, "random", 1, 100.0) == math.inf


def test_a_replica_is_found_again_from_what_it_was_observed_to_do():
    true = Replica(places=2, service_s=0.02, spread=0.5, way_s=0.003)
    rates = [20.0, 50.0, 80.0, 90.0]
    observed = []
    for rate in rates:
        taken = fleet.latencies(true, "random", 1, rate, seed=7)
        observed.append(Observed(rate, float(np.percentile(taken, 50)), float(np.percentile(taken, 99))))

    fitted = fleet.fit(observed, held_rps=90.0)

    assert fitted.p50_off < 1.15 and fitted.p99_off < 1.15
    assert fitted.replica.saturation_rps == pytest.approx(true.saturation_rps, rel=0.06)
    assert fleet.p99_s(fitted.replica, "least loaded", 3, 90.0) == pytest.approx(
        fleet.p99_s(true, "least loaded", 3, 90.0), rel=0.15
    )


def test_rates_that_were_not_held_say_nothing():
    observed = [Observed(50.0, 0.01, 0.02), Observed(99.0, 0.02, 0.1), Observed(200.0, 5.0, 9.0)]
    assert fleet.fit(observed, 99.0) == fleet.fit(observed[:2], 99.0)


# --- the plan -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planned():
    declared = Kubernetes.model_validate({"zones": 3, "price_per_hour": 0.5})
    return plan.make(MEASURED, declared, 20_300, 0.08, Ramp(10_000, 20_000, 60))


def test_the_measured_capacity_is_what_a_replica_holds_at_the_measured_latency(planned):
    assert planned.holds_rps["random"] == pytest.approx(MEASURED.capacity_rps, rel=0.02)


def test_every_fleet_holds_the_objective_before_and_after_the_loss(planned):
    for one in planned.fleets:
        assert one.p99_s <= 0.08 * 1.02
        assert one.after_p99_s is None or one.after_p99_s <= 0.08 * 1.02


def test_fewer_replicas_than_planned_do_not_hold(planned):
    for one in planned.fleets:
        if one.purpose == "the rate" and one.balancer == "random":  # the others are held back short of saturation
            fewer = one.replicas - 1
            assert fleet.p99_s(planned.fit.replica, one.balancer, fewer, 20_300 / fewer) > 0.08


def test_a_lost_zone_leaves_enough(planned):
    by = {(one.balancer, one.purpose): one.replicas for one in planned.fleets}
    for balancer in fleet.BALANCERS:
        spread = by[balancer, "one zone of 3 lost"]
        assert spread - math.ceil(spread / 3) >= by[balancer, "the rate"]


def test_an_objective_below_the_service_time_is_refused():
    with pytest.raises(GateFailed, match=r"no replica holds p99 of 0\.1 ms"):
        plan.make(MEASURED, Kubernetes(), 1000, 0.0001, Ramp(500, 1000, 60))


@pytest.mark.parametrize(("text", "seconds"), [("50ms", 0.05), ("0.05s", 0.05), ("2m", 120), ("250us", 0.00025)])
def test_durations_are_read_with_their_unit(text, seconds):
    assert plan.duration_s(text, "--p99") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["50", "ms", "-1s", "0s", "5 hours"])
def test_a_duration_without_a_unit_is_refused(text):
    with pytest.raises(DeclarationError, match="is no duration"):
        plan.duration_s(text, "--p99")


def test_more_replicas_than_are_declared_are_refused_when_the_plan_is_printed(declare, planned, monkeypatch, capsys):
    given = Context(declare(TINY + "kubernetes: {replicas: {max: 20}}\n"))
    monkeypatch.setattr(measured, "latest", lambda *_: (MEASURED, {}))
    monkeypatch.setattr(plan, "make", lambda *_: planned)

    with pytest.raises(DeclarationError) as refused:
        plan.show(given, "20300", "80ms", "60s", 0)

    (problem,) = refused.value.problems
    most = max(one.replicas for one in planned.fleets)
    assert problem.where == "pipeline.yaml:4" and f"max is 20, this takes {most} (random)" in problem.what
    assert f"raise it to {most}" in problem.fix
    assert "one zone of 3 lost" in capsys.readouterr().out


def test_more_replicas_than_are_declared_under_some_balancers_are_a_warning(declare, planned, monkeypatch, capsys):
    given = Context(declare(TINY + "kubernetes: {replicas: {max: 20}}\n"))
    fewer = [replace(one, replicas=20) if one.balancer == "least loaded" else one for one in planned.fleets]
    monkeypatch.setattr(measured, "latest", lambda *_: (MEASURED, {}))
    monkeypatch.setattr(plan, "make", lambda *_: replace(planned, fleets=fewer))

    plan.show(given, "20300", "80ms", "60s", 0)

    (warning,) = (line for line in capsys.readouterr().out.splitlines() if "replicas.max" in line)
    assert "(random)" in warning and "(round robin)" in warning and "least loaded" not in warning


@pytest.mark.parametrize(
    ("rate", "begin", "said"),
    [("0.5", 0, "--rate 0.5"), ("100", -3, "--ramp-from -3"), ("100", 100, "--ramp-from 100")],
)
def test_rates_that_cannot_be_are_refused(declare, monkeypatch, rate, begin, said):
    monkeypatch.setattr(measured, "latest", lambda *_: (MEASURED, {}))
    with pytest.raises(DeclarationError, match=said):
        plan.show(Context(declare()), rate, "", "60s", begin)


def test_a_ramp_that_no_headroom_is_enough_for_is_told_as_that(declare, monkeypatch, capsys):
    text = TINY + "kubernetes: {replicas: {max: 5000}}\n"
    monkeypatch.setattr(measured, "latest", lambda *_: (MEASURED, {}))
    plan.show(Context(declare(text)), "1000000", "", "1s", 1)
    assert "no headroom is enough" in capsys.readouterr().out


# --- a simulated replica ---------------------------------------------------------------------------------------

BATCHED = Simulated(
    queues=(Queue(BatchQueue(max_batch_size=16, batch_timeout_micros=4000), ServiceTimes(np.full(17, 0.01))),),
    shares=(1.0,),
    threads=1,
    host=Host(),
)
"""A batch takes 10 ms, however many are in it: 1,600 requests a second at most."""


def test_a_simulated_replica_is_saturated_when_its_batches_are_full():
    assert BATCHED.saturation_rps == pytest.approx(1600, rel=0.03)
    assert BATCHED.idle_s == pytest.approx(0.014, rel=0.01)  # its timeout, then its batch


def test_a_simulated_replica_waits_least_where_the_balancer_looks_at_load():
    p99 = {one: fleet.p99_s(BATCHED, one, 10, 1400.0) for one in fleet.BALANCERS}
    assert p99["least loaded"] < p99["random"] and p99["round robin"] < p99["random"]


@pytest.fixture(scope="module")
def measured_batched():
    """What a capacity search finds of a server of half the speed."""
    true = replace(BATCHED, factor=2.0)
    probes = []
    for rate in (100.0, 400.0, 600.0, 700.0):
        p50, p99 = np.percentile(fleet.latencies(true, "random", 1, rate, seed=7), [50, 99]) * 1e3
        probes.append(Probed(rate, p50, p50, p99, None))
    return replace(MEASURED, probes=tuple(probes), capacity_rps=700.0, p99_ms=probes[-1].p99_ms)


def test_the_simulated_replica_is_taken_where_it_is_nearer_to_what_was_measured(measured_batched):
    planned = plan.make(
        measured_batched, Kubernetes(), 7000, measured_batched.p99_ms / 1e3, Ramp(3500, 7000, 60), BATCHED
    )
    assert planned.fit.replica.factor == pytest.approx(2.0, rel=0.03)
    assert planned.fit.p99_off < 1.1
    assert planned.computed_by[0].startswith("the simulator") and "a station" in planned.computed_by[1]
    assert planned.holds_rps["random"] == pytest.approx(700, rel=0.03)


def test_the_station_is_taken_where_the_simulated_replica_is_further_off():
    planned = plan.make(MEASURED, Kubernetes(), 7000, 0.08, Ramp(3500, 7000, 60), BATCHED)
    assert planned.computed_by[0].startswith("a station") and "not by the simulator" in planned.computed_by[1]


def test_the_simulator_takes_the_profiles_of_what_was_asked():
    given = Context(declaration.load(ROOT))
    found = measured.accepted(given)
    server = simulated.of(given, found)
    assert isinstance(server, Simulated)
    assert len(server.queues) == len(found.traffic) and sum(server.shares) == 10
    batched = [queue.batching is not None for queue in server.queues]
    assert batched == [line["model"] == "digits-cnn" for line in found.traffic]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"traffic": ()}, "does not say what was asked"),
        ({"traffic": ({"model": "absent", "weight": 1},)}, "absent has not been profiled"),
        ({"backend": "docker"}, "another backend or machine"),
    ],
)
def test_the_simulator_says_why_it_is_not_asked(changes, why):
    given = Context(declaration.load(ROOT))
    assert why in simulated.of(given, replace(measured.accepted(given), **changes))


# --- the autoscaler -------------------------------------------------------------------------------------------


def test_a_target_that_was_found_keeps_every_pod_within_what_it_holds():
    ramp = Ramp(1000, 4000, 120)
    target = autoscaler.target_for(ramp, 100, ready_s=20)
    assert autoscaler.follow(ramp, target, 20).worst_rps <= 100
    assert autoscaler.follow(ramp, target * 1.1, 20).worst_rps > 100


def test_steeper_ramps_and_slower_pods_take_more_headroom():
    def target(seconds, ready_s):
        return autoscaler.target_for(Ramp(1000, 2000, seconds), 100, ready_s)

    assert target(60, 5) < target(600, 5)
    assert target(300, 120) < target(300, 5)


def test_a_load_that_stays_takes_no_more_pods():
    assert autoscaler.follow(Ramp(1000, 1000, 60), 100, 5).pods == 10


def test_pods_are_added_no_faster_than_the_manifests_allow():
    followed = autoscaler.follow(Ramp(100, 100_000, 1), 100, 0.0)
    assert followed.worst_rps > 10_000  # a thousandfold load: doubling every 15 s is far behind
