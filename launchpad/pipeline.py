"""The pipeline: the stages in order, run one by one or as the chain `deploy-local`, under the checkout's lock."""

from __future__ import annotations

import errno
import importlib
import math
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from launchpad import console, declaration, interrupts, journal
from launchpad.errors import DeclarationError, EnvironmentFault, GateFailed, LaunchpadError, Problem
from launchpad.exclusive import exclusive
from launchpad.stage import Context, Outcome, Stage, Stopwatch

STAGES = {
    "export": "launchpad.export.stage:Export",
    "configure": "launchpad.configure.stage:Configure",
    "build": "launchpad.image.stage:Build",
    "launch": "launchpad.launch.stage:Launch",
    "warmup": "launchpad.warmup.stage:Warmup",
    "loadtest": "launchpad.loadtest.stage:LoadTest",
    "report": "launchpad.report.stage:Report",
}
"""Stages in the order in which they depend on each other; loaded when they are needed."""

NO_ROOM_OR_ACCESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)

OUTPUT_CLOSED = 141
"""Exit code where nobody reads the output any more: what a shell says of a program that SIGPIPE ended."""

COLORS = {"done": "green", "up to date": "dim", "skipped": "dim", "failed": "bold red"}


def stage(name: str) -> Stage:
    """Return a stage by name."""
    module, _, kind = STAGES[name].partition(":")
    return getattr(importlib.import_module(module), kind)()


def context(
    root: Path,
    *,
    force: bool = False,
    profile: str | None = None,
    duration_s: float | None = None,
    run: str | None = None,
    processes: int = 1,
    remote: bool = False,
) -> Context:
    """Read the declaration and return what stages are given. Raises DeclarationError for anything wrong in it."""
    declared = declaration.load(root)
    profiles = declared.pipeline.loadtest.profiles
    if profile and profile not in profiles:
        raise DeclarationError(f"there is no profile {profile!r}", fix=f"declared: {', '.join(profiles)}")
    if duration_s is not None and not 0 < duration_s < math.inf:
        raise DeclarationError(
            f"a duration of {duration_s:g} s measures nothing that ends", fix="give seconds, more than 0"
        )
    if processes < 1:
        raise DeclarationError(f"{processes} processes send nothing", fix="give 1 or more")
    return Context(
        declared, force=force, profile=profile, duration_s=duration_s, run=run or "", processes=processes, remote=remote
    )


def run(names: Sequence[str], given: Context, dry_run: bool = False) -> None:
    """Run stages in order, or say what would run and why.

    What a live stage measured is reported even when it failed. Raises GateFailed at the end for everything that
    did not hold, and at once the LaunchpadError of a stage that could not do its work.
    """
    given = replace(given, alone=len(names) == 1)
    if dry_run:
        show_plan(names, given)
        return
    with locked(given):
        try:
            outcomes = _run_in_order(names, given)
        except console.OutputClosed:
            console.fail("nobody reads the output any more; what was finished is kept, the next run continues")
            raise
    failures = [problem for _, outcome, _ in outcomes for problem in outcome.failures]
    if failures:
        raise GateFailed(failures)


def locked(given: Context) -> AbstractContextManager[None]:
    """Hold the checkout for the block; raises EnvironmentFault that names who holds it already."""
    return exclusive(given.layout.lock)


def show_plan(names: Sequence[str], given: Context) -> None:
    """Print what each stage would do and why."""
    rows = []
    due: list[str] = []
    for name in names:
        current = stage(name)
        ahead = [other for other in current.follows if other in due]
        for plan in current.plan(given):
            reason = plan.reason or (f"{' and '.join(ahead)} would run" if ahead else "")
            rows.append((name, plan.what, "would run" if reason else "nothing to do", reason))
            if reason:
                due.append(name)
    console.table("What would run", ("stage", "what", "", "why"), rows)


