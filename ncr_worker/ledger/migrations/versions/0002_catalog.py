"""The delivery catalog, for those who bring none of their own (CATALOG_URL)."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
TABLE: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    op.create_table(
        "delivery",
        sa.Column("job_id", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("deliveries", sa.Integer(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
        **TABLE,
    )
    op.create_table(
        "delivery_history",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("job_id", sa.String(length=128), nullable=False),
        sa.Column("run", sa.String(length=36), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("target", sa.String(length=1024), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("result", sa.String(length=64), nullable=False),
        sa.Column("delivered_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("run", "round", name="uq_delivery_history_run"),
        **TABLE,
    )
    op.create_index("ix_delivery_history_job_id", "delivery_history", ["job_id"], unique=False)
    op.create_table(
        "job_details",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("job_id", sa.String(length=128), nullable=False),
        sa.Column("sku_id", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=32), server_default="new", nullable=False),
        sa.Column("updated_at", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id"),
        **TABLE,
    )
    op.create_index("ix_job_details_job_id", "job_details", ["job_id"], unique=False)
    op.create_table(
        "job_files",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("job_id", sa.String(length=128), nullable=False),
        sa.Column("key", sa.String(length=1024), nullable=False),
        sa.Column("file_type", sa.String(length=32), server_default="base", nullable=False),
        sa.Column("uploaded_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        **TABLE,
    )
    op.create_index("ix_job_files_job_id", "job_files", ["job_id"], unique=False)
    op.create_table(
        "model_validation",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("job_id", sa.String(length=128), nullable=False),
        sa.Column("run", sa.String(length=36), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("result", sa.String(length=64), nullable=False),
        sa.Column("answer", sa.JSON(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("run", "round", name="uq_model_validation_run"),
        **TABLE,
    )
    op.create_index("ix_model_validation_job_id", "model_validation", ["job_id"], unique=False)
