"""The store as the stages use it: what they hand over is kept whole, or not at all."""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from sqlalchemy import Engine, delete, func, insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from launchpad import console, runfolder
from launchpad.declaration import Declaration
from launchpad.errors import LaunchpadError
from launchpad.spec import Monitor
from launchpad.store import connection, migrate
from launchpad.store.schema import Base, Change, Decision, GateResult, Histogram, Result, Run, Sample, Second, StageRun

FIGURES = {"p99.9_ms": "p999_ms"}
"""Figures whose names are no column names, with the column."""

Row = dict[str, Any]


class Store:
    """A connection to the store; use it as a context manager."""

    def __init__(self, engine: Engine, where: str) -> None:
        self._engine = engine
        self._where = where

    @classmethod
    def open(cls, declaration: Declaration) -> Store:
        """Connect to the declared store; make it if it is not there, bring it up to date if it is older.

        Raises DeclarationError for a URL that is none, EnvironmentFault for a database that does not answer or that a
        newer version of this project made.
        """
        url, where = connection.locate(declaration), declaration.where("store")
        with connection.told("opening it", url, where):
            engine = connection.writer(url)
            migrate.bring_up_to_date(engine, where)
        return cls(engine, where)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.dispose()

    def add_run(self, summary: dict[str, Any], folder: Path | None = None) -> None:
        """Record a load test from its summary, and its seconds and histograms from its folder; all of it, or nothing.

        A file that the folder lacks leaves its part out.
        """
        run = Run(
            id=summary["run"],
            status=summary["status"],
            started=datetime.datetime.fromisoformat(summary["started"]),
            profile=summary["profile"]["name"],
            backend=summary["server"]["backend"],
            configuration=summary["configuration"],
            summary=summary,
            machine=_machine(summary.get("machine", {})),
        )
        gates = [_gate(row, run.started) | {"run": run.id} for row in summary.get("objectives", ())]
        parts: list[tuple[type[Base], list[Row]]] = [(Result, _results(summary)), (GateResult, gates)]
        if folder:
            parts += [(Second, _seconds(run.id, folder)), (Histogram, _histograms(run.id, folder))]
        with self._writing("taking the run") as session:
            session.add(run)
            session.flush()
            for table, rows in parts:
                _insert(session, table, rows)

    def add_stages(self, rows: Sequence[Row]) -> None:
        """Record stages that ran, as rows of `stages`."""
        self._add(StageRun, rows, "taking stages")

    def add_samples(self, rows: Sequence[Row]) -> None:
        """Record what the monitor saw, as rows of `samples`."""
        self._add(Sample, rows, "taking samples")

    def add_decisions(self, rows: Sequence[Row]) -> None:
        """Record what autotune decided, as rows of `decisions`."""
        self._add(Decision, rows, "taking decisions")

    def add_gates(self, release: str, gates: Iterable[Row], at: datetime.datetime) -> None:
        """Record the gates of a release in place of what was recorded of it before.

        gates: what `Gate.as_dict` gives, and if there are any `evidence` and `waiver`.
        """
        with self._writing("taking gates") as session:
            session.execute(delete(GateResult).where(GateResult.release == release))
            _insert(session, GateResult, [_gate(row, at) | {"release": release} for row in gates])

    def put_change(self, row: Row) -> None:
        """Record a change of configuration, or what has become of it: a row of `changes`, by its note."""
        with self._writing("taking a change of configuration") as session:
            session.merge(Change(**row))

    def runs(self) -> set[str]:
        """Return the ids of the runs that are kept."""
        with self._writing("listing runs") as session:
            return set(session.scalars(select(Run.id)))

    def counts(self) -> dict[str, int]:
        """Return how many rows each table has."""
        with self._writing("counting") as session:
            tables = Base.metadata.sorted_tables
            return {table.name: session.scalar(select(func.count()).select_from(table)) or 0 for table in tables}

    def prune(
        self, samples_before: datetime.datetime | None, runs_before: datetime.datetime | None = None
    ) -> dict[str, int]:
        """Delete samples, stages and decisions, and runs, that are older; return how many rows went from each table."""
        gone: dict[str, int] = {}
        with self._writing("deleting what is old") as session:
            if samples_before:
                for kind in (Sample, StageRun, Decision):
                    gone[kind.__tablename__] = _rowcount(session, delete(kind).where(kind.at < samples_before))
            if runs_before:
                old = select(Run.id).where(Run.started < runs_before)
                for part in (Result, Second, Histogram, GateResult):
                    gone[part.__tablename__] = _rowcount(session, delete(part).where(part.run.in_(old)))
                gone["runs"] = _rowcount(session, delete(Run).where(Run.started < runs_before))
        return gone

    def _add(self, table: type[Base], rows: Sequence[Row], doing: str) -> None:
        with self._writing(doing) as session:
            _insert(session, table, rows)

    @contextmanager
    def _writing(self, doing: str) -> Iterator[Session]:
        """A session in a transaction: kept if the block ends well, undone if not; refusals in the user's words."""
        told = connection.told(doing, self._engine.url, self._where)
        with told, Session(self._engine) as session, session.begin():
            yield session


