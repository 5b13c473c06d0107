"""Everything else that is kept: seconds and histograms of runs, stages, samples, changes of configuration, gates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("runs", sa.Column("machine", sa.String(160), nullable=False, server_default=""))
    op.add_column("results", sa.Column("p90_ms", sa.Float))
    op.add_column("results", sa.Column("p999_ms", sa.Float))
    _parts_of_runs()
    _what_happened()
    _samples()


def _parts_of_runs() -> None:
    op.create_table(
        "seconds",
        sa.Column("run", sa.String(32), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("second", sa.Integer, primary_key=True),
        sa.Column("line", sa.String(128), primary_key=True),
        sa.Column("requests", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        *(sa.Column(f"{figure}_ms", sa.Float) for figure in ("p50", "p95", "p99", "max")),
    )
    op.create_index("ix_seconds_p99_ms", "seconds", ["p99_ms"])
    op.create_table(
        "histograms",
        sa.Column("run", sa.String(32), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("line", sa.String(128), primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
    )


def _what_happened() -> None:
    op.create_table(
        "stages",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("stage", sa.String(32), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("run", sa.String(32)),
    )
    op.create_index("ix_stages_at", "stages", ["at"])
    op.create_table(
        "changes",
        sa.Column("note", sa.String(128), primary_key=True),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("what", sa.JSON, nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("run_before", sa.String(32)),
        sa.Column("run_after", sa.String(32)),
    )
    op.create_index("ix_changes_at", "changes", ["at"])
    op.create_table(
        "gates",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("run", sa.String(32)),
        sa.Column("release", sa.String(64)),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("value", sa.Float),
        sa.Column("relation", sa.String(2)),
        sa.Column("limit_value", sa.Float),
        sa.Column("unit", sa.String(32), nullable=False, server_default=""),
        sa.Column("passed", sa.Boolean),
        *(sa.Column(text, sa.Text, nullable=False, server_default="") for text in ("why", "evidence", "waiver")),
    )
    op.create_index("ix_gates_run", "gates", ["run"])
    op.create_index("ix_gates_release", "gates", ["release"])


def _samples() -> None:
    figures = ("rate_rps", "mean_ms", "p50_ms", "p95_ms", "p99_ms", "runtime_mean_ms", "objective_p99_ms")
    batches = ("batch_size", "queueing_mean_ms", "queueing_p99_ms")
    resources = ("cpu", "memory_mib", "gpu", "gpu_memory_mib")
    op.create_table(
        "samples",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("instance", sa.String(32), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("seconds", sa.Float),
        *(sa.Column(many, sa.Integer) for many in ("answered", "failed", "refused")),
        *(sa.Column(figure, sa.Float) for figure in figures),
        sa.Column("batches", sa.Integer),
        *(sa.Column(figure, sa.Float) for figure in (*batches, *resources)),
        sa.Column("trouble", sa.String(200), nullable=False, server_default=""),
    )
    op.create_index("ix_samples_at", "samples", ["at"])
    op.create_index("ix_samples_model_at", "samples", ["model", "at", "p99_ms", "objective_p99_ms"])
