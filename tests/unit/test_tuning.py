"""What tuning computes: which configurations are considered, which are measured, which is the best, what is kept."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from launchpad import batching, tuned
from launchpad.errors import DeclarationError, EnvironmentFault
from launchpad.layout import Layout
from launchpad.spec import BatchQueue, Traffic
from launchpad.tune import predict, profile, profiling, reporting, showing, tuning
from launchpad.tune.predict import Configuration, Expected, Goal, Limits, Model
from launchpad.tune.simulate import Host, ServiceTimes

OFF = Configuration(None, 1, 64)
RATE = Goal("rate", Limits(0.1))


def batched(size: int, threads: int = 1, bound: int = 64, timeout_us: int = 0) -> Configuration:
    queue = BatchQueue(max_batch_size=size, batch_timeout_micros=timeout_us, max_enqueued_batches=bound)
    return Configuration(queue, threads, 1 << 20)


def model(fixed_s: float, row_s: float) -> Model:
    """One request worker that also runs the batches: what batching saves is the fixed part of a run."""
    times = ServiceTimes(fixed_s + row_s * np.arange(129), task_s=np.full(129, 1e-5), read_s=4e-5, answer_s=2e-5)
    return Model(times, Host(cores=2, event_loop=True, inline_s=1.0))


BESIDE = Host(cores=64, front_threads=64)
"""Where requests do not wait for each other."""


def measured(chosen: Configuration, low: float | None, high: float | None, limited: str = "", run: str = "r"):
    middle = math.sqrt(low * high) if low and high else None
    return tuning.Measured(chosen, middle, low, high, [(low or 1.0, 1.0, 250.0, 0.0)], limited, run, 1.0)


# --- prediction -----------------------------------------------------------------------------------------------


def test_the_capacity_is_where_the_request_worker_is_always_busy():
    found = predict.capacity(model(1e-3, 0.0), OFF, RATE.limits, guess_rps=100)
    assert found == pytest.approx(1 / 1.06e-3, rel=0.06)


def test_a_capacity_is_found_from_any_guess():
    near, far = (predict.capacity(model(1e-3, 0.0), OFF, RATE.limits, guess) for guess in (900, 20_000))
    assert near == pytest.approx(far, rel=0.05)


def test_latency_that_no_rate_holds_is_no_capacity():
    assert predict.capacity(model(1.0, 0.0), OFF, Limits(0.5), guess_rps=100) == 0


def test_a_capacity_of_a_few_requests_a_second_is_found_though_one_worker_is_guessed_to_do_less():
    slow = dataclasses.replace(model(1.5, 0.0), host=BESIDE)
    assert predict._guess(slow, 1) < 1
    assert predict.capacity(slow, OFF, Limits(5.0), predict._guess(slow, 1)) > 2


def test_batching_is_expected_to_gain_where_runs_have_a_large_fixed_part_and_to_lose_where_they_have_none():
    large, none = (
        [predict.capacity(model(fixed, row), chosen, RATE.limits, 5000) for chosen in (OFF, batched(32))]
        for fixed, row in ((3e-4, 1e-5), (0.0, 3e-5))
    )
    assert large[1] > 2 * large[0]
    assert none[1] < none[0]


def test_costs_in_doubt_give_an_interval_around_what_is_expected():
    found = predict.expected(model(3e-4, 1e-5), OFF, RATE, 2000)
    assert found.low < found.value < found.high
    assert found.high / found.low == pytest.approx(1.1 / 0.9, rel=0.06)


def test_the_grid_has_off_and_every_combination_once():
    found = predict.grid(2, (64,))
    assert OFF in found
    assert len(found) == len(set(found)) > 500
    assert {one.threads for one in found if one.queue} == {1, 2, 4, 8}
    assert len(predict.grid(2, (64, 128))) == 2 * len(found)


def test_requests_of_several_rows_are_given_batches_that_hold_them():
    sizes = [one.queue.max_batch_size for one in predict.grid(2, (64,), rows=8) if one.queue]
    assert min(sizes) == 8


def test_only_what_could_be_best_is_worth_measuring():
    ranked = [
        Expected(batched(32), 100, 90, 110),
        Expected(batched(32, bound=1024), 100, 90, 110),  # differs in the bound alone
        Expected(batched(16), 95, 86, 104),
        Expected(batched(8), 80, 72, 88),  # does not reach the best
        Expected(batched(4), math.nan, math.nan, math.nan),
    ]
    assert predict.worth_measuring(ranked, RATE, 5) == [batched(32), batched(16)]
    assert predict.worth_measuring(ranked, RATE, 1) == [batched(32)]


@pytest.mark.parametrize("kind", ["rate", "latency"])
def test_what_holds_only_if_costs_are_no_higher_than_measured_is_worth_measuring(kind):
    """A run takes 95 ms; with a tenth more it takes over the 100 that are to hold."""
    goal = Goal(kind, Limits(0.1), 0.5)
    narrow = dataclasses.replace(model(0.095, 0.0), host=BESIDE)
    found = predict.expected(narrow, OFF, goal, 2.0 if kind == "rate" else math.nan)
    assert found.value > 0
    assert (found.low <= found.value) if kind == "latency" else math.isnan(found.low)
    assert predict.worth_measuring([found], goal, 1) == [OFF]


# --- decision -------------------------------------------------------------------------------------------------


def test_the_best_by_measurement_is_taken_whatever_was_expected():
    judged = tuning.judge([measured(OFF, 900, 940), measured(batched(16), 1200, 1250)], RATE)
    assert tuning.decide(judged, RATE).chosen == batched(16)


def test_of_two_that_are_as_good_the_plainer_is_taken():
    judged = tuning.judge([measured(batched(16), 1000, 1050), measured(OFF, 990, 1040)], RATE)
    assert tuning.decide(judged, RATE).chosen == OFF


def test_measurements_of_one_configuration_count_together():
    (judged,) = tuning.judge([measured(OFF, 900, 940, run="a"), measured(OFF, 1000, 1050, run="b")], RATE)
    assert (judged.low, judged.high, judged.runs) == (900, 1050, ("a", "b"))
    assert 940 < judged.value < 1000


def test_a_measurement_in_which_the_generator_was_in_the_way_is_not_used():
    found = tuning.judge([measured(OFF, 900, 940), measured(batched(16), 2000, 2100, limited="at full CPU")], RATE)
    assert [one.chosen for one in found] == [OFF]
    (problem,) = tuning._nothing_holds([measured(OFF, 9, 10, limited="at full CPU")], RATE, 0)
    assert "at full CPU" in problem.what and problem.fix


def test_where_nothing_holds_the_nearest_is_named():
    assert tuning.judge([measured(OFF, None, None)], RATE) == []
    (problem,) = tuning._nothing_holds([measured(OFF, None, None)], RATE, 0)
    assert problem.what == "no configuration holds p99 of 100 ms"
    assert problem.fix == "the nearest is off: p99 250.0 ms at 1 requests/s"
    (problem,) = tuning._nothing_holds([measured(OFF, None, None)], RATE, 3)
    assert problem.what == "the time was over with 3 to measure, and so far no configuration holds p99 of 100 ms"
    (problem,) = tuning._nothing_holds([], RATE, 4)
    assert problem.what == "the time was over before anything was measured"


def test_the_lowest_latency_is_best_where_that_is_the_goal():
    goal = Goal("latency", Limits(0.1), 500)
    judged = tuning.judge([measured(OFF, 9, 10), measured(batched(4), 5, 6)], goal)
    assert tuning.decide(judged, goal).chosen == batched(4)


def test_what_was_measured_is_there_after_an_interruption_unless_the_question_is_another(tmp_path):
    progress = tuning.Progress.at(tmp_path / "progress.json", "key")
    progress.add(measured(batched(16), 1200, 1250))
    assert tuning.Progress.at(tmp_path / "progress.json", "key").of(batched(16)) == progress.measured
    assert tuning.Progress.at(tmp_path / "progress.json", "other").measured == []


def test_a_window_is_as_long_as_it_takes_to_see_enough():
    fast, slow = profiling.Window.at(5000.0), profiling.Window.at(4.0)
    assert (fast.length_s, fast.load_s) == (profiling.WINDOW_S, profiling.LOADED_S)
    assert slow.length_s * 4.0 >= profiling.FEWEST_ANSWERS and slow.load_s > slow.begin_s + slow.length_s
    assert profiling.Window.at(2.0, users=24).begin_s == 12.0  # who ask in turn are answered in turn


def test_requests_that_are_larger_than_any_batch_of_a_profile_are_refused_before_anything_starts():
    with pytest.raises(EnvironmentFault, match="requests of 256 rows: a profile tells of 128 at most"):
        profiling.measure(None, Traffic(model="tiny", batch=256), None, "digest", print)


def test_a_load_that_was_over_too_soon_is_run_once_more(monkeypatch):
    over = profiling._Over("the load was over before it was measured")
    window = profiling.Window.at(5000.0)
    outcomes = [over, "figures", over, over]

    def load(*_):
        if isinstance(outcome := outcomes.pop(0), Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(profiling, "_use", load)
    assert profiling.use(None, None, None, window) == "figures"
    with pytest.raises(EnvironmentFault, match="over before it was measured"):
        profiling.use(None, None, None, window)
    assert outcomes == []


@pytest.fixture
def slow_looks(monkeypatch) -> list[float]:
    """Looks that take 0.15 s each at a load of 1,000 requests/s; returned is when it ends, to be set."""
    now, ends = [0.0], [math.inf]

    def look(*_: object) -> profiling._Look:
        at = now[0]
        now[0] += 0.15
        return profiling._Look(at, profiling._Counts(*[1000 * at] * 5), at, at / 2 if at < ends[0] else 0.0, 1.5 * at)

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(profiling, "time", clock)
    monkeypatch.setattr(profiling, "_look", look)
    for name in ("_Page", "_pid", "_await_load"):
        monkeypatch.setattr(profiling, name, lambda *_: None)
    return ends


def test_looks_at_a_load_go_by_the_clock_however_long_each_takes(slow_looks):
    """A server that is slow to show its metrics page does not make the window outlast the load."""
    window = profiling.Window.at(1000)
    looks = profiling._looks(None, None, window)
    used = profiling._seen(looks, 1.0)
    assert used.rate_rps == pytest.approx(1000) and used.server_s == pytest.approx(1e-3)
    assert looks[-1].at_s < window.length_s + 0.4


def test_a_load_that_ends_within_the_window_is_not_measured(slow_looks):
    window = profiling.Window.at(1000)
    slow_looks[0] = window.length_s / 2
    with pytest.raises(profiling._Over):
        profiling._looks(None, None, window)


def test_a_simulation_is_long_enough_for_its_latency_and_no_longer_than_can_be_borne():
    assert predict._enough(12_000, Limits(0.1), 10_000.0) == 20_000
    assert predict._enough(12_000, Limits(0.01), 10_000.0) == 12_000
    assert predict._enough(12_000, Limits(5.0), 10_000.0) == 48_000


@pytest.mark.parametrize(
    ("p99_ms", "use", "value"),
    [(8.0, [[0, None, 90.0], [1, 0.5, 90.0], [2, 0.7, 90.0]], 15.0), (120.0, [[1, 0.5, 90.0]], None)],
)
def test_the_least_resource_is_the_servers_share_of_the_cores_over_the_run(tmp_path, p99_ms, use, value):
    totals = {"requests": 100, "failures": 0, "p50_ms": 1.0, "p99_ms": p99_ms}
    bench = SimpleNamespace(
        layout=SimpleNamespace(results=lambda run: tmp_path),
        outcome=lambda *words, file: {"run": "r", "totals": totals, "generator": {"why": ""}},
    )
    state = SimpleNamespace(
        goal=Goal("resource", Limits(0.1), rate_rps=200.0), profile=SimpleNamespace(machine={"cores": 4})
    )
    (tmp_path / "server.json").write_text(json.dumps({"use": use}))
    assert tuning._measure_at_rate(bench, state, OFF).value == (value and pytest.approx(value))


def test_a_server_whose_processor_time_cannot_be_seen_is_no_resource_to_compare(tmp_path):
    (tmp_path / "server.json").write_text('{"use": []}')
    with pytest.raises(EnvironmentFault, match="processor time cannot be seen"):
        tuning._server_cores(tmp_path)


FLAGS = "name: tiny\nmodels: {tiny: {source: model.py:build}}\nserving: {flags: {rest_api_num_threads: 64}}\n"


@pytest.mark.parametrize(("protocol", "missing"), [("rest", {}), ("grpc", {"grpc_max_threads": 64})])
def test_a_flag_is_missing_where_the_traffic_goes_by_it(declare, monkeypatch, protocol, missing):
    """OFF was measured with 64 of either; undeclared it is four times the cores."""
    monkeypatch.setattr(tuning.machine, "describe", lambda: {"cores": 2})
    context, line = SimpleNamespace(declaration=declare(FLAGS)), Traffic(model="tiny", protocol=protocol)
    assert tuning.missing_flags(context, line, OFF) == missing
    assert tuning.request_threads(context, line) == ((8,) if missing else (64,))
    with_flag = dataclasses.replace(OFF, operation_threads=2)
    assert tuning.missing_flags(context, line, with_flag) == {**missing, profile.INTRA_OP: 2}


def test_a_rate_that_was_asked_twice_is_one_point_of_a_line():
    points = [(200.0, 9.0), (100.0, 5.0), (200.0, 11.0), (100.0, 4.0), (100.0, 90.0)]
    assert reporting.medians(points) == [(100.0, 5.0), (200.0, 10.0)]


def test_the_pareto_front_leaves_out_what_is_beaten_in_both():
    points = [(100.0, 5.0), (200.0, 9.0), (150.0, 12.0), (300.0, 40.0), (90.0, 6.0)]
    assert reporting.pareto(points) == [(100.0, 5.0), (200.0, 9.0), (300.0, 40.0)]


@pytest.mark.parametrize(
    ("kind", "slower", "told"),
    [("rate", 1.0, False), ("rate", 1.2, False), ("rate", 2.8, True), ("rate", 0.5, True), ("latency", 2.8, False)],
)
def test_a_machine_that_is_another_than_while_it_was_profiled_is_told(kind, slower, told):
    expected = {OFF: 5300.0, batched(16): 9200.0, batched(32): math.nan}
    done = SimpleNamespace(
        goal=Goal(kind, Limits(0.1)),
        profile=SimpleNamespace(others=0.0),
        judged=[SimpleNamespace(chosen=one, value=(value or 9000.0) / slower) for one, value in expected.items()],
        expected=lambda chosen: SimpleNamespace(value=expected[chosen]),
    )
    doubts = reporting.doubts(done)
    assert bool(doubts) == told
    assert not told or f"{1 / slower:.2f} times what was expected" in doubts[0]


@pytest.mark.parametrize(("now_rps", "holds"), [(5000.0, True), (4000.0, True), (1800.0, False), (14000.0, False)])
def test_a_kept_profile_holds_as_long_as_the_machine_does_what_it_did(tmp_path, monkeypatch, capsys, now_rps, holds):
    kept = a_profile(full=use(rate_rps=5000.0))
    monkeypatch.setattr(tuning, "Bench", lambda *_: None)
    monkeypatch.setattr(profiling, "highest_rate", lambda *_: use(rate_rps=now_rps))
    context = SimpleNamespace(declaration=None, layout=Layout(tmp_path))
    assert tuning._holds(context, kept) == holds
    assert holds == ("no longer holds (5,000 requests/s without batching then" not in capsys.readouterr().out)


@pytest.mark.parametrize(("minutes", "fresh"), [(0, True), (9, True), (11, False), (60 * 24 * 30, False), (-5, False)])
def test_a_profile_of_a_few_minutes_ago_need_not_be_tried(minutes, fresh):
    measured = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=minutes)
    assert tuning._is_fresh(a_profile(measured=measured.isoformat(timespec="seconds"))) == fresh


# --- profile --------------------------------------------------------------------------------------------------


def use(**values: float) -> profile.Use:
    common = {"rate_rps": 1 / 1.4e-4, "server_s": 1.4e-4, "generator_s": 2e-5, "run_s": 8e-5, "batch": 1.0}
    return profile.Use(**{**common, "median_s": 6e-4, "others": 0.0, **values})


def a_profile(**values) -> profile.Profile:
    sizes = profile.SIZES
    common = {
        "traffic": Traffic(model="tiny"),
        "backend": "embedded",
        "sizes": sizes,
        "run_s": tuple(1e-4 + 2e-5 * size for size in sizes),
        "fixed_s": 1e-4,
        "row_s": 2e-5,
        "residuals": (0.9, 1.1),
        "spread_s": tuple((1e-4, 2e-4) for _ in sizes),
        "together": {2: 1.6},
        "full": use(),
        "large": use(run_s=2e-4),
        "batched": use(server_s=1.1e-4, batch=16.0),
        "deep": use(server_s=1.1e-4, batch=16.0),
        "middle": use(rate_rps=2000.0, server_s=2.2e-4, generator_s=9e-5),
        "high": use(rate_rps=5000.0, server_s=1.75e-4),
        "model_digest": "x",
        "machine": {"cores": 2},
        "seconds": 30.0,
        "measured": "2026-01-01T00:00:00+00:00",
    }
    return profile.Profile(**{**common, **values})


def test_what_a_request_costs_is_divided_into_run_front_and_batching():
    found = a_profile()
    assert found.front_s == pytest.approx(6e-5)
    assert found._batch_of(found.full) == pytest.approx(8e-5, rel=1e-4)  # as under load, not as by itself
    assert found.batch_s[8] == pytest.approx(2e-4, rel=0.01)
    assert found.task_s[1] == 0
    assert found.task_s[16] == found.task_s[128] == pytest.approx(1.1e-4 - 6e-5 - found._batch_of(found.batched) / 16)
    assert (np.diff(found.batch_s) >= 0).all()


@pytest.mark.parametrize(("run_s", "cool_ms"), [(9e-5, 0.98), (1.1e-4, 0.24), (5e-5, 22.0), (9e-4, 0.24)])
def test_caches_are_cold_again_as_fast_as_runs_grow_with_the_pauses_between_them(run_s, cool_ms):
    """A run takes 120 µs alone, 80 under full load, which has pauses of 60; in between with pauses of 400 on average.
    Where it takes less than under full load, or about as much as alone, neighbours had a part in it: bounds hold."""
    found = a_profile(middle=use(rate_rps=2000.0, server_s=2.2e-4, generator_s=9e-5, run_s=run_s))
    assert found.cool_s * 1e3 == pytest.approx(cool_ms, rel=0.05)
    assert found.batch_s[1] + found.cold_s[1] == pytest.approx(1.2e-4)
    assert found._batch_of(found.full) == pytest.approx(8e-5, rel=0.03)
    if run_s == 9e-5:
        pauses_s = np.random.default_rng(1).exponential(1 / 2000 - run_s, 100_000)
        runs_s = found.batch_s[1] + found.cold_s[1] * -np.expm1(-pauses_s / found.cool_s)
        assert runs_s.mean() == pytest.approx(run_s, rel=0.01)


def test_what_deep_batches_save_counts_by_their_size_and_only_on_the_event_loop():
    deep = use(server_s=5.6e-5, batch=32.0)
    quick = a_profile(run_s=tuple(1e-4 + 1e-6 * size for size in profile.SIZES), deep=deep)
    assert quick._runs_inline(deep)
    adds = quick.task_s
    assert adds[32] == pytest.approx(5.6e-5 - 6e-5 - quick._batch_of(deep) / 32) and adds[32] < 0
    assert adds[32] == adds[128] < adds[24] < adds[16]
    assert quick.crowd_s == 0
    runs = tuple(1e-3 + 2e-5 * size for size in profile.SIZES)
    slow = a_profile(run_s=runs, full=use(run_s=9e-4, server_s=9.6e-4), large=use(run_s=1.1e-3), deep=deep)
    assert slow.task_s[128] == slow.task_s[16]  # its batches run beside the loop
    assert a_profile(backend="native", deep=deep).task_s[128] == a_profile(backend="native").task_s[16]


def test_a_request_of_a_batch_may_cost_less_than_one_alone():
    """The work on many at once saves more than forming the batch costs."""
    plain = a_profile()
    saving = plain._added_s(plain.batched) + 5e-6
    cheap = a_profile(batched=dataclasses.replace(plain.batched, server_s=plain.batched.server_s - saving))
    assert cheap.task_s[16] == cheap.task_s[128] == pytest.approx(-5e-6, rel=0.02)
    assert cheap.task_s[16] < cheap.task_s[4] < cheap.task_s[1] == 0


def test_what_deep_batches_cost_more_is_the_crowd_whose_requests_they_are():
    run_s = tuple(1e-4 + 1e-6 * size for size in profile.SIZES)
    plain = a_profile(run_s=run_s)
    as_dear = plain.front_s + plain.batch_s[64] / 64 + plain._added_s(plain.batched)
    found = a_profile(run_s=run_s, deep=use(server_s=as_dear + 4e-6, batch=64.0))
    assert found.crowd_s == pytest.approx(4e-6, abs=5e-7)
    assert found.task_s == pytest.approx(plain.task_s)
    assert (found.host(64).crowd_s, found.host(64).crowd) == (found.crowd_s, 2 * profile.USERS)
    slow = dataclasses.replace(found, run_s=tuple(3e-3 + 2e-5 * size for size in profile.SIZES))
    assert slow.crowd_s == 0  # its batches run beside the loop


def test_what_a_request_of_a_small_batch_costs_is_that_of_few_users():
    run_s = tuple(1e-4 + 1e-6 * size for size in profile.SIZES)
    plain = a_profile(run_s=run_s)
    of_many = plain.task_s[16]
    few = use(server_s=plain.front_s + plain.batch_s[3] / 3 + of_many + 5e-6, batch=3.0)
    found = a_profile(run_s=run_s, few=few)
    assert found.task_s[3] == pytest.approx(of_many + 5e-6, abs=5e-7)
    assert found.task_s[[1, 16]] == pytest.approx(plain.task_s[[1, 16]])
    cheap = a_profile(run_s=run_s, few=dataclasses.replace(few, server_s=few.server_s - 1e-5))
    assert cheap.task_s[3] == of_many  # they save no more than many do


def test_what_a_batch_of_one_request_costs_more_is_that_of_a_load_of_such():
    run_s = tuple(1e-4 + 1e-6 * size for size in profile.SIZES)
    plain = a_profile(run_s=run_s)
    alone = use(rate_rps=2000.0, server_s=plain.front_s + plain.run_s[0])
    dear = dataclasses.replace(alone, server_s=alone.server_s + 1.5e-5)
    adds = [a_profile(run_s=run_s, single=one).task_s for one in (alone, dear)]
    assert adds[1][1] - adds[0][1] == pytest.approx(1.5e-5, abs=2e-6)
    assert adds[1][16] == plain.task_s[16]


def test_what_a_batch_on_a_thread_costs_more_is_found_by_what_was_answered():
    runs = tuple(3e-3 + 2e-5 * size for size in profile.SIZES)
    slow = use(rate_rps=325.0, run_s=3.02e-3, server_s=3.08e-3)
    calm = {"middle": dataclasses.replace(slow, rate_rps=150.0), "high": dataclasses.replace(slow, rate_rps=280.0)}
    deep = use(rate_rps=4000.0, server_s=1e-4, batch=64.0)
    batched = use(rate_rps=12_000.0, server_s=1.4e-4, batch=16.0)
    shared = {"run_s": runs, "full": slow, "large": use(run_s=3.1e-3), "batched": batched, "deep": deep, **calm}
    found = profile.calibrated(a_profile(**shared), 64)
    assert found.thread_s > 1e-4
    assert profile._answered_rps(found, 2, 64) == pytest.approx(4000, rel=0.02)
    quick = profile.calibrated(a_profile(run_s=tuple(1e-4 + 1e-6 * size for size in profile.SIZES), deep=deep), 64)
    assert quick.thread_s == 0


@pytest.mark.parametrize("rows", [4, 8, 16, 64])
def test_requests_of_several_rows_do_not_make_batching_dear(rows):
    """Their batches hold fewer requests than rows; here joining them costs nothing."""
    runs = dict(zip(profile.SIZES, (1e-4 + 1e-6 * size for size in profile.SIZES), strict=True))
    found = a_profile(
        traffic=Traffic(model="tiny", batch=rows),
        run_s=tuple(runs.values()),
        full=use(run_s=runs[rows], server_s=6e-5 + runs[rows], rate_rps=1 / (6e-5 + runs[rows])),
        large=use(run_s=runs[8], server_s=6e-5 + runs[8], rate_rps=1 / (6e-5 + runs[8])),
        batched=use(server_s=6e-5 + runs[64] / (64 / rows), batch=64.0),
        deep=use(server_s=6e-5 + runs[64] / (64 / rows), batch=64.0),
    )
    assert found.front_s == pytest.approx(6e-5)
    assert found.task_s == pytest.approx(np.zeros(129), abs=1e-9)


@pytest.mark.parametrize("backend", ["embedded", "docker", "native"])
def test_runs_that_share_the_processors_are_as_long_as_by_themselves(backend):
    """With many at once the server counts what the others took as well."""
    slow = tuple(1e-2 + 1e-3 * size for size in profile.SIZES)
    crowded = use(run_s=0.12, server_s=0.0112, rate_rps=180.0)
    found = a_profile(backend=backend, run_s=slow, full=crowded, large=crowded)
    assert found.batch_s[1] == pytest.approx(0.011)
    assert found.batch_s[64] == pytest.approx(0.074)
    assert found.front_s == pytest.approx(2e-4)


OTHERWISE = profile.Otherwise(2, tuple((1e-4 + 2e-5 * size) / 2 for size in profile.FEWER_SIZES), {2: 2.0})


def test_with_other_threads_for_an_operation_runs_change_as_they_do_by_themselves():
    alike = Model.of(a_profile(otherwise=OTHERWISE, together={2: 1.0}))
    usual, fast = batched(16), dataclasses.replace(batched(16), operation_threads=2)
    times, host = alike.otherwise[2]
    assert times.batch_s[16] == pytest.approx(alike.times.batch_s[16] / 2)
    assert times.batch_s[100] == pytest.approx(alike.times.batch_s[100] / 2)
    assert (alike.host.batch_cores, host.batch_cores) == (1.0, 2.0)  # what it gains by itself, it takes from others
    waits = [alike.at(chosen, 500, 5000).percentile_ms(50) for chosen in (usual, fast)]
    assert waits[1] < waits[0]
    assert alike.costlier(2.0).otherwise[2][0].batch_s[16] == pytest.approx(2 * times.batch_s[16])


def test_numbers_of_threads_for_an_operation_are_considered_unless_a_flag_says_how_many(monkeypatch):
    monkeypatch.setattr(profiling.machine, "describe", lambda: {"cores": 8})
    assert profiling.operation_threads({}, "docker") == (8, 1)
    assert profiling.operation_threads({profile.INTRA_OP: 4}, "docker") == (4, 0)
    both = {"tensorflow_session_parallelism": 2}
    assert profiling.operation_threads(both, "embedded") == (2, 0)
    assert profiling.operation_threads(both | {profile.INTER_OP: 3}, "docker") == (8, 1)  # which ignores it then
    monkeypatch.setattr(profiling.machine, "describe", lambda: {"cores": 1})
    assert profiling.operation_threads({}, "docker") == (1, 0)
    usual, both = (predict.grid(2, [64], operation_threads=numbers) for numbers in ((0,), (0, 2)))
    assert len(both) == 2 * len(usual) == len(set(both))
    assert both[1].title == "off, 2 threads an operation" and both[1].flags[profile.INTRA_OP] == 2


def test_what_neighbours_take_of_the_processor_does_not_count_as_the_runs():
    """With a third of its time taken, a run lasts half as long again, and the loop does two thirds of the requests."""
    alone, crowded = a_profile(), a_profile(full=use(run_s=1.2e-4, rate_rps=2 / 3 / 1.4e-4))
    assert crowded.front_s == pytest.approx(alone.front_s)
    assert crowded._batch_of(crowded.full) == pytest.approx(alone._batch_of(alone.full))


def test_a_calibrated_profile_gives_the_processor_time_and_the_latency_that_were_measured():
    found = profile.calibrated(a_profile())
    middle, high = (Model.of(found).at(OFF, use.rate_rps, 20_000) for use in (found.middle, found.high))
    server_s = sum(use.processor_use * 2 / rate for use, rate in ((middle, 2000), (high, 5000)))
    assert server_s == pytest.approx(found.middle.server_s + found.high.server_s, rel=0.03)
    assert middle.generator_use / found.middle.rate_rps == pytest.approx(found.middle.generator_s, rel=0.03)
    assert middle.percentile_ms(50) == pytest.approx(found.middle.median_s * 1e3, rel=0.03)
    assert found.turn_s > 0 and found.wake_s == 0


def test_a_server_with_a_thread_for_each_request_has_no_turns():
    found = profile.calibrated(a_profile(backend="native"))
    assert found.turn_s == 0 and found.wake_s > 0


def test_a_profile_is_the_same_when_it_is_read_again(tmp_path):
    layout = Layout(tmp_path)
    profile.save(layout, a_profile())
    assert profile.load(layout, "tiny") == a_profile()
    assert layout.service_profile("tiny").with_suffix(".svg").read_text().startswith("<svg")


# --- parameters and the tuned file ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["a\0b", "!!bool x", "{max_batch_size: !!int ''}", "[" * 2000, "{a: 1, a: 2}", "&a [*a]"]
)
def test_parameters_that_are_no_yaml_are_refused(text):
    with pytest.raises(DeclarationError):
        showing.parse(text, 64)


def test_parameters_are_given_as_in_the_declaration():
    assert showing.parse("off", 64) == OFF
    found = showing.parse("{max_batch_size: 16, num_batch_threads: 2}", 64)
    assert (found.queue, found.threads) == (BatchQueue(max_batch_size=16), 2)


@pytest.mark.parametrize("text", ["[1", "16", "{max_batch_size: 16}", "{max_batch_size: 0, num_batch_threads: 1}"])
def test_parameters_that_are_none_are_refused(text):
    with pytest.raises(DeclarationError):
        showing.parse(text, 64)


TEXT = """\
name: tiny
models:
  a: {source: m.py:f}
  b: {source: m.py:f}
