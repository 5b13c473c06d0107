"""The contract of a stage: what it reads, what it writes, when it is up to date, and what it says of itself."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

from launchpad import files
from launchpad.declaration import Declaration
from launchpad.errors import Problem
from launchpad.layout import Layout

LOCK_FILE = "stage.lock"


@dataclass(frozen=True)
class Context:
    """What every stage is given: the declaration, the checkout, and what the user asked for.

    alone: whether one stage was asked for by itself, and not a chain.
    """

    declaration: Declaration
    force: bool = False
    profile: str | None = None
    duration_s: float | None = None
    run: str = ""
    processes: int = 1
    remote: bool = False
    alone: bool = False

    @property
    def layout(self) -> Layout:
        return Layout(self.declaration.root)


@dataclass(frozen=True)
class Plan:
    """What a stage would do, said beforehand. `reason` is empty when nothing is to be done."""

    what: str
    reason: str = ""


Status = Literal["done", "up to date", "skipped", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What a stage did, said afterwards: one line, the paths to look at, and what did not hold."""

    status: Status
    detail: str
    look_at: tuple[Path, ...] = ()
    failures: tuple[Problem, ...] = ()


class Stage(ABC):
    """A stage of the pipeline.

    `name` is its Invoke task; `summary` is one line on what it does; `follows` names the stages whose artifacts it
    uses, so that a plan can say that it will run because they do.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    follows: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def plan(self, context: Context) -> list[Plan]:
        """Return what `run` would do and why, without doing it."""

    def drifted(self, context: Context) -> list[str]:
        """Return the stage's files that must not be used as they are: they are not what the declaration gives."""
        return []

    @abstractmethod
    def run(self, context: Context) -> Outcome:
        """Do it. Raises LaunchpadError for everything that the user can act on."""


Work = Callable[[Callable[[Path], Path]], None]
"""Produces a unit's artifacts. Given a function from a path that the unit writes to the place to prepare it in."""


@dataclass(frozen=True)
class Unit:
    """A piece of work that is up to date or not as a whole, such as the export of one model.

    reads: parts of the declaration by dotted key, and other values that the artifacts depend on.
    sources: files and folders that are read.
    writes: files and folders that are replaced.
    """

    name: str
    reads: Mapping[str, Any]
    sources: tuple[Path, ...]
    writes: tuple[Path, ...]
    work: Work = field(compare=False)


class ArtifactStage(Stage):
    """A stage that turns inputs into artifacts on disk and skips what is up to date.

    Up to date means: the inputs hash to what `stage.lock` says, and so do the artifacts. Artifacts are prepared
    beside their place and renamed into it, so an interrupted run leaves the old ones whole.
    """

    kernel: ClassVar[tuple[str, ...]] = ()
    """Modules of the kernel that shape the artifacts, beside the stage's own package."""

    @abstractmethod
    def folder(self, layout: Layout) -> Path:
        """Return the folder that holds `stage.lock`."""

    @abstractmethod
    def units(self, context: Context) -> Iterable[Unit]:
        """Yield the stage's units in order. A unit may depend on artifacts of the ones before it."""

    def plan(self, context: Context) -> list[Plan]:
        return [Plan(unit.name, self._reason(unit, context)) for unit in self.units(context)]

    def run(self, context: Context) -> Outcome:
        ran = []
        for unit in self.units(context):
            for path in unit.writes:
                files.recover(path)
            if self._reason(unit, context):
                self._run_unit(unit, context)
                ran.append(unit.name)
        written = (self.folder(context.layout),)
        if not ran:
            return Outcome("up to date", "nothing has changed", written)
        return Outcome("done", ", ".join(ran), written)

    def _run_unit(self, unit: Unit, context: Context) -> None:
        places = {path: files.staged(path) for path in unit.writes}
        try:
            unit.work(places.__getitem__)
            for path in unit.writes:
                files.publish(path)
        finally:
            for path in unit.writes:
                files.discard(path)
        lock_file = self.folder(context.layout) / LOCK_FILE
        lock = files.read_mapping(lock_file)
        lock[unit.name] = {
            "inputs": self._inputs(unit, context.layout),
            "outputs": self._outputs(unit, context),
        }
        known = {known.name for known in self.units(context)}
        files.write_json(lock_file, {name: lock[name] for name in sorted(known & lock.keys())})

    def _reason(self, unit: Unit, context: Context) -> str:
        """Return why a unit has to run; empty when it is up to date."""
        if context.force:
            return "forced"
        lock = _entry(self.folder(context.layout) / LOCK_FILE, unit.name)
        if lock is None:
            return "never run"
        now, before = self._inputs(unit, context.layout), lock["inputs"]
        changed = [name for name in now | before if now.get(name) != before.get(name)]
        if changed:
            return f"changed: {', '.join(changed)}"
        outputs = self._outputs(unit, context)
        lost = [name for name in outputs | lock["outputs"] if outputs.get(name) != lock["outputs"].get(name)]
        return f"artifacts differ from {LOCK_FILE}: {', '.join(lost)}" if lost else ""

    def _inputs(self, unit: Unit, layout: Layout) -> dict[str, str]:
        """Return {input: hash} of everything that the unit's artifacts follow from, its own code included."""
        package = Path(__file__).parent
        code = {name: files.tree(package / name) for name in (self.name, *self.kernel)}
        return {
            **{name: files.digest(value)[:16] for name, value in unit.reads.items()},
            **{layout.relative(path): files.digest(files.tree(path))[:16] for path in unit.sources},
            f"code of {self.name}": files.digest(code)[:16],
        }

    def _outputs(self, unit: Unit, context: Context) -> dict[str, str]:
        """Return {path: hash} of the unit's artifacts; what other units keep in the same folders is theirs."""
        others = [path for other in self.units(context) if other.name != unit.name for path in other.writes]
        found = {}
        for path in unit.writes:
            place = context.layout.relative(path)
            for name, sha in files.tree(path, leave_out=others).items():
                found[place if name == "." else f"{place}/{name}"] = sha
        return found


def _entry(lock_file: Path, unit: str) -> dict[str, dict[str, str]] | None:
    """Return what a lock file keeps of a unit; None where it keeps nothing that can be read."""
    entry = files.read_mapping(lock_file).get(unit)
    whole = isinstance(entry, dict) and all(isinstance(entry.get(part), dict) for part in ("inputs", "outputs"))
    return entry if whole else None


def spread(prefix: str, value: Any) -> dict[str, Any]:
    """Return a part of the declaration as {dotted key: value}, so that a reason can name the key that changed."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, dict) and value:
        return {key: item for name, part in value.items() for key, item in spread(f"{prefix}.{name}", part).items()}
    return {prefix: value}


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start
