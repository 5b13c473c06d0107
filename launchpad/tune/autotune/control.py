"""When to change batching parameters, and when to take a change back. Pure: (state, observation) to decision.

A policy says which parameters it wants for what it sees; this module says whether and when they are tried. A change is
on trial for a window: if the latency is worse after it than before, at a comparable rate, the last good parameters come
back and what was tried is barred for a while. While the objective holds there is time to look again, for on a machine
that others share the latency of one window is theirs as much as the parameters'. Less load is no excuse for a higher
latency: clients that wait for their answers ask less of a slow server. Everything is seconds on one clock, and
immutable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from launchpad.spec import Autotune, BatchQueue


@dataclass(frozen=True)
class ThreadPool:
    """What the server's models share: batches that run at once."""

    num_batch_threads: int


Setting = BatchQueue | ThreadPool | None
"""What is adjusted: the parameters of a model's queue (None: it is not batched), or the thread pool of the server."""

HOUR_S = 3600.0
COMPARABLE = 1.25
"""Rates that differ by less than this factor let latencies be compared."""
PATIENCE_WINDOWS = 10
"""A change that too few requests have seen after so many windows is on trial no more."""
BARRED_COOL_DOWNS = 10
"""For so many cool-downs parameters that were taken back are not tried again, unless the rate becomes another."""


@dataclass(frozen=True)
class Observation:
    """What the metrics page says of a model over a window.

    at_s: its end. seconds: its length. requests: answered in it, whether well or not; failures: those not.
    Latencies in ms, as the server measures them, of requests answered well; None where there was none.
    batch_size, queueing_ms: means over all batched models, for the page does not tell them apart; None without any.
    largest_request: no batched request had more examples; a queue with smaller batches would refuse some.
    steady: the rate at the end of the window is that of the window.
    """

    at_s: float
    seconds: float
    requests: int
    failures: int
    mean_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    batch_size: float | None = None
    queueing_ms: float | None = None
    largest_request: int = 1
    steady: bool = True

    @property
    def rate_rps(self) -> float:
        return self.requests / self.seconds

    @property
    def error_rate(self) -> float:
        return self.failures / self.requests if self.requests else 0.0


@dataclass(frozen=True)
class Wish:
    """What a policy wants; the present setting where it wants no change."""

    setting: Setting
    reason: str


Policy = Callable[[Setting, Observation], Wish]


@dataclass(frozen=True)
class Trial:
    """A change that is being judged by what is seen from `since_s` on.

    before: what was seen under the parameters that it replaced. worse: windows in a row in which it was worse, though
    the objective held.
    """

    before: Observation
    since_s: float
    worse: int = 0


@dataclass(frozen=True)
class Barred:
    """Parameters that were taken back, the rate before they were tried, and until when they are not tried again."""

    setting: Setting
    rate_rps: float
    until_s: float


@dataclass(frozen=True)
class State:
    """What is known of a model's parameters.

    good: the last ones under which the latency was no worse. changes: times of the changes of the last hour.
    wish, wished: what was wanted at the last look, and how many looks in a row.
    refused: parameters that the server did not load; they are not tried again while the server is the same.
    return_s: a return that could not be applied is not tried again before.
    """

    current: Setting
    good: Setting
    trial: Trial | None = None
    changes: tuple[float, ...] = ()
    wish: Setting = None
    wished: int = 0
    barred: tuple[Barred, ...] = ()
    refused: tuple[Setting, ...] = ()
    return_s: float = 0.0

    @classmethod
    def of(cls, setting: Setting) -> State:
        """The state at the start: what is served counts as good."""
        return cls(setting, setting)


@dataclass(frozen=True)
class Decision:
    """What to do about a model, and why. `to` is what it is to have: the present parameters where nothing changes."""

    action: Literal["hold", "change", "return"]
    to: Setting
    reason: str


@dataclass(frozen=True)
class Rules:
    """What decides, beside the policy: the declared section, and the objective as limits.

    rows: of the largest request that is declared, for the metrics page counts rows of batched models only.
    """

    declared: Autotune
    p99_ms: float
    error_rate: float = 0.01
    rows: int = 1

    def holds(self, seen: Observation) -> bool:
        """Tell whether the objective holds."""
        return seen.p99_ms is not None and seen.p99_ms <= self.p99_ms and seen.error_rate <= self.error_rate


