"""What the engine and its users ask of the ledger about single jobs. Lists are in `ncr_worker.history`."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, select

from ncr_worker.errors import NotFound
from ncr_worker.job import Event, Job
from ncr_worker.ledger.tables import JOB_COLUMNS, event, job, to_job
from ncr_worker.sql import Database


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

    def events(self, job_id: str, *, after: int = 0) -> list[Event]:
        """The audit trail, oldest first, from behind event number `after`. Raises NotFound."""
        number = self.job(job_id).number
        query = select(event).where(event.c.job_number == number, event.c.id > after).order_by(event.c.id)
        rows = self.database.read(lambda connection: connection.execute(query).all())
        return [Event(r.id, r.at, r.state, r.stage, r.actor, r.reason, r.attempt) for r in rows]

    def _jobs(self, *where: ColumnElement[bool]) -> list[Job]:
        query = select(*JOB_COLUMNS).where(*where).order_by(job.c.number)
        rows = self.database.read(lambda connection: connection.execute(query).mappings().all())
        return [to_job(row) for row in rows]