def limits(settings: Monitor) -> tuple[datetime.datetime | None, datetime.datetime | None]:
    """Return the moments before which samples, and runs, are old; None where they are kept for good."""
    now = datetime.datetime.now(datetime.UTC)
    ages = (settings.keep_samples_days, settings.keep_runs_days)
    samples, runs = (now - datetime.timedelta(days=days) if days else None for days in ages)
    return samples, runs


def make_current(declaration: Declaration) -> None:
    """Make the store, or bring it up to date, if it needs that; a reader then waits for no writer."""
    engine = connection.reader(connection.locate(declaration))
    try:
        with engine.connect() as opened:
            current = opened.exec_driver_sql("select version_num from alembic_version").scalar() == migrate.HEAD
    except (SQLAlchemyError, sqlite3.Error):
        current = False
    finally:
        engine.dispose()
    if not current:
        with Store.open(declaration):
            pass


def attempt(declaration: Declaration, action: Callable[[Store], None]) -> bool:
    """Do something with the store, and warn instead of failing where it is away: what was measured is in files.

    Returns whether it was done.
    """
    try:
        with Store.open(declaration) as store:
            action(store)
        return True
    except LaunchpadError as error:
        for problem in error.problems:
            console.say(f"  ! not in the store: {problem}", "yellow")
        return False


def _insert(session: Session, table: type[Base], rows: Sequence[Row]) -> None:
    if rows:
        session.execute(insert(table), list(rows))


def _rowcount(session: Session, statement: Any) -> int:
    return int(session.execute(statement).rowcount)  # type: ignore[attr-defined]


def _results(summary: dict[str, Any]) -> list[Row]:
    scopes = [("all", "", summary["totals"])] if summary["totals"] else []
    scopes += [("model", name, figures) for name, figures in summary["models"].items()]
    scopes += [("line", name, figures) for name, figures in summary["lines"].items()]
    columns = {column.name for column in Result.__table__.columns}
    rows = []
    for scope, name, figures in scopes:
        known = {FIGURES.get(key, key): value for key, value in figures.items()}
        kept = {key: value for key, value in known.items() if key in columns}
        rows.append(kept | {"run": summary["run"], "scope": scope, "name": name})
    return rows


def _machine(facts: dict[str, Any]) -> str:
    return f"{facts.get('processor', '?')}, {facts['cores']} cores" if "cores" in facts else ""


def _gate(row: Row, at: datetime.datetime) -> Row:
    kept = {key: row.get(key) for key in ("name", "value", "relation", "passed")}
    texts = {key: row.get(key) or "" for key in ("unit", "why", "evidence", "waiver")}
    return {**kept, **texts, "limit_value": row.get("limit"), "at": at}


def _seconds(run: str, folder: Path) -> list[Row]:
    """Return a row for each second and line. A process that came too late for a second has one of its own in the
    history: requests add up, and of percentiles, which do not, the larger stands."""
    if not (folder / runfolder.HISTORY).exists():
        return []
    latencies = ("p50_ms", "p95_ms", "p99_ms", "max_ms")
    rows: dict[tuple[int, str], Row] = {}
    for read in runfolder.read_history(folder):
        row = rows.setdefault(
            (read["second"], read["line"]),
            {"second": read["second"], "line": read["line"], "requests": 0, "failures": 0, "run": run},
        )
        row["requests"] += read["requests"]
        row["failures"] += read["failures"]
        for key in latencies:
            known = [value for value in (row.get(key), float(read[key]) if read[key] else None) if value is not None]
            row[key] = max(known, default=None)
    return list(rows.values())


def _histograms(run: str, folder: Path) -> list[Row]:
    if not (folder / runfolder.HISTOGRAMS).exists():
        return []
    rows = []
    for kind in (runfolder.RESPONSE, runfolder.SERVICE, runfolder.LAG, runfolder.FAILED):
        merged: dict[str, Any] = {}
        for line, _, histogram in runfolder.read_histograms(folder, kind):
            merged.setdefault(line, runfolder.histogram()).add(histogram)
        for line, whole in merged.items():
            payload = whole.encode().decode()
            rows.append({"run": run, "line": line, "kind": kind, "count": whole.get_total_count(), "payload": payload})
    return rows
