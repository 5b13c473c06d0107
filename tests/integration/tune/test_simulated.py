"""The model policy wants what the simulator finds best, and only where it is clearly better."""

from __future__ import annotations

import os

import numpy as np
import psutil
import pytest

from launchpad.errors import EnvironmentFault
from launchpad.spec import Autotune, BatchQueue, Between, Bounds
from launchpad.tune.autotune.aside import Aside
from launchpad.tune.autotune.control import Observation, Rules, ThreadPool
from launchpad.tune.autotune.simulated import Simulated
from launchpad.tune.autotune.tuner import SERVER, Situation
from launchpad.tune.simulate import Host, ServiceTimes

BOUNDS = Bounds(max_batch_size=Between(min=1, max=32), batch_timeout_micros=Between(min=0, max=2000))
RULES = Rules(Autotune(bounds=BOUNDS), p99_ms=50.0)
HOST = Host(cores=2)
CHEAP_IN_BATCHES = ServiceTimes(np.array([0.0, 2e-3, 2.1e-3, 2.2e-3, 2.3e-3, 2.4e-3, 2.5e-3]))
"""A batch costs hardly more than a single example."""
NO_GAIN = ServiceTimes(np.array([0.0, 1e-3, 2e-3, 3e-3]))
"""A batch costs as much as its examples one by one."""
ONE = BatchQueue(max_batch_size=1, max_enqueued_batches=1000)


def wish(rate_rps: float, setting, costs=CHEAP_IN_BATCHES, name="m", seen_ms=2.0, **others):
    policy = Simulated(RULES, {"m": costs}, HOST, threads=2)
    settings = {"m": setting, **others}
    seen = {each: Observation(0.0, 10.0, int(rate_rps * 10), 0, p99_ms=seen_ms) for each in settings}
    return policy(name, Situation(settings, seen))


def test_batches_are_wanted_where_single_requests_would_overload_the_server():
    found = wish(1500, ONE)
    assert found.setting.max_batch_size >= 4
    assert "the simulator expects a p99 of" in found.reason and "batches of 1," in found.reason


def test_waiting_for_others_is_given_up_where_none_come():
    patient = BatchQueue(max_batch_size=32, batch_timeout_micros=2000, max_enqueued_batches=50)
    found = wish(20, patient)
    assert found.setting is None or found.setting.batch_timeout_micros == 0


def test_a_model_that_gains_nothing_by_batches_gets_none_that_wait():
    found = wish(400, BatchQueue(max_batch_size=16, batch_timeout_micros=2000), NO_GAIN)
    assert found.setting is None or found.setting.batch_timeout_micros == 0


@pytest.mark.parametrize("rate_rps", [20, 300, 1500])
def test_what_is_wanted_is_within_the_bounds_and_once_there_nothing_else_is(rate_rps):
    found = wish(rate_rps, BatchQueue(max_batch_size=4, batch_timeout_micros=1000, max_enqueued_batches=100)).setting
    assert found is None or (found.max_batch_size <= 32 and found.batch_timeout_micros <= 2000)
    again = wish(rate_rps, found)
    assert again.setting == found and "nothing is expected to be better" in again.reason


def test_a_server_that_is_slower_than_its_profile_is_taken_for_what_it_is():
    """By the profile 150 requests/s one by one are easy; what is seen says that the machine is busy elsewhere."""
    assert "times as slow" not in wish(150, ONE).reason
    found = wish(150, ONE, seen_ms=500.0)
    assert found.setting.max_batch_size > 1
    assert "on a machine 4 times as slow as when it was profiled" in found.reason


def test_a_machine_that_is_slower_is_no_matter_where_the_objective_is_far():
    calm = wish(150, ONE)
    assert wish(150, ONE, seen_ms=RULES.p99_ms / 2) == calm
    assert wish(150, ONE, seen_ms=RULES.p99_ms / 2 + 1) != calm


def test_more_threads_are_wanted_where_one_is_too_few():
    found = wish(700, ONE, name=SERVER, **{SERVER: ThreadPool(1)})
    assert found.setting.num_batch_threads > 1


def test_a_rate_that_hardly_differs_is_not_computed_again():
    policy = Simulated(RULES, {"m": CHEAP_IN_BATCHES}, HOST, threads=2)
    for requests in (10_000, 10_010):
        policy("m", Situation({"m": ONE}, {"m": Observation(0.0, 10.0, requests, 0)}))
    assert len(policy._known) == 1


def test_of_what_is_as_good_the_largest_batches_that_wait_the_least_are_wanted():
    """They are as good at other rates too: with another rate nothing has to change."""
    patient = BatchQueue(max_batch_size=32, batch_timeout_micros=2000, max_enqueued_batches=50)
    found = wish(20, patient).setting
    assert (found.max_batch_size, found.batch_timeout_micros) == (32, 0)
    assert wish(300, found).setting == found


def test_a_server_that_nothing_is_asked_of_keeps_its_threads():
    policy = Simulated(RULES, {"m": CHEAP_IN_BATCHES}, HOST, threads=2)
    seen = {SERVER: Observation(0.0, 10.0, 1000, 0)}
    found = policy(SERVER, Situation({"m": ONE, SERVER: ThreadPool(1)}, seen))
    assert found.setting == ThreadPool(1) and "nothing is asked" in found.reason


def test_the_policy_computed_aside_is_the_same_gives_way_and_tells_when_its_process_has_ended():
    policy = Simulated(RULES, {"m": CHEAP_IN_BATCHES}, HOST, threads=2)
    situation = Situation({"m": ONE}, {"m": Observation(0.0, 10.0, 15_000, 0, p99_ms=2.0)})
    others = set(psutil.Process().children())
    with Aside(policy, patience_s=60) as aside:
        assert aside("m", situation) == policy("m", situation)
        (process,) = set(psutil.Process().children()) - others
        assert os.getsid(process.pid) == process.pid and process.nice() == 19
        process.kill()
        with pytest.raises(EnvironmentFault, match="has ended"):
            aside("m", situation)


def test_an_answer_that_takes_too_long_is_not_waited_for_and_known_when_it_is_asked_again():
    policy = Simulated(RULES, {"m": CHEAP_IN_BATCHES}, HOST, threads=2)
    situation = Situation({"m": ONE}, {"m": Observation(0.0, 10.0, 15_000, 0, p99_ms=2.0)})
    others = set(psutil.Process().children())
    with Aside(policy, patience_s=0.2) as aside:
        (process,) = set(psutil.Process().children()) - others
        process.suspend()
        late = aside("m", situation)
        assert late.setting == ONE and "has not come to an end within 0.2 s" in late.reason
        assert aside("m", situation) == late
        process.resume()
        answers = (aside("m", situation) for _ in range(300))
        assert next(answer for answer in answers if answer != late) == policy("m", situation)


def test_the_process_that_computes_does_not_outlive_who_asks_it_whatever_it_is_at():
    others = set(psutil.Process().children())
    with Aside(Simulated(RULES, {"m": CHEAP_IN_BATCHES}, HOST, threads=2), patience_s=60):
        (process,) = set(psutil.Process().children()) - others
        process.suspend()
    assert not process.is_running()
