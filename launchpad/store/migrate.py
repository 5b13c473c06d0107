"""Brings a store's schema up to date: one process does it, in one transaction, while others wait."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, inspect

from launchpad.errors import EnvironmentFault
from launchpad.store import views

MIGRATIONS = Path(__file__).parent / "migrations"
HEAD = "0003"
"""The newest migration. It says so here, so that a store that is up to date is opened without Alembic."""
FIRST = "0001"
ADVISORY_LOCK = 7_170_051
"""Number of the lock that PostgreSQL's migrating processes take; any number that nobody else uses."""


def version(connection: Connection) -> str | None:
    """Return the schema's version; None of an empty database. A store without a mark is from before there were any."""
    tables = set(inspect(connection).get_table_names())
    if "alembic_version" in tables:
        marked = connection.exec_driver_sql("select version_num from alembic_version").scalar()
        if marked:
            return str(marked)
    return FIRST if {"runs", "results"} <= tables else None


def bring_up_to_date(engine: Engine, where: str) -> None:
    """Migrate the store if it is older than this code, or empty. Raises EnvironmentFault if it is newer."""
    with engine.connect() as connection:
        found = version(connection)
    if found == HEAD:
        return
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"select pg_advisory_xact_lock({ADVISORY_LOCK})")
        found = version(connection)  # another process may have been first
        if found == HEAD:
            return
        if found and found > HEAD:
            raise EnvironmentFault(
                f"the store was made by a newer version of this project: its schema is {found}, {HEAD} is known here",
                where,
                "update this checkout, or declare another store",
            )
        _migrate(connection, found)


def _migrate(connection: Connection, found: str | None) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    views.drop(connection)
    if found:
        command.stamp(config, found)
    command.upgrade(config, HEAD)
    views.create(connection)
