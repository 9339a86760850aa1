"""Operations: idempotency keys, pauses, metrics of hosts, indexes for lists."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0003"
down_revision = "0002"

LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
TABLE: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    op.create_table(
        "once",
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=36), nullable=False),
        sa.Column("batch_id", sa.String(length=36), nullable=True),
        sa.Column("message", sa.String(length=400), nullable=False),
        sa.Column("answered_at", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_once")),
        **TABLE,
    )
    op.create_table(
        "pause",
        sa.Column("scope", sa.String(length=10), nullable=False),
        sa.Column("actor", sa.String(length=120), nullable=False),
        sa.Column("note", sa.String(length=400), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("scope", name=op.f("pk_pause")),
        **TABLE,
    )
    op.add_column("host", sa.Column("metrics", LONG_TEXT, nullable=True))
    op.add_column("job", sa.Column("request_id", sa.String(length=128), nullable=True))
    op.create_index(op.f("ix_job_tenant_number"), "job", ["tenant", "number"])
    op.create_index(op.f("ix_batch_created_at_id"), "batch", ["created_at", "id"])
