"""The monitor on the screen: a table that changes on a terminal, lines where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launchpad import console
from launchpad.monitor.sampling import Row

COLUMNS = {
    "model": "model",
    "rate_rps": "requests/s",
    "failed": "failed",
    "refused": "refused",
    "mean_ms": "mean ms",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "p99_ms": "p99 ms",
}


@contextmanager
def live() -> Iterator[Callable[[list[Row]], None]]:
    """Give a function that shows a sample."""
    if not console.out.is_terminal:
        yield _say
        return
    with Live(Text("the first look; figures follow with the next"), console=console.out, auto_refresh=False) as screen:
        yield lambda rows: screen.update(_page(rows), refresh=True)


def _say(rows: list[Row]) -> None:
    for row in rows:
        console.say(line(row))


def line(row: Row) -> str:
    """Return a sample's row in a line."""
    clock = f"{row['at'].astimezone():%H:%M:%S}"
    if not row["model"]:
        return f"{clock} {server_line(row)}"
    figures = (f"{title} {_figure(row[name])}" for name, title in COLUMNS.items() if name != "model")
    return f"{clock} {row['model']}: {', '.join(figures)}"


def server_line(row: Row) -> str:
    """Return what is the whole server's: batches, queueing, the machine; or why there is nothing to tell."""
    parts = [f"! {row['trouble']}"] if row["trouble"] else []
    if row["batches"]:
        parts.append(f"batches of {row['batch_size']:.1f}, queueing {_figure(row['queueing_mean_ms'])} ms mean")
        parts.append(f"{_figure(row['queueing_p99_ms'])} ms p99")
    if row["cpu"] is not None:
        parts.append(f"{row['cpu']:.2f} cores")
    if row["memory_mib"] is not None:
        parts.append(f"{row['memory_mib']:,.0f} MiB")
    if row["gpu"] is not None:
        parts.append(f"GPU {row['gpu']:.0%}, {row['gpu_memory_mib']:,.0f} MiB")
    return "server: " + (", ".join(parts) or "the first look; figures follow with the next")


def _page(rows: list[Row]) -> Group:
    whole, models = rows[0], rows[1:]
    table = Table(title=f"{whole['at'].astimezone():%H:%M:%S}", title_justify="left", header_style="bold")
    for name, title in COLUMNS.items():
        table.add_column(title, justify="left" if name == "model" else "right")
    for row in models:
        over = bool(row["objective_p99_ms"] and (row["p99_ms"] or 0) > row["objective_p99_ms"])
        cells = [_figure(row[name]) for name in COLUMNS]
        table.add_row(*cells[:-1], Text(cells[-1], style="bold red" if over else ""))
    return Group(table, Text(server_line(whole), style="yellow" if whole["trouble"] else ""))


def _figure(value: object) -> str:
    if value is None:
        return "–"
    return (f"{value:,.1f}" if value >= 10 else f"{value:.2f}") if isinstance(value, float) else str(value)