serving: {batching: tuned}
"""


@pytest.fixture
def checkout(declare, tmp_path):
    for name in ("a", "b"):
        version = tmp_path / "models" / name / "versions" / "1"
        version.mkdir(parents=True)
        (version / "saved_model.pb").write_text(name)
    return declare(TEXT)


def keep(checkout, name: str, queue: BatchQueue | None, threads: int = 1, **evidence) -> dict:
    layout = Layout(checkout.root)
    common = {"model_digest": tuned.model_digest(layout, name), "machine": tuned.machine.describe()}
    return tuned.write(layout, name, queue, threads, {**common, **evidence})


def test_what_was_tuned_is_what_the_server_gets(checkout):
    keep(checkout, "a", None)
    keep(checkout, "b", BatchQueue(max_batch_size=32, allowed_batch_sizes=(8, 32)), threads=4)
    found = batching.effective(checkout)
    assert found.server and found.server.num_batch_threads == 4
    assert found.queues == {"a": None, "b": BatchQueue(max_batch_size=32, allowed_batch_sizes=(8, 32))}


def test_tuning_one_model_again_keeps_what_was_found_for_another(checkout):
    keep(checkout, "b", BatchQueue(max_batch_size=32, allowed_batch_sizes=(8, 32)), threads=4)
    keep(checkout, "a", None)
    assert batching.effective(checkout).queues["b"] == BatchQueue(max_batch_size=32, allowed_batch_sizes=(8, 32))


def test_what_differs_from_what_was_tuned_before_is_told_and_nothing_where_nothing_does(checkout):
    assert keep(checkout, "a", None) == {"tuned.batching": (None, "off"), "tuned.models.a": (None, "off")}
    assert keep(checkout, "a", None) == {}
    changed = keep(checkout, "a", BatchQueue(max_batch_size=32))
    assert changed["tuned.models.a"] == ("off", None) and changed["tuned.models.a.max_batch_size"] == (None, 32)


def test_nothing_is_batched_where_off_was_best_for_all(checkout):
    keep(checkout, "a", None)
    keep(checkout, "b", None)
    assert batching.effective(checkout).server is None


def test_nothing_is_doubted_of_what_was_tuned_here(checkout):
    keep(checkout, "a", None)
    keep(checkout, "b", None)
    assert tuned.doubts(checkout) == []


def test_another_model_another_machine_or_no_tuning_at_all_is_told(checkout):
    keep(checkout, "a", None, machine={**tuned.machine.describe(), "cores": 4096})
    what = [problem.what for problem in tuned.doubts(checkout)]
    assert len(what) == 2 and "cores was 4096" in what[0]
    assert what[1] == "nothing was tuned for b"

    keep(checkout, "a", None)
    (checkout.root / "models" / "a" / "versions" / "1" / "saved_model.pb").write_text("retrained")
    assert "a is not the model that the parameters were tuned for" in [one.what for one in tuned.doubts(checkout)]


def test_a_flag_that_parameters_were_tuned_with_and_that_is_not_declared_is_told(checkout):
    keep(checkout, "a", None, flags={profile.INTRA_OP: 2})
    keep(checkout, "b", None)
    (problem,) = tuned.doubts(checkout)
    assert problem.what == "a was tuned with tensorflow_intra_op_parallelism 2, declared is nothing"
    assert problem.fix == "declare serving.flags.tensorflow_intra_op_parallelism: 2"


def test_nothing_is_doubted_where_nothing_tuned_is_obeyed(declare):
    assert tuned.doubts(declare(TEXT.replace("tuned", "off"))) == []


def test_the_tuned_file_says_what_it_rests_on(checkout):
    keep(checkout, "a", None, runs=["20260101-000000-abcd"], made="2026-01-01")
    content = yaml.safe_load(Layout(checkout.root).tuned.read_text())
    assert content["evidence"]["a"]["runs"] == ["20260101-000000-abcd"]
