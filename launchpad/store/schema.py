"""The tables. Migrations make them, `views` lays names over them; times are UTC, latencies in ms unless said."""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, Float, ForeignKey, Index, String, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Utc(TypeDecorator[datetime.datetime]):
    """A moment. Databases without time zones keep it in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime.datetime | None, dialect: Dialect) -> datetime.datetime | None:
        return value.astimezone(datetime.UTC) if value else None

    def process_result_value(self, value: datetime.datetime | None, dialect: Dialect) -> datetime.datetime | None:
        return value.replace(tzinfo=datetime.UTC) if value and value.tzinfo is None else value


class Base(DeclarativeBase):
    type_annotation_map = {datetime.datetime: Utc(), dict[str, Any]: JSON(), float: Float()}


class Run(Base):
    """A load test, by its run id; `summary` is the whole of its summary.json."""

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    started: Mapped[datetime.datetime] = mapped_column(index=True)
    profile: Mapped[str] = mapped_column(String(64))
    backend: Mapped[str] = mapped_column(String(16))
    configuration: Mapped[str] = mapped_column(String(64))
    summary: Mapped[dict[str, Any]]
    machine: Mapped[str] = mapped_column(String(160), server_default="")
    """Processor and cores: figures of different machines are no trend."""


class Result(Base):
    """The figures of a run for a scope: `all` of it, one `model`, or one `line` of traffic."""

    __tablename__ = "results"

    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    scope: Mapped[str] = mapped_column(String(8), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    requests: Mapped[int]
    failures: Mapped[int]
    success_rate: Mapped[float | None]
    throughput_rps: Mapped[float]
    mean_ms: Mapped[float | None]
    p50_ms: Mapped[float | None]
    p95_ms: Mapped[float | None]
    p99_ms: Mapped[float | None]
    max_ms: Mapped[float | None]
    p90_ms: Mapped[float | None]
    p999_ms: Mapped[float | None]


class Second(Base):
    """One second of a run for one line of traffic, from its history."""

    __tablename__ = "seconds"
    __table_args__ = (Index("ix_seconds_p99_ms", "p99_ms"),)

    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    second: Mapped[int] = mapped_column(primary_key=True)
    line: Mapped[str] = mapped_column(String(128), primary_key=True)
    requests: Mapped[int]
    failures: Mapped[int]
    p50_ms: Mapped[float | None]
    p95_ms: Mapped[float | None]
    p99_ms: Mapped[float | None]
    max_ms: Mapped[float | None]


class Histogram(Base):
    """All latencies of a kind on a line of traffic of a run: an HdrHistogram in µs, compressed and encoded as text."""

    __tablename__ = "histograms"

    run: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    line: Mapped[str] = mapped_column(String(128), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    count: Mapped[int]
    payload: Mapped[str] = mapped_column(Text)


class StageRun(Base):
    """A stage that ran. `run`: the load test of its chain, if it had one."""

    __tablename__ = "stages"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime.datetime] = mapped_column(index=True)
    stage: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16))
    seconds: Mapped[float]
    detail: Mapped[str] = mapped_column(Text)
    run: Mapped[str | None] = mapped_column(String(32))


class Sample(Base):
    """What the monitor saw of a server in one interval: of one model, or of the whole server where `model` is empty.

    at: the interval's end. seconds: its length. answered, failed, refused: requests; the refused are among the failed.
    Latencies are the server's own. batch_size: mean examples in a batch, padding included. cpu: cores in use.
    gpu: share of the busiest GPU's time. trouble: why there are no figures, or `restarted`.
    """

    __tablename__ = "samples"
    __table_args__ = (
        Index("ix_samples_at", "at"),
        Index("ix_samples_model_at", "model", "at", "p99_ms", "objective_p99_ms"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime.datetime]
    instance: Mapped[str] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(String(128))
    seconds: Mapped[float | None]
    answered: Mapped[int | None]
    failed: Mapped[int | None]
    refused: Mapped[int | None]
    rate_rps: Mapped[float | None]
    mean_ms: Mapped[float | None]
    p50_ms: Mapped[float | None]
    p95_ms: Mapped[float | None]
    p99_ms: Mapped[float | None]
    runtime_mean_ms: Mapped[float | None]
    objective_p99_ms: Mapped[float | None]
    batches: Mapped[int | None]
    batch_size: Mapped[float | None]
    queueing_mean_ms: Mapped[float | None]
    queueing_p99_ms: Mapped[float | None]
    cpu: Mapped[float | None]
    memory_mib: Mapped[float | None]
    gpu: Mapped[float | None]
    gpu_memory_mib: Mapped[float | None]
    trouble: Mapped[str] = mapped_column(String(200), server_default="")


class Change(Base):
    """A change of configuration. `what`: {key: [before, after]}. Its note is the file `note` in reports/notes/."""

    __tablename__ = "changes"

    note: Mapped[str] = mapped_column(String(128), primary_key=True)
    at: Mapped[datetime.datetime] = mapped_column(index=True)
    source: Mapped[str] = mapped_column(String(16))
    title: Mapped[str] = mapped_column(Text)
    what: Mapped[dict[str, Any]]
    why: Mapped[str] = mapped_column(Text)
    run_before: Mapped[str | None] = mapped_column(String(32))
    run_after: Mapped[str | None] = mapped_column(String(32))


class Decision(Base):
    """What autotune decided for a model at a look, or for the whole server where `model` is empty.

    setting: what it has; wanted: what it is to have. seen: the figures of the window that the decision is from, null
    where there were none. outcome: `held`, `applied`, `would apply`, or what went wrong.
    """

    __tablename__ = "decisions"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime.datetime] = mapped_column(index=True)
    instance: Mapped[str] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(String(128))
    version: Mapped[int]
    policy: Mapped[str] = mapped_column(String(16))
    action: Mapped[str] = mapped_column(String(8))
    reason: Mapped[str] = mapped_column(Text)
    outcome: Mapped[str] = mapped_column(Text)
    setting: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    wanted: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    seen: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class GateResult(Base):
    """A gate that was evaluated, of a run or of a release. `passed` is null where it did not run: `why` says why."""

    __tablename__ = "gates"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime.datetime]
    run: Mapped[str | None] = mapped_column(String(32), index=True)
    release: Mapped[str | None] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(128))
    value: Mapped[float | None]
    relation: Mapped[str | None] = mapped_column(String(2))
    limit_value: Mapped[float | None]
    unit: Mapped[str] = mapped_column(String(32), server_default="")
    passed: Mapped[bool | None]
    why: Mapped[str] = mapped_column(Text, server_default="")
    evidence: Mapped[str] = mapped_column(Text, server_default="")
    waiver: Mapped[str] = mapped_column(Text, server_default="")
