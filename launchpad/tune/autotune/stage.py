"""`invoke autotune`: the autotuner on the launched server, in the foreground, until Ctrl-C or for a time."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from launchpad import batching, console, declaration, replacement
from launchpad.backends import how_ended
from launchpad.client import RestClient, ServerError
from launchpad.declaration import Declaration
from launchpad.errors import DeclarationError, EnvironmentFault
from launchpad.exclusive import exclusive
from launchpad.layout import Layout
from launchpad.publishing import Publisher
from launchpad.server import Server
from launchpad.spec import Autotune
from launchpad.stage import Context
from launchpad.tune.autotune.control import Rules, Setting, ThreadPool, describe, figures
from launchpad.tune.autotune.journal import Journal
from launchpad.tune.autotune.threshold import threshold
from launchpad.tune.autotune.tuner import SERVER, Autotuner, Entry, PolicyOfAll

METRICS_TIMEOUT_S = 5.0
REPEAT_S = 60.0
"""A hold whose reason is the same as before is shown again after so long."""


class LiveServer:
    """The server that is launched in a checkout, whichever it is at the moment."""

    def __init__(self, declared: Declaration) -> None:
        self._declared = declared
        self._layout = Layout(declared.root)
        self._take(Publisher(declared))

    def _take(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._rest = RestClient(str(publisher.server.rest_url), METRICS_TIMEOUT_S)

    def instance(self) -> str:
        recorded = Server.load(self._layout)
        if recorded and recorded.instance != self._publisher.server.instance:
            self._take(Publisher(self._declared))
        server = self._publisher.server
        if ended := how_ended(server):
            raise EnvironmentFault(f"the launched server has ended: {ended}")
        return server.instance

    def metrics(self) -> str:
        path = self._publisher.server.metrics_path
        if path is None:
            raise ServerError("no metrics", "the server was launched without a metrics page")
        return self._rest.metrics(path)

    def version(self, model: str) -> int:
        return 0 if model == SERVER else self._publisher.served(model)

    def setting(self, model: str, version: int) -> Setting:
        if model == SERVER:
            return ThreadPool(replacement.batch_threads(self._layout))
        return self._publisher.batching(model, version)

    def publish(self, model: str, setting: Setting, why: str) -> int:
        if isinstance(setting, ThreadPool):
            replacement.with_batch_threads(Context(self._declared), setting.num_batch_threads)
            return 0
        published = self._publisher.publish(model, batching=setting or "off", why=why, replace=True)
        self._publisher.prune(model)
        return published.version

    @property
    def fixed_threads(self) -> str:
        """Why the server's thread pool cannot be changed; empty where it can."""
        return replacement.obstacle(self._publisher.server)


def run(root: Path, policy: str = "", duration_s: float = 0.0, dry_run: bool = False) -> None:
    """Adjust the launched server until Ctrl-C, or for `duration_s`. The server keeps what it has at the end.

    Raises DeclarationError where the declaration says nothing of it, EnvironmentFault where no server runs, it cannot
    be published to, or another autotuner adjusts it.
    """
    if not 0 <= duration_s < math.inf:
        raise DeclarationError(f"a duration of {duration_s:g} s adjusts nothing", fix="give more than 0, or none")
    declared = declaration.load(root)
    settings = _settings(declared, policy)
    rules = rules_of(declared, settings)
    models = _models(declared, settings)
    alone = exclusive(Layout(root).autotune_lock, "another autotuner adjusts this checkout's server")
    with alone, ExitStack() as cleanup:
        live = LiveServer(declared)
        screen, journal = Screen(dry_run), Journal(declared, settings.policy)

        def tell(entry: Entry) -> None:
            screen.show(entry)
            journal.keep(entry)

        adjusted = [*models, SERVER] if settings.policy == "model" and not live.fixed_threads else models
        try:
            policy_of_all, watched = _policy(declared, settings, rules, models, live, cleanup)
            tuner = Autotuner(live, adjusted, policy_of_all, rules, tell, dry_run, watched=watched)
        except (ServerError, ValueError) as error:
            raise EnvironmentFault(f"the server cannot be adjusted: {error}", fix="see `invoke status`") from None
        console.say(
            f"autotune: policy {settings.policy}, {', '.join(models)}; p99 {rules.p99_ms:g} ms to hold; a look every "
            f"{settings.interval_s:g} s; Ctrl-C ends it and leaves the server as it is"
        )
        try:
            _loop(tuner, settings.interval_s, duration_s)
        except KeyboardInterrupt:
            console.say("ended; the server stays as it is")
        finally:
            journal.flush()
        screen.sum_up()


def _loop(tuner: Autotuner, interval_s: float, duration_s: float) -> None:
    start = time.monotonic()
    tuner.look()
    while not duration_s or time.monotonic() - start < duration_s:
        time.sleep(interval_s)
        tuner.look()


