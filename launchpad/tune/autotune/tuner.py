"""The autotuner at work: it looks at the metrics page, decides for each model, and publishes what it decided.

What it decides and when is `control`'s; what the server does is `publishing`'s. Whatever goes wrong on the way, the
server stays as it is: metrics that stop coming, a version that is not loaded, a server that someone replaced.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from launchpad import interrupts
from launchpad.client import ServerError
from launchpad.errors import LaunchpadError
from launchpad.metrics import Snapshot, parse
from launchpad.publishing import NotLoaded
from launchpad.tune.autotune import control
from launchpad.tune.autotune.control import Decision, Observation, Rules, Setting, State, Wish
from launchpad.tune.autotune.observing import observe

SERVER = "the server"
"""What stands for the server's own setting, among the models'."""
SETTLE_S = 1.0
"""What is seen so soon after a change is the change's own: loading and letting go of a version take the processor."""


@dataclass(frozen=True)
class Situation:
    """All settings, and what was seen of each; the models' and, under SERVER, the thread pool's.

    Models that share the server without being adjusted are among them.
    """

    settings: Mapping[str, Setting]
    seen: Mapping[str, Observation]


PolicyOfAll = Callable[[str, Situation], Wish]
"""What a policy wants for one of them."""


class Live(Protocol):
    """The server that is adjusted."""

    def instance(self) -> str:
        """Return which start of the server it is. Raises LaunchpadError where none runs."""

    def metrics(self) -> str:
        """Return the metrics page. Raises ServerError."""

    def version(self, model: str) -> int:
        """Return the version of a model that is served; one number for SERVER. Raises ServerError."""

    def setting(self, model: str, version: int) -> Setting:
        """Return what a version, or the server, is set to."""

    def publish(self, model: str, setting: Setting, why: str) -> int:
        """Have a model, or the server, serve with this setting; return the version. Raises NotLoaded, ServerError."""


@dataclass(frozen=True)
class Entry:
    """A decision, with what it was taken from and what came of it.

    at: seconds since the epoch. instance: which start of the server. version: what is served now. outcome: `held`,
    `applied`, `would apply`, or what went wrong; with `applied` in front where what was decided is served all the same.
    """

    at: float
    instance: str
    model: str
    version: int
    before: Setting
    decision: Decision
    seen: Observation | None
    outcome: str

    @property
    def is_change(self) -> bool:
        return self.decision.action != "hold"


Journal = Callable[[Entry], None]


@dataclass
class _Model:
    state: State
    version: int
    since_s: float = 0.0
    """Pages older than this are of other parameters."""


