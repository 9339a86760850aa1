"""What a pool child writes about the job it runs. Every write is fenced by the token of its dispatch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, case, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from ncr_worker.errors import Cancelled, GivenBack, LostOwnership
from ncr_worker.job import Job, Reason, State
from ncr_worker.ledger.observations import Seen, note
from ncr_worker.ledger.tables import JOB_COLUMNS, checkpoint, hold, job, to_job
from ncr_worker.ledger.transition import lose, move, outgrow, remark, requeue
from ncr_worker.sql import Database, now


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The parcel (JSON) after stage number `position`. `host`: set when its files lie on that host."""

    position: int
    stage: str
    host: str | None
    parcel: str


@dataclass(frozen=True, slots=True)
class Claim:
    """`stopped_at`: the stage in which an earlier run left the job."""

    job: Job
    checkpoints: tuple[Checkpoint, ...]
    stopped_at: str | None = field(default=None, compare=False)


class Work:
    def __init__(self, database: Database) -> None:
        self.database = database

    def claim(self, job_id: str, token: int, claimant: str, first_stage: str) -> Claim | None:
        """Take a dispatched job, counting the attempt; None when the message is stale or a duplicate."""
        mine = (job.c.id == job_id, job.c.token == token)

        # From here on it is shown at its first stage, until it is known where it goes on: a status never goes back.
        # Unless all that is left to do is to clean up.
        stage = case((job.c.attempt >= job.c.max_attempts, func.coalesce(job.c.stage, first_stage)), else_=first_stage)

        def work(connection: Connection) -> Claim | None:
            stopped_at = connection.execute(select(job.c.stage).where(*mine)).scalar_one_or_none()
            taken = connection.execute(
                update(job)
                .where(*mine, job.c.state == State.DISPATCHED)
                .values(
                    state=State.RUNNING.value,
                    reason=None,
                    attempt=job.c.attempt + 1,
                    claimant=claimant,
                    started_at=now(),
                    stage=stage,
                )
            ).rowcount
            row = connection.execute(select(*JOB_COLUMNS, job.c.claimant).where(*mine)).mappings().one_or_none()
            # The claimant is compared because the answer to our own commit may have been lost.
            if row is None or row["claimant"] != claimant or row["state"] not in (State.RUNNING, State.CANCELLING):
                return None
            if taken:
                remark(connection, [row["number"]], actor="runner", note=None)
            rows = connection.execute(
                select(checkpoint).where(checkpoint.c.job_number == row["number"]).order_by(checkpoint.c.position)
            )
            return Claim(
                to_job(row), tuple(Checkpoint(r.position, r.stage, r.host, r.parcel) for r in rows), stopped_at
            )

        return self.database.transact(work)

    def enter(
        self, running: Job, stage: str, *, done: Checkpoint | None = None, input_bytes: int | None = None
    ) -> None:
        """The job enters `stage`; `done` is the checkpoint of the stage before, `input_bytes` what it has found out.

        Raises LostOwnership, Cancelled.
        """

        def work(connection: Connection) -> None:
            self._check(connection, running)
            if done is not None:
                where = (checkpoint.c.job_number == running.number, checkpoint.c.position >= done.position)
                connection.execute(delete(checkpoint).where(*where))
                values = {"position": done.position, "stage": done.stage, "host": done.host, "parcel": done.parcel}
                connection.execute(insert(checkpoint).values(job_number=running.number, **values))
            values = {"stage": stage} | ({} if input_bytes is None else {"input_bytes": input_bytes})
            connection.execute(update(job).where(job.c.number == running.number).values(**values))
            remark(connection, [running.number], actor="runner", note=None)

        self.database.transact(work)

    def confirm(self, running: Job) -> None:
        """Raises LostOwnership or Cancelled unless this run still owns the job."""
        self.database.transact(lambda connection: self._check(connection, running))

    def hold(self, running: Job, key: str) -> None:
        """Hold an exclusive key until the job ends. Raises GivenBack while another job holds it."""

        def work(connection: Connection) -> None:
            self._check(connection, running)
            holder = connection.execute(select(hold.c.job_number).where(hold.c.key == key)).scalar_one_or_none()
            if holder is None:
                connection.execute(insert(hold).values(key=key, job_number=running.number))
            elif holder != running.number:
                raise GivenBack(f"{key} is in use by another job", reason=Reason.TARGET_BUSY, retry_in=2.0)

        try:
            self.database.transact(work)
        except IntegrityError as error:  # another job was faster by a moment
            raise GivenBack(f"{key} is in use by another job", reason=Reason.TARGET_BUSY, retry_in=2.0) from error

    def finish(
        self,
        running: Job,
        state: State,
        *,
        error_code: str | None = None,
        error: str | None = None,
        result: Mapping[str, Any] | None = None,
        peak: int | None = None,
        seen: Sequence[Seen] = (),
    ) -> None:
        """The job ends. `seen`: what is to be learned from it.

        Raises LostOwnership when it is not this run's any more.
        """
        values: dict[str, Any] = {"error_code": error_code, "error": error, "result": result, "peak": peak}

        def work(connection: Connection) -> None:
            number, token = running.number, running.token
            if not move(connection, number, state, actor="runner", note=error_code, token=token, **values):
                row = self._row(connection, running)
                if row is None or row.state != state:
                    raise LostOwnership(f"job {running.id} is not ours any more")
            else:
                note(connection, seen)

        self.database.transact(work)

    def give_back(
        self,
        running: Job,
        *,
        reason: Reason,
        retry_in: float = 0.0,
        counted: bool = False,
        need: int | None = None,
        error_code: str | None = None,
        error: str | None = None,
    ) -> None:
        """Back to the backlog; cancelled instead when a person asked for that meanwhile."""
        values: dict[str, Any] = {"error_code": error_code, "error": error} if error_code else {}
        if need is not None:
            values["need"] = need

        def work(connection: Connection) -> None:
            requeue(
                connection,
                running.number,
                actor="runner",
                reason=reason,
                token=running.token,
                retry_in=retry_in,
                counted=counted,
                note=error or reason.value,
                **values,
            )

        self.database.transact(work)

    def lost(self, number: int, token: int, note: str, reason: Reason = Reason.WORKER_LOST) -> None:
        """The child that ran the job died (seen by its host). GIVEN_BACK: it was ended because the worker stops."""
        self.database.transact(lambda c: lose(c, number, actor="feeder", reason=reason, token=token, note=note))

    def outgrown(self, number: int, token: int, *, used: int, limit: int, actor: str) -> None:
        """The run ran out of memory, having used at most `used` bytes on a host of `limit` bytes."""
        self.database.transact(lambda c: outgrow(c, number, actor=actor, token=token, used=used, limit=limit))

    def granted(self, running: Job, reserved: int) -> None:
        """The host lets the run have so many bytes from now on."""
        values = {"reserved": reserved, "granted": reserved}
        statement = update(job).where(job.c.number == running.number, job.c.token == running.token).values(**values)
        self.database.transact(lambda connection: connection.execute(statement))

    def recall(self, number: int, token: int, note: str) -> bool:
        """Take a dispatched job back before any child has claimed it; False when one has."""

        def work(connection: Connection) -> bool:
            values = {"reason": Reason.GIVEN_BACK.value, "next_run_at": now()}
            target, only = State.QUEUED, State.DISPATCHED
            return move(connection, number, target, actor="feeder", note=note, token=token, only_from=only, **values)

        return self.database.transact(work)

    def claimant(self, number: int, token: int) -> tuple[State, str | None] | None:
        """State and claimant under this token; None when the token is no longer the job's."""
        query = select(job.c.state, job.c.claimant).where(job.c.number == number, job.c.token == token)
        row = self.database.read(lambda connection: connection.execute(query).one_or_none())
        return (State(row.state), row.claimant) if row else None

    def _row(self, connection: Connection, running: Job) -> Any:
        return connection.execute(
            select(job.c.state).where(job.c.number == running.number, job.c.token == running.token).with_for_update()
        ).one_or_none()

    def _check(self, connection: Connection, running: Job) -> None:
        row = self._row(connection, running)
        if row is not None and row.state == State.CANCELLING:
            raise Cancelled("cancelled on request")
        if row is None or row.state != State.RUNNING:
            raise LostOwnership(f"job {running.id} is not ours any more")
