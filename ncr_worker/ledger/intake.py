"""How jobs come into the ledger, and what people may ask of them there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from ncr_worker.errors import Conflict, NotFound
from ncr_worker.job import NewBatch, NewJob, Reason, State
from ncr_worker.ledger.tables import batch, hold, job
from ncr_worker.ledger.transition import move, remark
from ncr_worker.sql import Database, now

CHUNK = 500  # rows in one statement: below every database's limit of parameters


class Intake:
    def __init__(self, database: Database) -> None:
        self.database = database

    def submit(self, jobs: Sequence[NewJob], new_batch: NewBatch | None = None, *, actor: str = "api") -> None:
        """Store jobs, all or none. Once this returns they are not lost any more.

        Raises Conflict, naming the first, when an unfinished job holds one's exclusive key; DatabaseAway.
        """
        keys = [j.exclusive_key for j in jobs if j.exclusive_key]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise Conflict(f"{twice!r} stands in this batch more than once; submit it once", code="duplicate_target")

        def work(connection: Connection) -> None:
            known = connection.execute(select(job.c.id).where(job.c.id == jobs[0].id)).first()
            if known:  # an earlier try was committed, only its answer was lost
                return
            _refuse_held(connection, keys)
            if new_batch:
                connection.execute(
                    insert(batch).values(
                        id=new_batch.id,
                        tenant=new_batch.tenant,
                        size=new_batch.size,
                        total=len(jobs),
                        created_at=now(),
                    )
                )
            for start in range(0, len(jobs), CHUNK):
                _insert(connection, jobs[start : start + CHUNK], actor)

        try:
            self.database.transact(work)
        except IntegrityError:  # between our look and our insert somebody took a key, or stored these very jobs
            self.database.transact(work)

    def cancel(self, job_id: str, *, actor: str) -> State:
        """Ask a job to stop; its state afterwards. A waiting job ends at once, a running one when it hears of it.

        Raises NotFound; Conflict when it has ended already.
        """

        def work(connection: Connection) -> State:
            row = connection.execute(
                select(job.c.number, job.c.state).where(job.c.id == job_id).with_for_update()
            ).one_or_none()
            if row is None:
                raise NotFound(f"there is no job {job_id}")
            for target in (State.CANCELLED, State.CANCELLING):
                if row.state != State.CANCELLING and move(connection, row.number, target, actor=actor):
                    return target
            if row.state == State.CANCELLING:
                return State.CANCELLING
            raise Conflict(f"job {job_id} has already ended: {row.state}", code="already_ended")

        return self.database.transact(work)

    def cancelling(self, host_id: str) -> set[int]:
        """Tokens of this host's jobs that were asked to stop."""
        query = select(job.c.token).where(job.c.host == host_id, job.c.state == State.CANCELLING)
        return set(self.database.read(lambda connection: connection.execute(query).scalars().all()))


def _refuse_held(connection: Connection, keys: Sequence[str]) -> None:
    for start in range(0, len(keys), CHUNK):
        row = connection.execute(
            select(hold.c.key, job.c.id, job.c.ref)
            .join(job, job.c.number == hold.c.job_number)
            .where(hold.c.key.in_(keys[start : start + CHUNK]))
        ).first()
        if row:
            raise Conflict(
                f"{row.ref!r} is already being worked on by job {row.id}; wait until it ends, or cancel it",
                code="already_active",
            )


def _insert(connection: Connection, jobs: Sequence[NewJob], actor: str) -> None:
    connection.execute(insert(job), [_row(new) for new in jobs])
    ids = [new.id for new in jobs]
    connection.execute(update(job).where(job.c.id.in_(ids)).values(created_at=now(), next_run_at=now()))
    numbers = {
        row.id: row.number for row in connection.execute(select(job.c.id, job.c.number).where(job.c.id.in_(ids)))
    }
    holds = [{"key": new.exclusive_key, "job_number": numbers[new.id]} for new in jobs if new.exclusive_key]
    if holds:
        connection.execute(insert(hold), holds)
    remark(connection, list(numbers.values()), actor=actor, note=Reason.NEW)


def _row(new: NewJob) -> dict[str, Any]:
    return {
        "id": new.id,
        "kind": new.kind,
        "version": new.version,
        "ref": new.ref,
        "tenant": new.tenant,
        "args": dict(new.args),
        "batch_id": new.batch_id,
        "priority": new.priority,
        "state": State.QUEUED.value,
        "reason": Reason.NEW.value,
        "attempt": 0,
        "max_attempts": new.max_attempts,
        "round": 1,
        "input_bytes": new.input_bytes,
        "need": new.need,
        "reserved": 0,
        "passed": 0,
        "created_at": 0.0,
        "next_run_at": 0.0,
    }
