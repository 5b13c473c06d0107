"""The autotuner's rounds against a scripted server: what it applies, and that it holds still when in doubt."""

from __future__ import annotations

import signal

import pytest

from launchpad.client import ServerError
from launchpad.errors import EnvironmentFault
from launchpad.modelserver.metrics import Metrics
from launchpad.publishing import NotLoaded
from launchpad.spec import Autotune, BatchQueue
from launchpad.tune.autotune.control import Rules, ThreadPool, Wish
from launchpad.tune.autotune.threshold import threshold
from launchpad.tune.autotune.tuner import SERVER, Autotuner, Entry

START = BatchQueue(max_batch_size=4, max_enqueued_batches=64)
RULES = Rules(
    Autotune(interval_s=5, window_s=10, min_requests=50, confirmations=1, cool_down_s=0, load_floor_rps=10), 100.0
)


class Scripted:
    """A server whose latency is what the test says for each batch size, and which may fail in any way."""

    def __init__(self) -> None:
        self.started = "first"
        self.counted = Metrics(batching=True)
        self.served = {"m": (1, START)}
        self.latency_ms = lambda queue: 20.0
        self.trouble: Exception | None = None
        self.refuses = False
        self.published: list[int] = []

    def serve(self, requests: int) -> None:
        for name, (_, queue) in self.served.items():
            if isinstance(queue, ThreadPool):
                continue
            self.counted.request_count.add(name, "OK", amount=requests)
            cell = self.counted.request_latency.cell(name, "predict", "REST")
            for _ in range(requests):
                cell.add(self.latency_ms(queue) * 1000)
            self.counted.processed_batch_size.cell().add(queue.max_batch_size)

    def instance(self) -> str:
        return self.started

    def metrics(self) -> str:
        if self.trouble:
            raise self.trouble
        return self.counted.page()

    def version(self, model: str) -> int:
        return self.served[model][0]

    def setting(self, model: str, version: int):
        return self.served[model][1]

    def publish(self, model: str, queue, why: str) -> int:
        self.published.append(queue.max_batch_size)
        if self.refuses:
            raise NotLoaded("the server did not load it: no memory")
        self.served[model] = (self.served[model][0] + 1, queue)
        return self.served[model][0]


class Run:
    """Rounds of an autotuner, 5 s apart."""

    def __init__(self, server: Scripted, rules: Rules = RULES, dry_run: bool = False) -> None:
        self.server = server
        self.entries: list[Entry] = []
        self.now_s = 0.0
        wish = threshold(rules)

        def policy(name, situation):
            return wish(situation.settings[name], situation.seen[name])

        self.tuner = Autotuner(server, list(server.served), policy, rules, self.entries.append, dry_run, self.clock)

    def clock(self) -> float:
        """Every look at the clock takes a microsecond."""
        self.now_s += 1e-6
        return self.now_s

    def go(self, rounds: int, requests: int = 100) -> list[Entry]:
        """Return the entries of so many further rounds."""
        known = len(self.entries)
        for _ in range(rounds):
            self.server.serve(requests)
            self.now_s += 5
            self.tuner.look()
        return self.entries[known:]


@pytest.fixture
def server() -> Scripted:
    return Scripted()


def test_parameters_grow_one_judged_step_after_the_other(server):
    entries = Run(server).go(20)
    assert server.published == [8, 16, 32, 64]
    applied = [entry for entry in entries if entry.outcome == "applied"]
    assert [entry.version for entry in applied] == [2, 3, 4, 5]
    assert "p99" in applied[0].decision.reason and applied[0].seen.rate_rps == pytest.approx(20)


def test_a_change_that_ctrl_c_falls_into_is_brought_to_its_end_and_told(server):
    run = Run(server)
    publish = server.publish

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        return publish(*arguments)

    server.publish = interrupted
    with pytest.raises(KeyboardInterrupt):
        run.go(20)
    assert server.version("m") == 2
    assert (run.entries[-1].outcome, run.entries[-1].version) == ("applied", 2)


