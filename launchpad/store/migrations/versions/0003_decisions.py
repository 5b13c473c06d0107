"""What autotune decided at each look, with what it saw."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "decisions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("instance", sa.String(32), nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("policy", sa.String(16), nullable=False),
        sa.Column("action", sa.String(8), nullable=False),
        *(sa.Column(text, sa.Text, nullable=False) for text in ("reason", "outcome")),
        *(sa.Column(value, sa.JSON) for value in ("setting", "wanted", "seen")),
    )
    op.create_index("ix_decisions_at", "decisions", ["at"])
