"""Connections to the store's database: for writing, one writer at a time waiting for the other; for reading alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from launchpad.declaration import Declaration
from launchpad.errors import DeclarationError, EnvironmentFault

LOCK_TIMEOUT_S = 15.0
"""How long a writer waits for another one."""
CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 60
"""How long a reader's question may take on PostgreSQL."""

STEPS = 100_000
"""Steps of SQLite between looks at whether it is interrupted; some milliseconds."""

BROKEN = ("not a database", "disk image is malformed", "malformed database schema")
"""What SQLite says of a file that holds no whole database."""

REFILL = "what is measured stays in files: `invoke store --fill` adds it once the store is there"


def locate(declaration: Declaration) -> URL:
    """Return the URL of the declared store, an SQLite path counted from the checkout. Raises DeclarationError."""
    where, hint = declaration.where("store"), "such as sqlite:///.launchpad/store.db or postgresql+psycopg://host/name"
    try:
        url = make_url(declaration.pipeline.store)
        url.get_dialect()().create_connect_args(url)
    except (SQLAlchemyError, ImportError, ValueError, TypeError) as error:
        raise DeclarationError(f"store: {error}", where, hint) from None
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        return url.set(database=str(declaration.root / (url.database or ".launchpad/store.db")))
    if url.drivername != "postgresql+psycopg":
        raise DeclarationError(f"store: {url.drivername} is not known here", where, hint)
    return url


def writer(url: URL) -> Engine:
    """Return an engine whose transactions write, one after the other. Makes the folder of an SQLite file.

    Raises EnvironmentFault where that cannot be made.
    """
    if url.get_backend_name() == "postgresql":
        arguments = {"connect_timeout": CONNECT_TIMEOUT_S, "options": f"-c lock_timeout={LOCK_TIMEOUT_S * 1000:.0f}ms"}
        return create_engine(url, poolclass=NullPool, connect_args=arguments)
    folder = Path(str(url.database)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"the store's folder cannot be made: {error.strerror}", str(folder)) from None
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": LOCK_TIMEOUT_S})
    # The driver would begin transactions late, so that two writers could each hold what the other needs.
    event.listen(engine, "connect", _begin_by_hand)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _begin_by_hand(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None
    try:
        connection.execute("PRAGMA journal_mode = WAL")  # readers go on while one writes
    except sqlite3.OperationalError as error:
        # SQLite does not wait here: another writer has the new file. This one or a later one makes the change.
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
    connection.execute("PRAGMA foreign_keys = ON")


READS = {getattr(sqlite3, name) for name in ("SQLITE_SELECT", "SQLITE_READ", "SQLITE_FUNCTION", "SQLITE_RECURSIVE")}


def reader(url: URL) -> Engine:
    """Return an engine whose database refuses everything but reading, whatever a statement says."""
    if url.get_backend_name() == "postgresql":
        # A cursor on the server is declared for a question alone: the protocol takes one statement, so none can end the
        # read-only transaction and go on behind it, and no COPY, which such a transaction lets write files.
        # All rows are fetched, so the planner is told not to hurry for the first.
        options = f"-c default_transaction_read_only=on -c statement_timeout={STATEMENT_TIMEOUT_S}s"
        options += " -c cursor_tuple_fraction=1"
        arguments = {"connect_timeout": CONNECT_TIMEOUT_S, "prepare_threshold": 0, "options": options}
        engine = create_engine(url, poolclass=NullPool, connect_args=arguments)
        return engine.execution_options(stream_results=True)
    uri = url.set(database=f"file:{url.database}", query={"mode": "ro", "uri": "true"})
    engine = create_engine(uri, poolclass=NullPool, connect_args={"timeout": LOCK_TIMEOUT_S})
    event.listen(engine, "connect", _only_read)
    return engine


def _only_read(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None
    connection.set_progress_handler(lambda: 0, STEPS)  # Python, which Ctrl-C can interrupt
    connection.set_authorizer(lambda action, *about: sqlite3.SQLITE_OK if action in READS else sqlite3.SQLITE_DENY)


@contextmanager
def told(doing: str, url: URL, where: str) -> Iterator[None]:
    """Turn what the database refuses in the block into an EnvironmentFault in the user's words."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise EnvironmentFault(f"the store {_refusal(error, doing, url)}", where, _remedy(error, url)) from None


def _refusal(error: Exception, doing: str, url: URL) -> str:
    said = " ".join(str(getattr(error, "orig", error)).split())
    if _is_locked(said):
        return f"is locked by another program for more than {LOCK_TIMEOUT_S:g} s, {doing}"
    if "disk is full" in said or "No space left" in said:
        return f"has no room left, {doing}"
    if unreachable(error, url):
        return f"does not answer at {url.render_as_string(hide_password=True)}: {said}"
    return f"refused, {doing}: {said}"


def _is_locked(said: str) -> bool:
    return "database is locked" in said or "lock timeout" in said


def interrupted(error: Exception) -> bool:
    """Tell whether Ctrl-C ended the question."""
    return getattr(getattr(error, "orig", None) or error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT


def unreachable(error: Exception, url: URL) -> bool:
    """Tell whether no connection came about, so that nothing was asked."""
    said = str(getattr(error, "orig", None) or error)  # without the SQL, which may say anything
    if url.get_backend_name() == "sqlite":
        return "unable to open" in said or "is not a" in said or any(words in said for words in BROKEN)
    return isinstance(error, OperationalError) and (error.connection_invalidated or "connection" in said)


def _remedy(error: Exception, url: URL) -> str:
    said = str(error)
    if _is_locked(said):
        return f"end the program that holds {url.database}; {REFILL}"
    if "disk is full" in said or "No space left" in said:
        return f"make room, or declare another store; {REFILL}"
    if any(words in said for words in BROKEN):
        return f"move {url.database} away, a new store is made in its place; {REFILL}"
    return REFILL
