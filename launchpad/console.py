"""What the user sees: tables, progress bars on a terminal, plain lines where there is none."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 140
"""Columns of a table where there is no terminal to measure."""


class OutputClosed(Exception):
    """Who read standard output has ended, as `head` does when it has its lines."""


class _Console(Console):
    """Raises OutputClosed where rich would end the process; what goes to a closed standard error is dropped."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _drop(self.file)
        if not self.stderr:
            raise OutputClosed


def _drop(file: IO[str]) -> None:
    """Let what is still written to a file go nowhere, also what Python writes as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)


out = _Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
err = _Console(stderr=True, highlight=False, soft_wrap=True)


class Advance(Protocol):
    """Tells progress: how much of how much is done, in any unit, and what is being done now."""

    def __call__(self, done: float, total: float, now: str = "") -> None: ...


PLAIN_INTERVAL_S = 10.0


def say(text: str, style: str = "") -> None:
    out.print(Text(text, style=style))


def fail(text: str) -> None:
    err.print(Text(text, style="red"))


@contextmanager
def printing() -> Iterator[None]:
    """Write what the block prints to standard output. Raises OutputClosed where nobody reads it."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
        raise OutputClosed from None


def heading(number: int, total: int, name: str, summary: str) -> None:
    """Announce a stage of a chain."""
    out.print(Text.assemble((f"[{number}/{total}] ", "dim"), (name, "bold cyan"), (f"  {summary}", "dim")))


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> None:
    """Print rows under columns; those named in `right` are set flush right, cells of those in `whole` never broken."""
    grid = Table(title=title or None, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        grid.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in whole
        )
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    out.print(grid, soft_wrap=False)


def verdict(ok: bool | None) -> Text:
    """A word for a gate: passed, failed, or not run."""
    if ok is None:
        return Text("not run", style="yellow")
    return Text("passed", style="green") if ok else Text("FAILED", style="bold red")


@contextmanager
def progress(what: str) -> Iterator[Advance]:
    """Show that `what` goes on. Gives a function to say how far; until it is called a spinner turns."""
    if not out.is_terminal:
        with _plain_progress(what) as advance:
            yield advance
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True, refresh_per_second=2) as bars:
        task = bars.add_task(what, total=None)

        def advance(done: float, total: float, now: str = "") -> None:
            bars.update(task, completed=done, total=total, description=_with(what, now))

        yield advance


def _with(what: str, now: str) -> str:
    return f"{what}, {now}" if now else what


@contextmanager
def _plain_progress(what: str) -> Iterator[Advance]:
    """A line now and then, none for what is over at once."""
    last = time.monotonic()

    def advance(done: float, total: float, now: str = "") -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_INTERVAL_S:
            last = time.monotonic()
            say(f"  {_with(what, now)}: {done / total:.0%}" if total else f"  {_with(what, now)}")

    yield advance
