"""`invoke store`: what the store holds, filling it again from the files, deleting what is old."""

from __future__ import annotations

from pathlib import Path

from launchpad import console, declaration, files, notes
from launchpad.errors import LaunchpadError, Problem
from launchpad.layout import Layout
from launchpad.release import record
from launchpad.runfolder import CAPACITY, SUMMARY
from launchpad.store import Store, connection, limits, migrate


def show(root: Path) -> None:
    """Print where the store is, its schema, and how many rows each table has."""
    declared = declaration.load(root)
    with Store.open(declared) as store:
        counts = store.counts()
    url = connection.locate(declared)
    console.say(f"{url.render_as_string()}, schema {migrate.HEAD}")
    console.table("", ("table", "rows"), [(name, f"{rows:,}") for name, rows in counts.items()], right=("rows",))


def fill(root: Path) -> None:
    """Add to the store the runs, notes and releases' gates that are in files. What cannot be is said, with why."""
    declared = declaration.load(root)
    layout = Layout(root)
    _, oldest = limits(declared.pipeline.monitor)
    added, problems = 0, []
    with Store.open(declared) as store:
        known = store.runs()
        for folder in sorted(path for path in layout.results("x").parent.glob("*") if path.is_dir()):
            if folder.name in known or (folder / CAPACITY).exists():  # a search for capacity is no run
                continue
            summary = files.read_mapping(folder / SUMMARY)
            try:
                if not summary:
                    raise ValueError(f"there is no whole {SUMMARY}")
                if oldest is None or notes.moment(summary["started"]) >= oldest:
                    store.add_run(summary, folder)
                    added += 1
            except (KeyError, ValueError, TypeError, LaunchpadError) as error:
                problems.append(Problem(f"not added: {_why(error)}", layout.relative(folder)))
        found = notes.read_all(layout)
        for name in notes.unread(layout, found):
            problems.append(Problem("not added: its head cannot be read", layout.relative(layout.notes / name)))
        for note in found:
            store.put_change(note.row())
        releases = record.all_whole(layout)
        for release in releases:
            store.add_gates(release["version"], record.rows(release), notes.moment(release["made"]))
    counted = [f"{many} {what}{'s' * (many != 1)}" for many, what in ((len(found), "note"), (len(releases), "release"))]
    console.say(f"added {added} run{'s' * (added != 1)}; it has {counted[0]} and the gates of {counted[1]}")
    for problem in problems:
        console.say(f"  ! {problem}", "yellow")


def _why(error: Exception) -> str:
    return f"{SUMMARY} lacks {error}" if isinstance(error, KeyError) else str(error)


def prune(root: Path) -> None:
    """Delete what is older than declared; say what went."""
    declared = declaration.load(root)
    with Store.open(declared) as store:
        gone = store.prune(*limits(declared.pipeline.monitor))
    console.say("deleted " + (", ".join(f"{rows:,} {table}" for table, rows in gone.items() if rows) or "nothing"))
