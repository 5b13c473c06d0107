"""`invoke compare`: the differences between two runs as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launchpad import console, files
from launchpad.compare import CONFIDENCE, differences
from launchpad.errors import DeclarationError
from launchpad.layout import Layout
from launchpad.runfolder import SUMMARY


def show(root: Path, before: str, after: str) -> None:
    """Print how the percentiles of two runs differ, for each model that both asked.

    Raises DeclarationError if a run is not there, or they have no model in common, or are one.
    """
    if before == after:
        raise DeclarationError(f"{before} is one run", fix="give the ids of two")
    layout = Layout(root)
    runs = {run: _summary(layout, run) for run in (before, after)}
    rows = differences(layout, runs)
    if not rows:
        raise DeclarationError(f"{before} and {after} have no answers of the same model to compare")
    for run, summary in runs.items():
        console.say(
            f"{run}: {summary['profile']['title']}, configuration {summary['configuration'][:8]}, "
            f"{summary['totals']['throughput_rps']:,.0f} requests/s"
        )
    columns = ("model", "percentile", "before ms", "after ms", "difference ms", f"{CONFIDENCE:.0%} interval", "")
    cells = [
        (
            row.scope,
            f"p{row.percentile:g}",
            f"{row.before_ms:.2f}",
            f"{row.after_ms:.2f}",
            f"{row.after_ms - row.before_ms:+.2f}",
            f"{row.low_ms:+.2f} to {row.high_ms:+.2f}",
            row.verdict,
        )
        for row in rows
    ]
    console.table("", columns, cells, right=columns[2:6])
    if runs[before]["machine"] != runs[after]["machine"]:
        console.say("  the runs are from different machines", "yellow")


def _summary(layout: Layout, run: str) -> dict[str, Any]:
    summary = files.read_mapping(layout.results(run) / SUMMARY)
    if not summary:
        raise DeclarationError(f"there is no run {run!r}", layout.relative(layout.results(run)))
    return summary