def _run_in_order(names: Sequence[str], given: Context) -> list[tuple[str, Outcome, float]]:
    outcomes: list[tuple[str, Outcome, float]] = []
    if len(names) > 1 and "loadtest" in names:
        from launchpad.loadtest.stage import new_run

        given = replace(given, run=given.run or new_run())
    with journal.kept(given) as kept, ExitStack() as beside:
        for number, name in enumerate(names, 1):
            current = stage(name)
            if len(names) > 1:
                console.heading(number, len(names), name, current.summary)
            _refuse_drift(current, names, given)
            clock = Stopwatch()
            with kept.stage(name) as done:
                outcome = done(current.run(given))
            outcomes.append((name, outcome, clock.seconds))
            console.say(f"  {outcome.status}: {outcome.detail}", COLORS[outcome.status])
            if name == "launch" and len(names) > 1:
                from launchpad.monitor.watch import beside as monitored

                beside.enter_context(monitored(given.layout.root))
    if len(names) > 1:
        _show_outcomes(outcomes, given)
    return outcomes


def _refuse_drift(current: Stage, names: Sequence[str], given: Context) -> None:
    """Raise EnvironmentFault where a stage would use files that are not what the declaration gives.

    In a chain the stages before it have seen to that.
    """
    drifted = [
        Problem("is not what pipeline.yaml gives", name, f"run `invoke {other.name}`")
        for other in (stage(name) for name in current.follows if name not in names)
        for name in other.drifted(given)
    ]
    if drifted:
        raise EnvironmentFault(drifted)


def _show_outcomes(outcomes: list[tuple[str, Outcome, float]], given: Context) -> None:
    rows = [(name, outcome.status, f"{seconds:.1f}", outcome.detail) for name, outcome, seconds in outcomes]
    console.say("")
    console.table("What happened", ("stage", "", "seconds", "detail"), rows, right=("seconds",))
    for name, outcome, _ in outcomes:
        for path in outcome.look_at if name in ("loadtest", "report") else ():
            console.say(f"  {name}: {given.layout.relative(path)}")
    console.say("  `invoke status` shows the server, `invoke stop` ends it, `locust -f loadtests/` drives it by hand")


@contextmanager
def reported(exit_with: Callable[[int], BaseException]) -> Iterator[None]:
    """Show errors of the block as the user needs them, then raise `exit_with(exit code)`."""
    try:
        with interrupts.alike():
            yield
    except LaunchpadError as error:
        _show(error)
        raise exit_with(error.exit_code) from None
    except KeyboardInterrupt as interrupt:
        console.fail("interrupted; what was finished is kept, the next run continues")
        raise exit_with(128 + next(iter(interrupt.args), signal.SIGINT)) from None
    except console.OutputClosed:
        raise exit_with(OUTPUT_CLOSED) from None
    except (OSError, UnicodeDecodeError) as error:
        fault = _no_text(error) if isinstance(error, UnicodeDecodeError) else _fault(error)
        _show(fault)
        raise exit_with(fault.exit_code) from None


def _fault(error: OSError) -> EnvironmentFault:
    """Return what the system refused, in the user's words."""
    said = error.strerror or str(error) or type(error).__name__
    place = f", at {os.fsdecode(error.filename)}" if isinstance(error.filename, (str, bytes)) else ""
    if error.errno in NO_ROOM_OR_ACCESS:
        place = place or ", at a file of this checkout"
        return EnvironmentFault(
            f"{said}{place}", fix="what was there before is still there; make room or give access, and run again"
        )
    return EnvironmentFault(f"{said}{place}", fix="see to what is there, and run again; what was finished is kept")


def _no_text(error: UnicodeDecodeError) -> EnvironmentFault:
    """Return that a file is not text, with its name where the frames that read it know it."""
    inside = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    place = next((str(path) for path in reversed(inside) if isinstance(path, Path)), "a file of this checkout")
    return EnvironmentFault(
        f"is not UTF-8 text, from byte {error.start}", place, "write it again, or take the committed one from git"
    )


def _show(error: LaunchpadError) -> None:
    kinds = {1: "not passed", 2: "wrong declaration or arguments", 3: "the environment does not allow it"}
    console.fail(f"{kinds[error.exit_code]}:")
    for problem in error.problems:
        console.fail(f"  {_indented(problem)}")


def _indented(problem: Problem) -> str:
    return str(problem).replace("\n", "\n  ")