def decide(state: State, seen: Observation | None, policy: Policy, rules: Rules) -> tuple[Decision, State]:
    """Return what to do, and the state with what was learnt. `seen` None: nothing is known of the present load.

    The state changes its parameters only by `changed`, when the server has really gone over to them.
    """
    quiet = replace(state, wish=None, wished=0)
    if seen is None:
        return Decision("hold", state.current, "nothing is known of the present load"), quiet
    trouble = _undecidable(seen, rules)
    if not trouble:
        return _judge(state, state.trial, seen, rules) if state.trial else _consider(state, seen, policy, rules)
    if state.trial and seen.at_s > state.trial.since_s + PATIENCE_WINDOWS * rules.declared.window_s:
        return Decision("hold", state.current, f"{trouble}: the change stays unjudged"), replace(quiet, trial=None)
    return Decision("hold", state.current, trouble), quiet


def _undecidable(seen: Observation, rules: Rules) -> str:
    """Return why a window tells nothing; empty when it does."""
    if seen.requests < rules.declared.min_requests:
        return f"{seen.requests} requests in {seen.seconds:.0f} s are too few (min_requests)"
    return "" if seen.steady else f"the load is changing, {seen.rate_rps:.0f} requests/s on average"


def changed(state: State, decision: Decision, before: Observation, at_s: float) -> State:
    """Return the state after the server has gone over to what was decided."""
    recent = tuple(time_s for time_s in state.changes if time_s > at_s - HOUR_S)
    trial = None if decision.action == "return" else Trial(before, at_s)
    return replace(state, current=decision.to, trial=trial, changes=(*recent, at_s), wish=None, wished=0)


def refused(state: State, decision: Decision) -> State:
    """Return the state after the server did not load what was decided: it still has what it had."""
    return replace(state, refused=(*state.refused, decision.to), wish=None, wished=0)


def postponed(state: State, at_s: float) -> State:
    """Return the state after a change that did not come about: the next attempt waits as after a change."""
    return replace(state, changes=(*state.changes, at_s), wish=None, wished=0)


def still_on_trial(state: State, at_s: float, rules: Rules) -> State:
    """Return the state after a return that did not come about, from that before it was decided: the change is judged
    again when a cool-down is over."""
    return replace(state, return_s=at_s + rules.declared.cool_down_s)


# --- a change on trial ---


def _judge(state: State, trial: Trial, seen: Observation, rules: Rules) -> tuple[Decision, State]:
    window_s = rules.declared.window_s
    if seen.at_s - seen.seconds < trial.since_s or seen.seconds < window_s:
        why = f"a change is on trial: {max(0.0, seen.at_s - trial.since_s):.0f} of {window_s:g} s"
        return Decision("hold", state.current, why), state
    over, before = replace(state, trial=None), trial.before
    worse = _worse(before, seen, rules)
    if not comparable(before.rate_rps, seen.rate_rps):
        load = f"the load went from {before.rate_rps:.0f} to {seen.rate_rps:.0f} requests/s"
        if rules.holds(seen):
            kept = replace(over, good=state.current)
            return Decision("hold", state.current, f"{load}; the objective holds, the change stays"), kept
        if not worse or seen.rate_rps > before.rate_rps or not rules.holds(before):
            return Decision("hold", state.current, f"{load}: the change cannot be judged by it"), over
        worse = f"{load}, and the objective, which held before the change, does not: {worse}"
    if worse and seen.at_s < state.return_s:
        why = f"{worse}; the way back could not be taken, and is tried again in {state.return_s - seen.at_s:.0f} s"
        return Decision("hold", state.current, why), state
    if not worse:
        why = f"the change is good: p99 {milliseconds(seen.p99_ms)}, {milliseconds(before.p99_ms)} before it"
        return Decision("hold", state.current, why), replace(over, good=state.current)
    times = trial.worse + 1
    if rules.holds(seen) and times < rules.declared.confirmations:
        why = f"{worse}; the objective holds: seen {times} of {rules.declared.confirmations} times"
        doubted = replace(trial, since_s=seen.at_s, worse=times)
        return Decision("hold", state.current, why), replace(state, trial=doubted)
    until_s = seen.at_s + BARRED_COOL_DOWNS * rules.declared.cool_down_s
    known = tuple(bar for bar in state.barred if bar.until_s > seen.at_s)
    barred = replace(over, barred=(*known, Barred(state.current, before.rate_rps, until_s)))
    if state.good == state.current:
        return Decision("hold", state.current, f"{worse}; there is nothing better known to go back to"), barred
    return Decision("return", state.good, f"{worse}: back to the last good parameters"), barred


