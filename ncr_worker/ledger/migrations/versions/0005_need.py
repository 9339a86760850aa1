"""What fits is found behind any number of jobs that do not, from the index alone."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    columns = ["state", "tenant", "priority", "number", "need"]
    op.create_index(op.f("ix_job_state_tenant_priority_number_need"), "job", columns)
    op.drop_index(op.f("ix_job_state_tenant_priority_number"), "job")