def test_time_that_a_policy_takes_to_think_makes_no_rate_higher(server):
    run = Run(server)
    quick = run.tuner._policy

    def slow(name, situation):
        run.now_s += 9
        return quick(name, situation)

    run.tuner._policy = slow
    rates = [entry.seen.rate_rps for entry in run.go(20) if entry.seen]
    assert rates and max(rates) < 20.01


def test_a_step_that_makes_it_worse_is_taken_back_and_not_repeated(server):
    server.latency_ms = lambda queue: 90.0 if queue.max_batch_size > 8 else 20.0
    entries = Run(server, Rules(RULES.declared.model_copy(update={"cool_down_s": 60.0}), 100.0)).go(60)
    assert server.published == [8, 16, 8]
    assert [entry.decision.action for entry in entries if entry.is_change] == ["change", "change", "return"]


def test_what_a_change_itself_costs_is_not_held_against_it(server):
    run = Run(server)
    assert run.go(2)[-1].outcome == "applied"
    server.latency_ms = lambda queue: 90.0
    for _ in range(2):
        run.now_s += 0.3
        run.tuner.look()
        server.serve(6)
    server.latency_ms = lambda queue: 20.0
    assert not [entry for entry in run.go(3) if entry.decision.action == "return"]
    assert any("the change is good" in entry.decision.reason for entry in run.entries)


def test_metrics_that_stop_change_nothing_and_are_told(server):
    run = Run(server)
    run.go(1)
    server.trouble = ServerError("timeout", "no answer in 5 s")
    entries = run.go(10)
    assert not server.published and all(entry.outcome == "held" for entry in entries)
    assert "the metrics do not come (timeout: no answer in 5 s)" in entries[-1].decision.reason
    server.trouble = None
    assert "nothing is known" in run.go(1)[0].decision.reason
    assert [entry.outcome for entry in run.go(1)] == ["applied"]


def test_a_page_cut_off_in_the_middle_changes_nothing(server):
    run = Run(server)
    server.metrics = lambda: server.counted.page()[:-20]
    assert all("cut off" in entry.decision.reason for entry in run.go(5))
    assert not server.published


def test_a_page_that_lacks_what_the_one_before_had_changes_nothing(server):
    run = Run(server)
    run.go(1)
    whole = server.metrics
    server.metrics = lambda: "\n".join(line for line in whole().splitlines() if "request_latency" not in line) + "\n"
    entries = run.go(3)
    assert "the metrics do not come" in entries[0].decision.reason
    assert not server.published


def test_a_server_that_is_gone_changes_nothing_and_is_told(server):
    run = Run(server)
    server.instance = lambda: (_ for _ in ()).throw(EnvironmentFault("the launched server has ended"))
    assert all("the launched server has ended" in entry.decision.reason for entry in run.go(3))


def test_another_server_that_cannot_be_read_at_once_is_begun_anew_with_all_the_same():
    server = Scripted()
    run = Run(server)
    run.go(2)
    other = BatchQueue(max_batch_size=8)
    server.started, server.served["m"] = "second", (1, other)
    read = server.setting

    def unreadable(model, version):
        server.setting = read
        raise EnvironmentFault("there is no such file")

    server.setting = unreadable
    run.go(2)
    assert run.tuner._models["m"].state.current == run.tuner._models["m"].state.good == other


def test_a_version_that_is_not_loaded_is_not_tried_again(server):
    server.refuses = True
    entries = Run(server).go(40)
    assert server.published == [8]
    assert "no memory" in next(entry.outcome for entry in entries if entry.is_change)
    assert "did not load batches of 8" in entries[-1].decision.reason
    assert server.served["m"] == (1, START)


def test_what_cannot_be_published_is_tried_again_only_after_a_cool_down(server):
    def full(model, queue, why):
        server.published.append(queue.max_batch_size)
        raise OSError(28, "No space left on device")

    server.publish = full
    entries = Run(server, Rules(RULES.declared.model_copy(update={"cool_down_s": 50.0}), 100.0)).go(30)
    assert len(server.published) == 3
    assert "No space left" in next(entry.outcome for entry in entries if entry.is_change)


