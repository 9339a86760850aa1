"""What people and other programs ask of the ledger. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, case, func, select

from ncr_worker.errors import NotFound
from ncr_worker.job import OUT, Event, Job, State
from ncr_worker.ledger.tables import JOB_COLUMNS, batch, event, job, to_job
from ncr_worker.sql import Database, now


@dataclass(frozen=True, slots=True)
class Batch:
    id: str
    tenant: str
    total: int
    size: int
    created_at: float
    counts: Mapping[State, int]


@dataclass(frozen=True, slots=True)
class Backlog:
    """Queued jobs of one kind that wait for one reason; `scheduled`: those of them that are due later."""

    kind: str
    reason: str
    jobs: int
    scheduled: int
    need: int  # bytes, sum


class Reads:
    def __init__(self, database: Database) -> None:
        self.database = database

    def job(self, job_id: str) -> Job:
        """Raises NotFound."""
        row = self._jobs(job.c.id == job_id)
        if not row:
            raise NotFound(f"there is no job {job_id}")
        return row[0]

    def jobs(self, job_ids: Sequence[str]) -> list[Job]:
        """Those of the jobs that exist."""
        chunks = (job_ids[start : start + 500] for start in range(0, len(job_ids), 500))
        return [found for chunk in chunks for found in self._jobs(job.c.id.in_(chunk))]

    def jobs_of(self, batch_id: str, *, limit: int = 10_000) -> list[Job]:
        return self._jobs(job.c.batch_id == batch_id, limit=limit)

    def active(self, *, limit: int = 1000) -> list[Job]:
        """Jobs that are on a host now."""
        return self._jobs(job.c.state.in_(sorted(OUT)), limit=limit)

    def batch(self, batch_id: str) -> Batch:
        """Raises NotFound."""

        def work(connection: Connection) -> Batch | None:
            row = connection.execute(select(batch).where(batch.c.id == batch_id)).one_or_none()
            if row is None:
                return None
            query = select(job.c.state, func.count()).where(job.c.batch_id == batch_id).group_by(job.c.state)
            counts = {State(state): number for state, number in connection.execute(query)}
            return Batch(row.id, row.tenant, row.total, row.size, row.created_at, counts)

        found = self.database.read(work)
        if found is None:
            raise NotFound(f"there is no batch {batch_id}")
        return found

    def events(self, job_id: str) -> list[Event]:
        """The audit trail, oldest first. Raises NotFound."""
        number = self.job(job_id).number
        query = select(event).where(event.c.job_number == number).order_by(event.c.id)
        rows = self.database.read(lambda connection: connection.execute(query).all())
        return [Event(r.id, r.at, r.state, r.stage, r.actor, r.reason, r.attempt) for r in rows]

    def backlog(self) -> list[Backlog]:
        later = func.coalesce(func.sum(_one_if_later()), 0)
        query = (
            select(job.c.kind, job.c.reason, func.count(), later, func.sum(job.c.need))
            .where(job.c.state == State.QUEUED)
            .group_by(job.c.kind, job.c.reason)
        )
        rows: Sequence[tuple[str, str | None, int, int, int]] = self.database.read(
            lambda connection: [tuple(row) for row in connection.execute(query)]
        )
        return [Backlog(kind, reason or "new", n, int(later), int(need)) for kind, reason, n, later, need in rows]

    def _jobs(self, *where: ColumnElement[bool], limit: int = 10_000) -> list[Job]:
        query = select(*JOB_COLUMNS).where(*where).order_by(job.c.number).limit(limit)
        rows = self.database.read(lambda connection: connection.execute(query).mappings().all())
        return [to_job(row) for row in rows]


def _one_if_later() -> ColumnElement[int]:
    return case((job.c.next_run_at > now(), 1), else_=0)
