"""The ledger: hosts, batches, jobs, checkpoints, events, holds."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None

# A migration is history: it repeats what ncr_worker.sql says today instead of importing it.
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
TABLE: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    op.create_table(
        "batch",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch")),
        **TABLE,
    )
    op.create_table(
        "checkpoint",
        sa.Column("job_number", NUMBER, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("stage", sa.String(length=50), nullable=False),
        sa.Column("host", sa.String(length=100), nullable=True),
        sa.Column("parcel", LONG_TEXT, nullable=False),
        sa.PrimaryKeyConstraint("job_number", "position", name=op.f("pk_checkpoint")),
        **TABLE,
    )
    op.create_table(
        "event",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("job_number", NUMBER, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("stage", sa.String(length=50), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("actor", sa.String(length=120), nullable=False),
        sa.Column("reason", sa.String(length=400), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
        **TABLE,
    )
    op.create_index(op.f("ix_event_job_number_id"), "event", ["job_number", "id"], unique=False)
    op.create_table(
        "hold",
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("job_number", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_hold")),
        **TABLE,
    )
    op.create_index(op.f("ix_hold_job_number"), "hold", ["job_number"], unique=False)
    op.create_table(
        "host",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("incarnation", sa.String(length=36), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("limit_bytes", sa.BigInteger(), nullable=False),
        sa.Column("limit_source", sa.String(length=30), nullable=False),
        sa.Column("budget", sa.BigInteger(), nullable=False),
        sa.Column("others", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("running", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_host")),
        **TABLE,
    )
    op.create_table(
        "job",
        sa.Column("number", NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=50), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("ref", sa.String(length=255), nullable=False),
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("args", LONG_TEXT, nullable=False),
        sa.Column("batch_id", sa.String(length=36), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("reason", sa.String(length=20), nullable=True),
        sa.Column("stage", sa.String(length=50), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=True),
        sa.Column("claimant", sa.String(length=60), nullable=True),
        sa.Column("host", sa.String(length=100), nullable=True),
        sa.Column("input_bytes", sa.BigInteger(), nullable=True),
        sa.Column("need", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
        sa.Column("peak", sa.BigInteger(), nullable=True),
        sa.Column("passed", sa.Integer(), nullable=False),
        sa.Column("refused_since", sa.Double(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("next_run_at", sa.Double(), nullable=False),
        sa.Column("dispatched_at", sa.Double(), nullable=True),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("error_code", sa.String(length=50), nullable=True),
        sa.Column("error", LONG_TEXT, nullable=True),
        sa.Column("result", LONG_TEXT, nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_job")),
        sa.UniqueConstraint("id"),
        **TABLE,
    )
    op.create_index(op.f("ix_job_batch_id_state"), "job", ["batch_id", "state"], unique=False)
    op.create_index(op.f("ix_job_host_state"), "job", ["host", "state"], unique=False)
    op.create_index(op.f("ix_job_kind_ref"), "job", ["kind", "ref"], unique=False)
    op.create_index(op.f("ix_job_state_priority_number"), "job", ["state", "priority", "number"], unique=False)
