"""The run store: what was run and measured, in a SQL database, so that questions can be asked across runs."""

from __future__ import annotations

import datetime
from types import TracebackType
from typing import Any

from sqlalchemy import JSON, DateTime, Engine, Float, ForeignKey, Integer, String, create_engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from launchpad.declaration import Declaration
from launchpad.errors import DeclarationError, EnvironmentFault


class Base(DeclarativeBase):
    pass


class Run(Base):
    """A load test, by its run id; `summary` is the whole of its summary.json."""

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    started: Mapped[datetime.datetime] = mapped_column(DateTime(timezone=True), index=True)
    profile: Mapped[str] = mapped_column(String(64))
    backend: Mapped[str] = mapped_column(String(16))
    configuration: Mapped[str] = mapped_column(String(64))
    summary: Mapped[dict[str, Any]] = mapped_column(JSON)


class Result(Base):
    """The figures of a run for a scope: all of it, one model, or one line of traffic. Latencies in ms."""

    __tablename__ = "results"

    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    scope: Mapped[str] = mapped_column(String(8), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    requests: Mapped[int] = mapped_column(Integer)
    failures: Mapped[int] = mapped_column(Integer)
    success_rate: Mapped[float | None] = mapped_column(Float)
    throughput_rps: Mapped[float] = mapped_column(Float)
    mean_ms: Mapped[float | None] = mapped_column(Float)
    p50_ms: Mapped[float | None] = mapped_column(Float)
    p95_ms: Mapped[float | None] = mapped_column(Float)
    p99_ms: Mapped[float | None] = mapped_column(Float)
    max_ms: Mapped[float | None] = mapped_column(Float)


class Store:
    """A connection to the store; use it as a context manager."""

    def __init__(self, engine: Engine, where: str) -> None:
        self._engine = engine
        self._where = where

    @classmethod
    def open(cls, declaration: Declaration) -> Store:
        """Connect to the declared store, making the tables that it lacks.

        Raises DeclarationError for a URL that is none, EnvironmentFault for a database that does not answer.
        """
        where = declaration.where("store")
        try:
            url = make_url(declaration.pipeline.store)
            if url.get_backend_name() == "sqlite" and url.database:
                path = declaration.root / url.database
                path.parent.mkdir(parents=True, exist_ok=True)
                url = url.set(database=str(path))
            engine = create_engine(url)
        except (ArgumentError, ImportError) as error:
            raise DeclarationError(f"store: {error}", where, "such as sqlite:///.launchpad/store.db") from None
        try:
            Base.metadata.create_all(engine)
        except SQLAlchemyError as error:
            raise EnvironmentFault(f"the store does not answer: {getattr(error, 'orig', error)}", where) from None
        return cls(engine, where)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.dispose()

    def add_run(self, summary: dict[str, Any]) -> None:
        """Record a load test from its summary; the run and its figures, or nothing."""
        wanted = {column.name for column in Result.__table__.columns} - {"run", "scope", "name"}
        scopes = [("all", "", summary["totals"])] if summary["totals"] else []
        scopes += [("model", name, figures) for name, figures in summary["models"].items()]
        scopes += [("line", name, figures) for name, figures in summary["lines"].items()]
        run = Run(
            id=summary["run"],
            status=summary["status"],
            started=datetime.datetime.fromisoformat(summary["started"]),
            profile=summary["profile"]["name"],
            backend=summary["server"]["backend"],
            configuration=summary["configuration"],
            summary=summary,
        )
        results = [
            Result(run=summary["run"], scope=scope, name=name, **{key: figures[key] for key in wanted})
            for scope, name, figures in scopes
        ]
        try:
            with Session(self._engine) as session, session.begin():
                session.add(run)
                session.flush()
                session.add_all(results)
        except SQLAlchemyError as error:
            raise EnvironmentFault(
                f"the store did not take the run: {getattr(error, 'orig', error)}", self._where
            ) from None
