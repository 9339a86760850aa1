"""Memory: fair shares of tenants, what jobs were expected, granted and seen to use, what hosts observe."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TABLE: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}


def upgrade() -> None:
    op.create_table(
        "share",
        sa.Column("tenant", sa.String(length=100), nullable=False),
        sa.Column("used", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_share")),
        **TABLE,
    )
    op.create_table(
        "observation",
        sa.Column("id", NUMBER, autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(length=50), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("stage", sa.String(length=50), nullable=True),
        sa.Column("input_bytes", sa.BigInteger(), nullable=True),
        sa.Column("declared", sa.BigInteger(), nullable=True),
        sa.Column("peak", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("killed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_observation")),
        **TABLE,
    )
    op.create_index(op.f("ix_observation_kind_stage_id"), "observation", ["kind", "stage", "id"])
    op.add_column("job", sa.Column("declared", sa.BigInteger(), nullable=True))
    op.add_column("job", sa.Column("predicted", sa.BigInteger(), nullable=True))
    op.add_column("job", sa.Column("granted", sa.BigInteger(), nullable=True))
    op.add_column("host", sa.Column("observed", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_index(op.f("ix_job_state_tenant_priority_number"), "job", ["state", "tenant", "priority", "number"])
    op.drop_index(op.f("ix_job_state_priority_number"), "job")