class Autotuner:
    """Adjusts the models of one server. `look` is one round; times are seconds on `clock`."""

    def __init__(
        self,
        live: Live,
        names: Sequence[str],
        policy: PolicyOfAll,
        rules: Rules,
        journal: Journal,
        dry_run: bool = False,
        clock: Callable[[], float] = time.monotonic,
        watched: Mapping[str, Setting] | None = None,
    ) -> None:
        """names: what to adjust, models and SERVER. watched: other models, whose load counts, and what they have.

        Raises ServerError where the server cannot be asked.
        """
        self._live = live
        self._policy = policy
        self._rules = rules
        self._journal = journal
        self._dry_run = dry_run
        self._clock = clock
        self._watched = watched or {}
        self._pages: deque[Snapshot] = deque()
        self._seen: dict[str, Observation | None] = {}
        self._trouble = ""
        self._instance = live.instance()
        self._models = {name: self._begin(name, live.version(name), 0.0) for name in names}

    def look(self) -> None:
        """Read the metrics, decide for each model, and do what was decided."""
        self._trouble, self._seen = "", {}
        try:
            self._follow()
            self._seen = {name: self._observed(name) for name in self._models}
            self._seen |= {name: observe(self._pages, name) for name in self._watched}
        except (LaunchpadError, ServerError, ValueError, OSError) as error:
            self._pages.clear()
            self._trouble = f"the metrics do not come ({error}); nothing is changed until they do"
        for name in self._models:
            self._look_at(name)

    def _follow(self) -> None:
        """Read the page; begin anew where the server is another, or someone else published to it."""
        if (instance := self._live.instance()) != self._instance:
            self._pages.clear()
            self._models = {name: self._begin(name, self._live.version(name), self._clock()) for name in self._models}
            self._instance = instance
        self._read_page()
        for name, model in self._models.items():
            if (version := self._live.version(name)) != model.version:
                self._models[name] = self._begin(name, version, self._pages[-1].taken_s)

    def _read_page(self) -> None:
        text, now_s = self._live.metrics(), self._clock()
        self._pages.append(parse(text, now_s))
        while len(self._pages) > 1 and self._pages[1].taken_s <= now_s - self._rules.declared.window_s:
            self._pages.popleft()

    def _look_at(self, name: str) -> None:
        model = self._models[name]
        before = model.state.current
        seen = self._seen.get(name)
        if others := [other for other, its in self._models.items() if other != name and its.state.trial]:
            held = Decision("hold", before, self._trouble or f"a change of {others[0]} is on trial")
            self._enter(name, before, held, seen, "held")
            return
        state = model.state
        decision, model.state = control.decide(state, seen, self._wish_for(name), self._rules)
        if decision.action == "hold" or seen is None:
            told = replace(decision, reason=self._trouble) if self._trouble else decision
            self._enter(name, before, told, seen, "held")
        else:
            with interrupts.deferred():  # what is changed is told
                self._enter(name, before, decision, seen, self._apply(name, state, decision, seen))

    def _observed(self, name: str) -> Observation | None:
        """Return what was seen of a model under its present setting; None if that is nothing yet."""
        pages = [page for page in self._pages if page.taken_s >= self._models[name].since_s]
        return observe(pages, None if name == SERVER else name)

    def _wish_for(self, name: str) -> control.Policy:
        def wish(current: Setting, seen: Observation) -> Wish:
            settings = {**self._watched, **{other: model.state.current for other, model in self._models.items()}}
            return self._policy(name, Situation(settings, {other: its for other, its in self._seen.items() if its}))

        return wish

    def _begin(self, name: str, version: int, since_s: float) -> _Model:
        return _Model(State.of(self._live.setting(name, version)), version, since_s)

    def _apply(self, name: str, state: State, decision: Decision, seen: Observation) -> str:
        """Do what was decided in a state; return what came of it."""
        model, outcome = self._models[name], "applied"
        if self._dry_run:
            model.state = control.postponed(model.state, self._clock())
            return "would apply"
        try:
            model.version = self._live.publish(name, decision.to, decision.reason)
        except NotLoaded as refusal:
            model.state = control.postponed(control.refused(model.state, decision), self._clock())
            return str(refusal)
        except (LaunchpadError, ServerError, OSError) as error:
            served = self._served(name)
            if served == model.version:
                late = control.still_on_trial(state, self._clock(), self._rules)
                model.state = late if decision.action == "return" else control.postponed(model.state, self._clock())
                return f"could not be applied: {error}"
            model.version, outcome = served, f"applied, though not to the end: {error}"
        model.since_s = self._clock() + SETTLE_S
        model.state = control.changed(model.state, decision, seen, model.since_s)
        if name == SERVER:  # another server counts from nought
            self._pages.clear()
            with contextlib.suppress(LaunchpadError):  # else the next look tells of it
                self._instance = self._live.instance()
        return outcome

    def _served(self, name: str) -> int:
        """Return the version that is served; the one known where the server cannot be asked."""
        try:
            return self._live.version(name)
        except (LaunchpadError, ServerError, OSError):
            return self._models[name].version

    def _enter(self, name: str, before: Setting, decision: Decision, seen: Observation | None, outcome: str) -> None:
        version = self._models[name].version
        self._journal(Entry(time.time(), self._instance, name, version, before, decision, seen, outcome))
