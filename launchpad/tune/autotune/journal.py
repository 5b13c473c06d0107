"""What autotune leaves behind: each decision in the store, each change as a note, both with their figures."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from launchpad import console, interrupts, notes
from launchpad.declaration import Declaration
from launchpad.spec import BatchQueue
from launchpad.store import Store, attempt
from launchpad.tune.autotune.control import Setting, ThreadPool, milliseconds
from launchpad.tune.autotune.tuner import SERVER, Entry

FLUSH_S = 30.0
"""Decisions to leave things as they are go into the store together, after so long."""

FIGURES = {
    "requests/s": lambda seen: f"{seen.rate_rps:.0f}",
    "failed": lambda seen: f"{seen.error_rate:.2%}",
    "p50": lambda seen: milliseconds(seen.p50_ms),
    "p95": lambda seen: milliseconds(seen.p95_ms),
    "p99": lambda seen: milliseconds(seen.p99_ms),
    "queueing, mean, all models": lambda seen: milliseconds(seen.queueing_ms),
    "examples in a batch, mean, all models": lambda seen: "–" if seen.batch_size is None else f"{seen.batch_size:.1f}",
}


class Journal:
    """Keeps decisions. `instance` is asked for the server's, and `policy` named, with each."""

    def __init__(self, declared: Declaration, policy: str) -> None:
        self._declared = declared
        self._policy = policy
        self._waiting: list[dict[str, Any]] = []

    def keep(self, entry: Entry) -> None:
        """Keep a decision; at once if it was one to change something."""
        self._waiting.append(row(entry, self._policy))
        if entry.is_change:
            if entry.outcome != "would apply":
                self._note(entry)
            self.flush()
        elif entry.at - self._waiting[0]["at"].timestamp() > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Put what waits into the store; where that is away, a warning says so and the decisions are lost."""
        rows, self._waiting = self._waiting, []

        def put(store: Store) -> None:
            store.add_decisions(rows)

        if rows:
            with interrupts.deferred():
                attempt(self._declared, put)

    def _note(self, entry: Entry) -> None:
        applied = entry.outcome.startswith("applied")
        changed = differences(entry.model, entry.before, entry.decision.to)
        words = {"change": "changed", "return": "put back"}[entry.decision.action]
        title = "" if applied else f"{entry.model}: not {words}"
        why = entry.decision.reason if applied else f"{entry.decision.reason}. It was not applied: {entry.outcome}"
        what = changed if applied else {}
        try:
            notes.record(self._declared, "autotune", what, why, title=title, evidence=evidence(entry, self._policy))
        except OSError as error:
            console.say(f"  ! no note of it could be written: {error.strerror}", "yellow")


def row(entry: Entry, policy: str) -> dict[str, Any]:
    """Return a decision as a row of the store's table `decisions`."""
    return {
        "at": datetime.datetime.fromtimestamp(entry.at, datetime.UTC),
        "instance": entry.instance,
        "model": "" if entry.model == SERVER else entry.model,
        "version": entry.version,
        "policy": policy,
        "action": entry.decision.action,
        "reason": entry.decision.reason,
        "outcome": entry.outcome,
        "setting": _plain(entry.before),
        "wanted": _plain(entry.decision.to),
        "seen": asdict(entry.seen) if entry.seen else None,
    }


def differences(model: str, before: Setting, after: Setting) -> Mapping[str, tuple[Any, Any]]:
    """Return {key of the declaration: (before, after)} of what a change changes."""
    if isinstance(before, ThreadPool) or isinstance(after, ThreadPool):
        prefix = "serving.batching"
    else:
        prefix = f"models.{model}.batching"
        if before is None or after is None:
            return {prefix: (_plain(before) or "off", _plain(after) or "off")}
    old, new = _plain(before) or {}, _plain(after) or {}
    return {f"{prefix}.{key}": (old.get(key), new.get(key)) for key in old | new if old.get(key) != new.get(key)}


def evidence(entry: Entry, policy: str) -> str:
    """Return the figures that a decision is from, as Markdown."""
    seen = entry.seen
    if seen is None:
        return ""
    rows = [f"| {name} | {show(seen)} |" for name, show in FIGURES.items()]
    served = f"Version {entry.version} is served since. " if entry.version else ""
    return "\n".join(
        [
            f"{served}Policy `{policy}`; what the server's own metrics said of {entry.model} over the "
            f"{seen.seconds:.0f} s before, server {entry.instance}:",
            "",
            "| figure | value |",
            "| --- | ---: |",
            *rows,
        ]
    )


def _plain(setting: Setting) -> dict[str, Any] | None:
    if isinstance(setting, BatchQueue):
        return setting.model_dump(mode="json", exclude_defaults=True)
    return asdict(setting) if setting else None
