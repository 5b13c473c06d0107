"""When autotune changes parameters, when it leaves them, and when it goes back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launchpad.spec import Autotune, BatchQueue
from launchpad.tune.autotune.control import (
    Barred,
    Observation,
    Rules,
    State,
    Trial,
    Wish,
    changed,
    decide,
    refused,
)

SMALL, LARGE = (BatchQueue(max_batch_size=size, max_enqueued_batches=100) for size in (4, 8))
RULES = Rules(
    Autotune(window_s=10, min_requests=100, confirmations=2, cool_down_s=60, changes_per_hour=3, tolerance=0.2), 50.0
)


def seen(at_s: float = 1000.0, p99_ms: float | None = 20.0, rps: float = 100.0, failures: int = 0, seconds: float = 10):
    return Observation(at_s, seconds, int(rps * seconds), failures, p99_ms=p99_ms)


def always(queue):
    return lambda current, observation: Wish(queue, "a reason")


def action(state: State, observation: Observation | None) -> str:
    return decide(state, observation, always(LARGE), RULES)[0].action


CONFIRMED = replace(State.of(SMALL), wish=LARGE, wished=1)


@pytest.mark.parametrize(
    ("state", "observation", "expected", "reason"),
    [
        (CONFIRMED, seen(), "change", "a reason"),
        (CONFIRMED, None, "hold", "nothing is known of the present load"),
        (CONFIRMED, seen(rps=9), "hold", "90 requests in 10 s are too few"),
        (State.of(SMALL), seen(), "hold", "seen 1 of 2 times"),
        (State.of(LARGE), seen(), "hold", "a reason"),
        (replace(CONFIRMED, wish=None), seen(), "hold", "seen 1 of 2 times"),
        (replace(CONFIRMED, refused=(LARGE,)), seen(), "hold", "the server did not load batches of 8"),
        (replace(CONFIRMED, changes=(960.0,)), seen(), "hold", "cooling down for 20 s"),
        (replace(CONFIRMED, changes=(930.0,)), seen(), "change", "a reason"),
        (replace(CONFIRMED, changes=(5.0, 6.0, 7.0)), seen(3000), "hold", "3 changes within an hour"),
        (replace(CONFIRMED, changes=(5.0, 6.0, 7.0)), seen(3606), "change", "a reason"),
        (replace(CONFIRMED, barred=(Barred(LARGE, 110, 2000),)), seen(), "hold", "tried at this rate and taken back"),
        (replace(CONFIRMED, barred=(Barred(LARGE, 300, 2000),)), seen(), "change", "a reason"),
        (replace(CONFIRMED, barred=(Barred(LARGE, 110, 999),)), seen(), "change", "a reason"),
        (CONFIRMED, replace(seen(), steady=False), "hold", "the load is changing"),
        (CONFIRMED, replace(seen(), largest_request=8), "change", "a reason"),
        (CONFIRMED, replace(seen(), largest_request=9), "hold", "requests of up to 9 examples come"),
    ],
)
def test_a_wish_is_obeyed_when_it_lasts_and_nothing_speaks_against_it(state, observation, expected, reason):
    decision, _ = decide(state, observation, always(LARGE), RULES)
    assert decision.action == expected
    assert reason in decision.reason
    assert decision.to == (LARGE if expected == "change" or state.current == LARGE else SMALL)


def test_a_wish_that_changes_its_mind_starts_again():
    state = State.of(SMALL)
    for queue in (LARGE, None, LARGE, None):
        decision, state = decide(state, seen(), always(queue), RULES)
        assert decision.action == "hold" and state.wished == 1


def test_a_look_at_nothing_breaks_the_row():
    _, state = decide(CONFIRMED, None, always(LARGE), RULES)
    assert action(state, seen()) == "hold"


ON_TRIAL = replace(State.of(SMALL), current=LARGE, trial=Trial(seen(980), 985), changes=(985.0,))


@pytest.mark.parametrize(
    ("observation", "expected", "good", "reason"),
    [
        (seen(990, seconds=5), "hold", SMALL, "on trial: 5 of 10 s"),
        (seen(993), "hold", SMALL, "on trial"),  # its window reaches back to before the change
        (seen(996, p99_ms=23.9), "hold", LARGE, "the change is good: p99 23.9 ms, 20 ms before"),
        (seen(996, p99_ms=24.1), "hold", SMALL, "p99 is 24.1 ms, 20 ms before the change; the objective holds: seen 1"),
        (seen(996, p99_ms=50.1), "return", SMALL, "p99 is 50.1 ms, 20 ms before the change: back"),
        (seen(996, failures=30), "return", SMALL, "3.00% of the requests fail, 0.00% did before"),
        (seen(996, failures=5), "hold", LARGE, "the change is good"),
        (seen(996, rps=130), "hold", LARGE, "the load went from 100 to 130 requests/s; the objective holds"),
        (seen(996, p99_ms=51, rps=130), "hold", SMALL, "cannot be judged"),
        (seen(996, p99_ms=49, rps=70), "hold", LARGE, "the load went from 100 to 70 requests/s; the objective holds"),
        (seen(996, p99_ms=51, rps=70), "return", SMALL, "which held before the change, does not: p99 is 51 ms, 20 ms"),
        (seen(996, p99_ms=None), "return", SMALL, "no request is answered well, p99 was 20 ms before"),
    ],
)
def test_a_change_is_judged_by_what_was_seen_after_it_alone(observation, expected, good, reason):
    decision, state = decide(ON_TRIAL, observation, always(None), RULES)
    assert (decision.action, state.good) == (expected, good)
    assert reason in decision.reason


def test_while_the_objective_holds_a_change_is_taken_back_when_a_second_window_of_its_own_is_as_bad():
    _, state = decide(ON_TRIAL, seen(996, p99_ms=24.1), always(None), RULES)
    assert "on trial" in decide(state, seen(1005, p99_ms=24.1), always(None), RULES)[0].reason
    assert "the change is good" in decide(state, seen(1006, p99_ms=23.9), always(None), RULES)[0].reason
    assert action(state, seen(1006, p99_ms=24.1)) == "return"


def test_a_trial_without_traffic_ends_without_a_verdict():
    decision, state = decide(ON_TRIAL, seen(1085, rps=1), always(None), RULES)
    assert "too few" in decision.reason and state.trial
    decision, state = decide(ON_TRIAL, seen(1086, rps=1), always(None), RULES)
    assert "stays unjudged" in decision.reason and (state.trial, state.good) == (None, SMALL)


def test_as_many_failures_as_are_declared_are_borne():
    rules = Rules(RULES.declared, 50.0, error_rate=0.05)
    assert decide(ON_TRIAL, seen(996, failures=30), always(None), rules)[0].action == "hold"


def test_an_unbatched_model_is_not_given_batches_smaller_than_its_declared_requests():
    """The metrics page counts rows of batched requests only."""
    unbatched = replace(State.of(None), wish=LARGE, wished=1)
    rules = Rules(RULES.declared, 50.0, rows=9)
    assert decide(unbatched, seen(), always(LARGE), RULES)[0].action == "change"
    assert "requests of up to 9 examples" in decide(unbatched, seen(), always(LARGE), rules)[0].reason


def test_splitting_batches_lets_no_larger_request_in():
    splitting = LARGE.model_copy(update={"enable_large_batch_splitting": True, "max_execution_batch_size": 4})
    state = replace(State.of(SMALL), wish=splitting, wished=1)
    asked = replace(seen(), largest_request=9)
    assert "would refuse" in decide(state, asked, always(splitting), RULES)[0].reason


def test_what_was_taken_back_is_barred_at_its_rate_and_the_good_one_is_not_on_trial():
    decision, state = decide(ON_TRIAL, seen(996, p99_ms=90), always(None), RULES)
    state = changed(state, decision, seen(996), 997)
    assert (state.current, state.trial) == (SMALL, None)
    later = replace(state, wish=LARGE, wished=1)
    assert "taken back" in decide(later, seen(1100), always(LARGE), RULES)[0].reason


@pytest.mark.parametrize(("before_ms", "after_ms"), [(60, 80), (45, 51)])
def test_less_load_tells_nothing_of_a_change_where_the_objective_did_not_hold_before_or_little_differs(
    before_ms, after_ms
):
    state = replace(ON_TRIAL, trial=Trial(seen(980, p99_ms=before_ms), 985))
    assert "cannot be judged" in decide(state, seen(996, p99_ms=after_ms, rps=70), always(None), RULES)[0].reason


def test_what_slowed_waiting_clients_down_is_not_tried_again_when_they_are_as_fast_as_before():
    decision, state = decide(ON_TRIAL, seen(996, p99_ms=90, rps=30), always(None), RULES)
    state = replace(changed(state, decision, seen(996), 997), wish=LARGE, wished=1)
    assert "taken back" in decide(state, seen(1100), always(LARGE), RULES)[0].reason


def test_a_return_waits_for_no_cool_down_and_no_limit():
    busy = replace(ON_TRIAL, changes=(983.0, 984.0, 985.0))
    assert action(busy, seen(996, p99_ms=90)) == "return"


def test_where_nothing_better_is_known_a_bad_change_stays_and_says_so():
    decision, _ = decide(replace(ON_TRIAL, good=LARGE), seen(996, p99_ms=90), always(None), RULES)
    assert decision.action == "hold" and "nothing better known" in decision.reason


def test_parameters_that_were_refused_leave_everything_as_it_was():
    decision, state = decide(CONFIRMED, seen(), always(LARGE), RULES)
    state = refused(state, decision)
    assert (state.current, state.good, state.changes, state.trial) == (SMALL, SMALL, (), None)
    for _ in range(5):
        decision, state = decide(state, seen(), always(LARGE), RULES)
        assert decision.action == "hold"


QUEUES = st.sampled_from([None, SMALL, LARGE, BatchQueue(max_batch_size=2)])
LOOKS = st.lists(
    st.tuples(
        QUEUES,
        st.none() | st.floats(0.1, 500),  # p99
        st.floats(1, 400),  # rate
        st.booleans(),  # whether the metrics came
        st.booleans(),  # whether the server loads what it is given
        st.integers(1, 400),  # seconds to the next look
    ),
    max_size=80,
)


@settings(max_examples=200)
@given(LOOKS)
def test_whatever_comes_it_keeps_its_own_limits(looks):
    """Any traffic, any policy, a server that refuses now and then: never too often, never twice what was refused."""
    state, at_s, changes, tried_in_vain = State.of(SMALL), 0.0, [], []
    for queue, p99_ms, rps, came, loads, pause in looks:
        at_s += pause
        window = min(10.0, at_s - (state.changes[-1] if state.changes else 0.0)) or 1.0
        observation = seen(at_s, p99_ms, rps, seconds=window) if came else None
        decision, state = decide(state, observation, always(queue), RULES)
        assert decision.reason
        if decision.action == "hold":
            assert decision.to == state.current
            continue
        assert observation is not None and observation.requests >= 100
        assert decision.to != state.current
        assert decision.to not in tried_in_vain or decision.action == "return"
        if decision.action == "change":
            assert not changes or at_s - changes[-1] >= 60
            assert len([time_s for time_s in changes if time_s > at_s - 3600]) < 3
        else:
            assert decision.to == state.good
        if loads:
            state = changed(state, decision, observation, at_s)
            changes.append(at_s)
            assert state.current == decision.to
            assert all(time_s > at_s - 3600 for time_s in state.changes)
        else:
            tried_in_vain.append(decision.to)
            state = refused(state, decision)
