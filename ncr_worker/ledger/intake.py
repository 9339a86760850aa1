"""How jobs come into the ledger, and what people may ask of them there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from ncr_worker.errors import Cancelled, Conflict, NotFound
from ncr_worker.job import TERMINAL, NewBatch, NewJob, Reason, State, sources
from ncr_worker.ledger.idempotency import Once, Stored, find, keep
from ncr_worker.ledger.tables import batch, hold, job
from ncr_worker.ledger.transition import ON_REQUEST, move, remark, wind_up
from ncr_worker.sql import Database, now

T = TypeVar("T")

_OF_A_ROUND = (  # what a retry forgets; the audit trail keeps it
    *("stage", "claimant", "host", "peak", "granted", "refused_since", "dispatched_at", "started_at", "finished_at"),
    *("error_code", "error", "result"),
)
_GIVEN = tuple(name for name in NewJob.__dataclass_fields__ if name != "exclusive_key")
_FRESH: dict[str, Any] = {"state": State.QUEUED.value, "reason": Reason.NEW.value, "attempt": 0, "round": 1}
_FRESH |= {"reserved": 0, "passed": 0}
CHUNK = 500  # rows in one statement: below every database's limit of parameters


@dataclass(frozen=True, slots=True)
class Again:
    """How a job begins anew: the bytes that it needs, the exclusive key that it takes."""

    need: int
    exclusive_key: str | None


class Intake:
    def __init__(self, database: Database) -> None:
        self.database = database

    def submit(
        self, jobs: Sequence[NewJob], new_batch: NewBatch | None = None, *, actor: str = "api", once: Once | None = None
    ) -> Stored | None:
        """Store jobs (at least one), all or none. Once this returns they are not lost any more.

        With `once`, nothing is stored when there are jobs under the same key: these are returned, else None. Raises
        Conflict, naming the first, when an unfinished job holds one's exclusive key; Rejected when `once` was used
        for something else; DatabaseAway.
        """
        keys = [j.exclusive_key for j in jobs if j.exclusive_key]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise Conflict(f"{twice!r} stands in this batch more than once; submit it once", code="duplicate_target")

        def work(connection: Connection) -> Stored | None:
            known = connection.execute(select(job.c.id).where(job.c.id == jobs[0].id)).first()
            if known:  # an earlier try was committed, only its answer was lost
                return None
            if once:
                if earlier := find(connection, once.key, once.fingerprint):
                    return earlier
                keep(connection, once, jobs[0].id, new_batch.id if new_batch else None)
            _refuse_held(connection, keys, but=jobs[0].id)
            if new_batch:
                values = {**asdict(new_batch), "total": len(jobs)}
                connection.execute(insert(batch).values(**values, created_at=now()))
            for start in range(0, len(jobs), CHUNK):
                _insert(connection, jobs[start : start + CHUNK], actor)
            return None

        return self.settle(work)

    def stored(self, key: str, fingerprint: str) -> Stored | None:
        """What was stored under a client's key. Raises Rejected when it was something else."""
        return self.database.read(lambda connection: find(connection, key, fingerprint))

    def cancel(self, job_id: str, *, actor: str) -> State:
        """Ask a job to stop; its state afterwards. Raises NotFound; Conflict when it has ended already."""
        return self.database.transact(lambda connection: cancel(connection, job_id, actor=actor))

    def retry(self, job_id: str, again: Again, *, actor: str) -> None:
        """A new round for a job that ended without success, from its first stage, with all its attempts.

        Raises NotFound; Conflict when it has not ended so, or another job holds its exclusive key.
        """
        self.settle(lambda connection: retry(connection, job_id, again, actor=actor))

    def settle(self, work: Callable[[Connection], T]) -> T:
        """Once more when between our look and our insert somebody took a key, or stored these very jobs."""
        try:
            return self.database.transact(work)
        except IntegrityError:
            return self.database.transact(work)

    def cancelling(self, host_id: str) -> set[int]:
        """Tokens of this host's jobs that were asked to stop."""
        query = select(job.c.token).where(job.c.host == host_id, job.c.state == State.CANCELLING)
        return set(self.database.read(lambda connection: connection.execute(query).scalars().all()))


def cancel(connection: Connection, job_id: str, *, actor: str) -> State:
    """A running job ends when it hears of it, a waiting one at once, or after cleaning up what it has left outside.

    Its state now. Raises as `Intake.cancel`, before anything is written.
    """
    row = _locked(connection, job_id)
    source = State(row.state)
    if source in TERMINAL:
        raise Conflict(f"job {job_id} has already ended: {source}", code="already_ended")
    if source is State.CANCELLING or (source is not State.RUNNING and row.attempt >= row.max_attempts):
        return source  # its end is decided
    if move(connection, row.number, State.CANCELLING, actor=actor):
        return State.CANCELLING
    return wind_up(connection, row.number, source, actor=actor, code=Cancelled.code, text=ON_REQUEST) or source


def retry(connection: Connection, job_id: str, again: Again, *, actor: str) -> None:
    """Raises as `Intake.retry`, before anything is written."""
    row = _locked(connection, job_id)
    source, key = State(row.state), again.exclusive_key
    if source not in sources(State.QUEUED) & TERMINAL:
        text = f"job {job_id} is {source}; only a job that failed or was cancelled can be retried"
        raise Conflict(text, code="not_retryable")
    if key:
        _refuse_held(connection, [key])
        connection.execute(insert(hold).values(key=key, job_number=row.number))
    fresh = dict.fromkeys(_OF_A_ROUND) | {"round": job.c.round + 1, "attempt": 0, "passed": 0, "need": again.need}
    fresh |= {"reason": Reason.NEW.value, "next_run_at": now(), "predicted": again.need}
    move(connection, row.number, State.QUEUED, actor=actor, note="retry", only_from=source, **fresh)


def _locked(connection: Connection, job_id: str) -> Any:
    query = (
        select(job.c.number, job.c.state, job.c.attempt, job.c.max_attempts).where(job.c.id == job_id).with_for_update()
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    return row


def _refuse_held(connection: Connection, keys: Sequence[str], *, but: str = "") -> None:
    for start in range(0, len(keys), CHUNK):
        row = connection.execute(
            select(hold.c.key, job.c.id, job.c.ref)
            .join(job, job.c.number == hold.c.job_number)
            .where(hold.c.key.in_(keys[start : start + CHUNK]), job.c.id != but)
        ).first()
        if row:
            raise Conflict(
                f"{row.ref!r} is already being worked on by job {row.id}; wait until it ends, or cancel it",
                code="already_active",
            )


def _insert(connection: Connection, jobs: Sequence[NewJob], actor: str) -> None:
    connection.execute(insert(job).values(created_at=now(), next_run_at=now()), [_row(new) for new in jobs])
    ids = [new.id for new in jobs]
    numbers = {
        row.id: row.number for row in connection.execute(select(job.c.id, job.c.number).where(job.c.id.in_(ids)))
    }
    holds = [{"key": new.exclusive_key, "job_number": numbers[new.id]} for new in jobs if new.exclusive_key]
    if holds:
        connection.execute(insert(hold), holds)
    remark(connection, list(numbers.values()), actor=actor, note=Reason.NEW)


def _row(new: NewJob) -> dict[str, Any]:
    return {name: getattr(new, name) for name in _GIVEN} | {"args": dict(new.args), "predicted": new.need} | _FRESH
