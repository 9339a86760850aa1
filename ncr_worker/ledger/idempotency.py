"""Idempotency keys: a client that does not know whether its submit arrived sends it again, and gets the first answer.

The key is stored in the transaction that stores the jobs: there is one exactly when there are the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Column, Connection, Double, String, Table, insert, select

from ncr_worker.errors import Rejected
from ncr_worker.ledger.tables import job, metadata
from ncr_worker.sql import TABLE, now

once = Table(
    "once",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("job_id", String(36), nullable=False),  # the first of its jobs
    Column("batch_id", String(36)),
    Column("message", String(400), nullable=False),
    Column("answered_at", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    **TABLE,
)


@dataclass(frozen=True, slots=True)
class Once:
    """A client's word that two submits with the same key are one. `fingerprint`: of what is submitted.

    `message`, `answered_at` (epoch seconds): what the first answer said; a later one says the same.
    """

    key: str
    fingerprint: str
    message: str
    answered_at: float


@dataclass(frozen=True, slots=True)
class Stored:
    """What a submit has stored. `again`: it was stored before, by a submit with the same key."""

    job_ids: tuple[str, ...]
    batch_id: str | None
    message: str
    answered_at: float
    again: bool = False


def find(connection: Connection, key: str, fingerprint: str) -> Stored | None:
    """What was stored under `key`. Raises Rejected when it was something else."""
    row = connection.execute(select(once).where(once.c.key == key)).one_or_none()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        text = "this Idempotency-Key was used for another request; take a new key for each new request"
        raise Rejected(text, code="idempotency_key_reused")
    ids: Sequence[str] = [row.job_id]
    if row.batch_id:
        query = select(job.c.id).where(job.c.batch_id == row.batch_id).order_by(job.c.number)
        ids = connection.execute(query).scalars().all()
    return Stored(tuple(ids), row.batch_id, row.message, row.answered_at, again=True)


def keep(connection: Connection, new: Once, job_id: str, batch_id: str | None) -> None:
    """`job_id`: the first of the jobs. Raises sqlalchemy's IntegrityError when another transaction was faster."""
    values = {**asdict(new), "job_id": job_id, "batch_id": batch_id}
    connection.execute(insert(once).values(**values, created_at=now()))
