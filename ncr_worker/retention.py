"""What is removed when it is old enough: ended jobs with all that belongs to them, empty batches, idempotency keys."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Delete, and_, case, delete, exists, func, select

from ncr_worker.job import TERMINAL, State
from ncr_worker.ledger.idempotency import once
from ncr_worker.ledger.observations import Observations
from ncr_worker.ledger.tables import batch, checkpoint, event, job
from ncr_worker.settings import Settings
from ncr_worker.sql import Database, now

CHUNK = 500
"""Rows of a table in one transaction: short enough that nobody waits for it."""
HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True, slots=True)
class Terms:
    """For how long what is kept, seconds since its end (keys: since their first use).

    `with_receipt`: kinds of which a job that succeeded leaves a receipt, and so is kept for `receipts`.
    `brief`: kinds whose jobs matter for a day only.
    """

    jobs: float
    receipts: float
    keys: float
    with_receipt: Collection[str] = ()
    brief: Collection[str] = ()

    def over(self) -> ColumnElement[bool]:
        """Whether a job has ended so long ago that it may go."""
        leaves_receipt = and_(job.c.state == State.SUCCEEDED, job.c.kind.in_(sorted(self.with_receipt)))
        kept = case((leaves_receipt, self.receipts), (job.c.kind.in_(sorted(self.brief)), DAY), else_=self.jobs)
        return and_(job.c.state.in_(sorted(TERMINAL)), job.c.finished_at < now() - kept)


class Retention:
    """Each chunk is a transaction of its own, the oldest first: what is stopped on its way goes on at the next call.

    The methods that remove yield after each chunk how many rows that were. They raise DatabaseAway.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def close(self) -> None:
        self.database.close()

    def old_jobs(self, terms: Terms) -> int:
        """How many there are."""
        query = select(func.count()).select_from(job).where(terms.over())
        return self.database.read(lambda connection: connection.execute(query).scalar_one())

    def remove_jobs(self, terms: Terms) -> Iterator[int]:
        """Jobs with their events, checkpoints and results."""
        last = 0
        while numbers := self._old_jobs(terms, last):
            last = numbers[-1]
            yield self._remove_jobs(terms, numbers)

    def remove_batches(self) -> Iterator[int]:
        """Batches of which no job is left."""
        empty = ~exists().where(job.c.batch_id == batch.c.id)
        query = select(batch.c.id).where(empty).order_by(batch.c.created_at, batch.c.id).limit(CHUNK)
        while ids := self.database.read(lambda connection: connection.execute(query).scalars().all()):
            yield self._delete(delete(batch).where(batch.c.id.in_(ids), empty))

    def remove_keys(self, terms: Terms) -> Iterator[int]:
        """Idempotency keys."""
        old = once.c.created_at < now() - terms.keys
        query = select(once.c.key).where(old).limit(CHUNK)
        while keys := self.database.read(lambda connection: connection.execute(query).scalars().all()):
            yield self._delete(delete(once).where(once.c.key.in_(keys), old))

    def remove_observations(self) -> Iterator[int]:
        """What was seen of runs, but for the newest of each kind and stage."""
        yield Observations(self.database).forget()

    def _old_jobs(self, terms: Terms, after: int) -> Sequence[int]:
        # From `after` on, so that what is kept for longer is stepped over once and not before every chunk.
        query = select(job.c.number).where(terms.over(), job.c.number > after).order_by(job.c.number).limit(CHUNK)
        return self.database.read(lambda connection: connection.execute(query).scalars().all())

    def _remove_jobs(self, terms: Terms, numbers: Sequence[int]) -> int:
        def work(connection: Connection) -> int:
            # Asked again under the lock: a person may have retried one meanwhile.
            query = select(job.c.number).where(job.c.number.in_(numbers), terms.over()).order_by(job.c.number)
            gone = connection.execute(query.with_for_update()).scalars().all()
            connection.execute(delete(event).where(event.c.job_number.in_(gone)))
            connection.execute(delete(checkpoint).where(checkpoint.c.job_number.in_(gone)))
            connection.execute(delete(job).where(job.c.number.in_(gone)))
            return len(gone)

        return self.database.transact(work)

    def _delete(self, statement: Delete) -> int:
        return self.database.transact(lambda connection: connection.execute(statement).rowcount)


def retention(settings: Settings) -> Retention:
    """Of this process, on the ledger's database."""
    return Retention(Database(settings.ledger_url, patience=settings.db_patience, pool_size=1))