def _settings(declared: Declaration, policy: str) -> Autotune:
    settings = declared.pipeline.autotune
    if settings is None:
        raise DeclarationError(
            "the declaration has no section `autotune`, so the server reads no version's own batching parameters",
            declared.file,
            "add `autotune: {}`, then `invoke configure` and `invoke launch`",
        )
    if policy not in ("", "threshold", "model"):
        raise DeclarationError(f"there is no policy {policy!r}", fix="threshold or model")
    return settings.model_copy(update={"policy": policy}) if policy else settings


def rules_of(declared: Declaration, settings: Autotune) -> Rules:
    """Return what decides beside the policy."""
    objectives = declared.pipeline.objectives
    p99_ms = settings.p99_ms or objectives.p99_ms
    assert p99_ms is not None  # the declaration was refused without
    lines = [line for load in declared.pipeline.loadtest.profiles.values() for line in declared.pipeline.traffic(load)]
    rows = max((line.batch for line in lines), default=1)
    return Rules(settings, p99_ms, objectives.tolerated_errors, rows)


def _models(declared: Declaration, settings: Autotune) -> list[str]:
    batched = [name for name, queue in batching.effective(declared).queues.items() if queue]
    if not (settings.models or batched):
        raise DeclarationError(
            "no model is batched: there is nothing to adjust",
            declared.where("autotune"),
            "give a model batching parameters, or name models in autotune.models",
        )
    return list(settings.models or batched)


def _policy(
    declared: Declaration,
    settings: Autotune,
    rules: Rules,
    models: Sequence[str],
    live: LiveServer,
    cleanup: ExitStack,
) -> tuple[PolicyOfAll, dict[str, Setting]]:
    """Return the policy, and the other models whose load it counts, with what they have.

    Raises EnvironmentFault where it needs the profile of a model that has none.
    """
    if settings.policy == "threshold":
        wish = threshold(rules)
        return lambda name, situation: wish(situation.settings[name], situation.seen[name]), {}
    from launchpad.tune import profile
    from launchpad.tune.autotune.aside import Aside
    from launchpad.tune.autotune.simulated import Simulated

    layout = Layout(declared.root)
    others = [name for name in declared.pipeline.models if name not in models]
    watched = [name for name in others if layout.service_profile(name).exists()]
    if uncounted := sorted(set(others) - set(watched)):
        console.say(f"  ! {', '.join(uncounted)}: not profiled, so that load is not counted", "yellow")
    known = {name: profile.load(layout, name) for name in (*models, *watched)}
    for its in known.values():
        for doubt in profile.doubts(its, layout):
            console.say(f"  ! {doubt}", "yellow")
    first = known[models[0]]
    cores = int(first.machine["cores"])
    threads = profile.request_threads(first.traffic, declared.pipeline.serving.flags, cores)
    costs = {name: its.times() for name, its in known.items()}
    host = first.host(threads, with_generator=False)
    rows = {name: its.traffic.batch for name, its in known.items()}
    simulated = Simulated(rules, costs, host, replacement.batch_threads(layout), rows=rows)
    aside = cleanup.enter_context(Aside(simulated, patience_s=settings.window_s))
    return aside, {name: live.setting(name, live.version(name)) for name in watched}


class Screen:
    """What is decided, as it happens: every change, and each hold whose reason is a new one."""

    def __init__(self, dry_run: bool) -> None:
        self._dry_run = dry_run
        self._said: dict[str, tuple[str, float]] = {}
        self._changes: list[Entry] = []

    def show(self, entry: Entry) -> None:
        reason = re.sub(r"[\d.]+", "", entry.decision.reason)
        known, at = self._said.get(entry.model, ("", 0.0))
        if entry.is_change:
            self._changes.append(entry)
        elif known == reason and entry.at - at < REPEAT_S:
            return
        self._said[entry.model] = (reason, entry.at)
        console.say(_line(entry), "bold" if entry.is_change else "")
        if entry.is_change and entry.outcome not in ("applied", "would apply"):
            console.say(f"  ! {entry.outcome}", "yellow")

    def sum_up(self) -> None:
        """Print the changes that were made."""
        rows = [
            (
                _clock(entry.at),
                entry.model,
                describe(entry.before),
                describe(entry.decision.to),
                entry.outcome.splitlines()[0],
                entry.decision.reason,
            )
            for entry in self._changes
        ]
        if not rows:
            console.say("nothing was changed")
            return
        title = "What it would have changed" if self._dry_run else "What changed"
        console.table(title, ("time", "model", "from", "to", "", "why"), rows)


def _line(entry: Entry) -> str:
    words = {"hold": "holds", "change": "changes to", "return": "returns to"}
    if entry.outcome == "would apply":
        words = {"change": "would change to", "return": "would return to"}
    what = words[entry.decision.action] + (f" {describe(entry.decision.to)}" if entry.is_change else "")
    seen = figures(entry.seen) if entry.seen else "no figures"
    return f"{_clock(entry.at)} {entry.model}: {seen} · {what}: {entry.decision.reason}"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