def _worse(before: Observation, after: Observation, rules: Rules) -> str:
    """Return in which way it is worse than before; empty when it is not."""
    if after.error_rate > max(rules.error_rate, before.error_rate):
        return f"{after.error_rate:.2%} of the requests fail, {before.error_rate:.2%} did before the change"
    if before.p99_ms is None:
        return ""
    if after.p99_ms is None:
        return f"no request is answered well, p99 was {milliseconds(before.p99_ms)} before the change"
    if after.p99_ms > before.p99_ms * (1 + rules.declared.tolerance):
        return f"p99 is {milliseconds(after.p99_ms)}, {milliseconds(before.p99_ms)} before the change"
    return ""


def comparable(before_rps: float, after_rps: float) -> bool:
    low, high = sorted((before_rps, after_rps))
    return high <= low * COMPARABLE


# --- a change to be made ---


def _consider(state: State, seen: Observation, policy: Policy, rules: Rules) -> tuple[Decision, State]:
    """Decide on what a policy wants: not what failed before, not too soon, not too often, not for a moment."""

    def hold(why: str, then: State) -> tuple[Decision, State]:
        return Decision("hold", state.current, why), then

    declared, wish = rules.declared, policy(state.current, seen)
    if wish.setting == state.current:
        return hold(wish.reason, replace(state, wish=None, wished=0))
    wished = state.wished + 1 if state.wish == wish.setting and state.wished else 1
    waiting = replace(state, wish=wish.setting, wished=wished)
    rows = seen.largest_request if state.current else max(seen.largest_request, rules.rows)
    if isinstance(wish.setting, BatchQueue) and rows > wish.setting.max_batch_size:
        largest = f"requests of up to {rows} examples come"
        return hold(f"{wish.reason}; but {largest}, which {describe(wish.setting)} would refuse", waiting)
    if wish.setting in state.refused:
        return hold(f"{wish.reason}; but the server did not load {describe(wish.setting)}", waiting)
    if any(
        bar.setting == wish.setting and bar.until_s > seen.at_s and comparable(bar.rate_rps, seen.rate_rps)
        for bar in state.barred
    ):
        return hold(f"{wish.reason}; but {describe(wish.setting)} was tried at this rate and taken back", waiting)
    recent = [time_s for time_s in state.changes if time_s > seen.at_s - HOUR_S]
    if recent and seen.at_s - recent[-1] < declared.cool_down_s:
        left_s = declared.cool_down_s - (seen.at_s - recent[-1])
        return hold(f"{wish.reason}; cooling down for {left_s:.0f} s more", waiting)
    if len(recent) >= declared.changes_per_hour:
        return hold(f"{wish.reason}; but there were {len(recent)} changes within an hour", waiting)
    if wished < declared.confirmations:
        return hold(f"{wish.reason}; seen {wished} of {declared.confirmations} times", waiting)
    return Decision("change", wish.setting, wish.reason), waiting


def describe(setting: Setting) -> str:
    """Return a setting in few words."""
    if setting is None:
        return "no batching"
    if isinstance(setting, ThreadPool):
        return f"{setting.num_batch_threads} batch threads"
    sizes = f", sizes {'/'.join(map(str, setting.allowed_batch_sizes))}" if setting.allowed_batch_sizes else ""
    return (
        f"batches of {setting.max_batch_size}, {setting.batch_timeout_micros} µs, "
        f"{setting.max_enqueued_batches} enqueued{sizes}"
    )


def figures(seen: Observation) -> str:
    """Return an observation in few words."""
    size = "" if seen.batch_size is None else f", mean batch {seen.batch_size:.1f}"
    return f"{seen.rate_rps:.0f} requests/s, p99 {milliseconds(seen.p99_ms)}{size}"


def milliseconds(value: float | None) -> str:
    """Return a latency for people."""
    return "unknown" if value is None else f"{value:.3g} ms"