def test_a_return_that_cannot_be_made_is_tried_again_after_a_cool_down(server):
    server.latency_ms = lambda queue: 90.0 if queue.max_batch_size > 4 else 20.0
    publish, full = server.publish, []

    def may_fail(model, queue, why):
        if queue == START and len(full) < 2:
            full.append(run.now_s)
            raise OSError(28, "No space left on device")
        return publish(model, queue, why)

    server.publish = may_fail
    run = Run(server, Rules(RULES.declared.model_copy(update={"cool_down_s": 50.0}), 100.0))
    run.go(40)
    assert server.served["m"][1] == START
    assert full[1] - full[0] == pytest.approx(50, abs=6)


def test_a_change_that_was_made_in_spite_of_an_error_is_on_trial(server):
    publish = server.publish

    def half(model, queue, why):
        publish(model, queue, why)
        raise EnvironmentFault("the server does not let go of m version 1")

    server.publish = half
    run = Run(server)
    entry = run.go(2)[-1]
    assert entry.outcome.startswith("applied, though") and entry.version == 2
    assert any("the change is good" in later.decision.reason for later in run.go(4))


def test_a_dry_run_says_what_it_would_do_and_does_nothing(server):
    entries = Run(server, dry_run=True).go(10)
    assert not server.published
    assert {entry.outcome for entry in entries} == {"held", "would apply"}
    assert next(entry for entry in entries if entry.is_change).decision.to.max_batch_size == 8


def test_a_server_that_started_again_is_learnt_anew(server):
    run = Run(server)
    run.go(3)
    server.started, server.served, server.counted = "second", {"m": (1, START)}, Metrics(batching=True)
    (entry,) = run.go(1)
    assert entry.version == 1 and "nothing is known" in entry.decision.reason
    assert server.published == [8]
    run.go(1)
    assert server.published == [8, 8]


def test_what_someone_else_published_is_taken_as_it_is(server):
    run = Run(server)
    run.go(1)
    server.served["m"] = (7, BatchQueue(max_batch_size=2))
    run.go(2)
    assert server.published == [4]
    assert server.served["m"][0] == 8


def test_another_thread_pool_means_another_server_and_the_models_keep_what_they_have(server):
    server.served[SERVER] = (0, ThreadPool(2))
    run = Run(server)
    run.tuner._policy = lambda name, situation: Wish(
        ThreadPool(4) if name == SERVER else situation.settings[name], "a reason"
    )

    def replaced(model, setting, why):
        assert model == SERVER
        server.started, server.counted = "second", Metrics(batching=True)
        server.served[SERVER] = (0, setting)
        return 0

    server.publish = replaced
    entries = run.go(2)
    assert [(entry.model, entry.outcome) for entry in entries[-2:]] == [("m", "held"), (SERVER, "applied")]
    entries = run.go(4)
    assert not any(entry.is_change for entry in entries)
    assert run.tuner._models[SERVER].state.good == ThreadPool(4)
    assert {entry.instance for entry in entries} == {"second"}


def test_the_load_of_models_that_are_not_adjusted_is_seen_too(server):
    server.served["n"] = (1, START)
    run = Run(server)
    known = []

    def policy(name, situation):
        known.append(situation)
        return Wish(situation.settings[name], "a reason")

    run.tuner = Autotuner(server, ["m"], policy, RULES, run.entries.append, clock=run.clock, watched={"n": None})
    run.go(4)
    assert known and all(situation.seen["n"].requests for situation in known)
    assert {entry.model for entry in run.entries} == {"m"}


def test_two_models_are_not_changed_at_once(server):
    server.served["n"] = (1, START)
    run = Run(server)
    first = run.go(2)[-2:]
    assert [entry.outcome for entry in first] == ["applied", "held"]
    assert "a change of m is on trial" in first[1].decision.reason
    run.go(3)
    assert (server.served["m"][0], server.served["n"][0]) == (2, 2)
