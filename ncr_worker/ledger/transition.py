"""The one place that changes a job's state. Every change is fenced, allowed by the table of states, and noted."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, bindparam, case, delete, insert, select, update

from ncr_worker.errors import Cancelled
from ncr_worker.growth import grown
from ncr_worker.job import OUT, TERMINAL, Reason, State, sources
from ncr_worker.ledger import observations
from ncr_worker.ledger.observations import Seen
from ncr_worker.ledger.pauses import work_paused
from ncr_worker.ledger.tables import checkpoint, event, hold, job
from ncr_worker.picking import Waiting
from ncr_worker.sql import now
from ncr_worker.sqlite import Executes

ON_REQUEST = "cancelled on request"


def move(
    connection: Connection,
    number: int,
    target: State,
    *,
    actor: str,
    note: str | None = None,
    token: int | None = None,
    only_from: State | None = None,
    **values: Any,
) -> bool:
    """Move one job to `target`; False when its state (or `only_from`), or its token, does not allow it.

    `note`: the reason in the audit trail. `values`: further columns of the job to set.
    """
    allowed = {only_from} if only_from else sources(target)
    statement = update(job).where(job.c.number == number, job.c.state.in_(sorted(allowed)))
    if token is not None:
        statement = statement.where(job.c.token == token)
    values.setdefault("reason", None)
    if target not in OUT:
        values["reserved"] = 0
    if target is State.QUEUED:
        values["token"] = None  # whatever its last run still has to say comes too late
    if target in TERMINAL:
        values["finished_at"] = now()
    if connection.execute(statement.values(state=target.value, **values)).rowcount != 1:
        return False
    remark(connection, [number], actor=actor, note=note if note is not None else values["reason"])
    if target in TERMINAL:
        connection.execute(delete(checkpoint).where(checkpoint.c.job_number == number))
        connection.execute(delete(hold).where(hold.c.job_number == number))
    return True


def requeue(
    connection: Connection,
    number: int,
    *,
    actor: str,
    reason: Reason,
    token: int | None = None,
    retry_in: float = 0.0,
    counted: bool = False,
    note: str | None = None,
    **values: Any,
) -> bool:
    """Take a job off its host: back to the backlog, or to its end when a person had cancelled it.

    `counted`: the attempt that was counted at the claim stays counted.
    """
    if wind_up(connection, number, State.CANCELLING, actor=actor, code=Cancelled.code, text=ON_REQUEST, token=token):
        return True
    values |= {"reason": reason.value, "next_run_at": now() + retry_in}
    # A dispatched job was not claimed yet: nothing is counted that could be taken back.
    if move(
        connection, number, State.QUEUED, actor=actor, note=note, token=token, only_from=State.DISPATCHED, **values
    ):
        return True
    if not counted:
        values["attempt"] = job.c.attempt - 1
    return move(
        connection, number, State.QUEUED, actor=actor, note=note, token=token, only_from=State.RUNNING, **values
    )


def wind_up(
    connection: Connection, number: int, source: State, *, actor: str, code: str, text: str, token: int | None = None
) -> State | None:
    """Let a job end with error `code`; its state now, None when it is not in state `source` (or not under `token`).

    If it has run before, one more run only cleans up outside: it has no attempts and needs no memory. A run that
    dies in this very clean-up is not followed by another.
    """
    row = connection.execute(
        select(job.c.stage, job.c.attempt, job.c.max_attempts).where(job.c.number == number).with_for_update()
    ).one()
    values: dict[str, Any] = {"error_code": code, "error": text}
    if row.stage is None or row.attempt > row.max_attempts:
        target = State.CANCELLED if code == Cancelled.code else State.FAILED
    else:
        target = State.QUEUED
        values |= {"attempt": row.max_attempts, "need": 0, "next_run_at": now(), "reason": Reason.WINDING_UP.value}
    moved = move(connection, number, target, actor=actor, note=text, token=token, only_from=source, **values)
    return target if moved else None


def lose(
    connection: Connection,
    number: int,
    *,
    actor: str,
    reason: Reason,
    token: int,
    note: str,
    error: str | None = None,
    need: int | None = None,
) -> None:
    """A child or its host died: queued again, or failed when its attempts are used up.

    `error`: what is to be said of it then; `need`: bytes to reserve from now on.

    After the last attempt it is queued once more, for the runner to clean up outside; only if that dies too does
    it fail here. An end that we made ourselves (GIVEN_BACK: the worker stops) costs no attempt.
    """
    row = connection.execute(
        select(job.c.state, job.c.attempt, job.c.max_attempts, job.c.error_code, job.c.error)
        .where(job.c.number == number, job.c.token == token)
        .with_for_update()
    ).one_or_none()
    if row is None:
        return
    values: dict[str, Any] = {} if need is None else {"need": need}
    pause = 0.0
    counted = reason is not Reason.GIVEN_BACK
    if row.state == State.RUNNING and counted:
        pause = min(0.25 * 2 ** (row.attempt - 1), 30.0)
        text = error or f"the process that ran it died {row.attempt} times; last: {note}"
        values |= {"error_code": reason.value, "error": text}
        if row.attempt > row.max_attempts:  # in its clean-up: its end was decided before
            if row.error_code and row.error_code != reason:
                values |= {"error_code": row.error_code, "error": row.error}
            code, text = values["error_code"], values["error"]
            wind_up(connection, number, State.RUNNING, actor=actor, code=code, text=text, token=token)
            return
    requeue(
        connection,
        number,
        actor=actor,
        reason=reason,
        token=token,
        retry_in=pause,
        counted=counted,
        note=note,
        **values,
    )


def outgrow(connection: Connection, number: int, *, actor: str, token: int, used: int, limit: int) -> None:
    """The run ran out of memory: queued again with more, or failed, with its history, when its attempts are used up.

    `used`: the most that it was seen to use; `limit`: bytes of its host, which it may have once, alone.
    """
    what = (job.c.kind, job.c.version, job.c.stage, job.c.input_bytes, job.c.declared, job.c.reserved)
    so_far = (job.c.attempt, job.c.max_attempts, job.c.error_code, job.c.error)
    query = select(*what, *so_far, (now() - job.c.started_at).label("seconds"))
    row = connection.execute(query.where(job.c.number == number, job.c.token == token)).one_or_none()
    if row is None:
        return
    need = grown(row.reserved, used, observations.largest(connection, row.kind), row.declared or 0)
    if used > row.reserved:
        seconds = row.seconds or 0.0
        whole = Seen(row.kind, row.version, None, row.input_bytes, row.declared, used, seconds, killed=True)
        observations.note(connection, [replace(whole, stage=row.stage, declared=None), whole])
    if row.reserved < limit:
        need = min(need, limit)
    if row.attempt >= row.max_attempts:
        need = 0  # all that is left to do is to clean up
    note = f"out of memory: used {used >> 20:,} MiB, {row.reserved >> 20:,} MiB were reserved"
    earlier = row.error if row.error_code == Reason.OUT_OF_MEMORY else None
    error = f"{earlier}; then {used >> 20:,} of {row.reserved >> 20:,} MiB" if earlier else note
    lose(connection, number, actor=actor, reason=Reason.OUT_OF_MEMORY, token=token, note=note, error=error, need=need)


def unlocked(connection: Connection, jobs: Sequence[Waiting]) -> Sequence[Waiting]:
    """Those at which no other host is just now; their rows are locked."""
    if not jobs or connection.dialect.name == "sqlite":  # it serves one host
        return jobs
    numbers = [waiting.number for waiting in jobs]
    query = select(job.c.number).where(job.c.number.in_(numbers)).order_by(job.c.number)
    free = set(connection.execute(query.with_for_update(skip_locked=True)).scalars())
    return [waiting for waiting in jobs if waiting.number in free]


def dispatch(connection: Executes, jobs: Sequence[Waiting], host: str) -> list[tuple[Waiting, int]]:
    """Queued jobs are handed to a host: each that is still as it was read, and its new token.

    Only jobs whose rows are locked: it must never wait for another host's pick.
    """
    taken = []
    for waiting in jobs:
        token = secrets.randbits(62)
        needs = {"job_need": waiting.stored, "new_need": waiting.need}
        values = {"job_number": waiting.number, **needs, "new_token": token, "new_host": host}
        if connection.execute(_DISPATCH, values).rowcount == 1:
            taken.append((waiting, token))
    if taken:
        remark(connection, [waiting.number for waiting, _ in taken], actor="feeder", note=host)
    return taken


def remark(connection: Executes, numbers: Sequence[int], *, actor: str, note: str | None) -> None:
    """Write the present state of jobs into their audit trail."""
    if len(numbers) == 1:
        connection.execute(_REMARK_ONE, {"number": numbers[0], "actor": actor, "note": note})
    else:
        connection.execute(_REMARK, {"numbers": list(numbers), "actor": actor, "note": note})


# Built once: building a statement costs more than running it.
_DISPATCH = (
    update(job)
    .where(job.c.number == bindparam("job_number"), job.c.state == State.QUEUED, job.c.need == bindparam("job_need"))
    .where(job.c.next_run_at <= now(), ~work_paused())
    .values(state=State.DISPATCHED.value, token=bindparam("new_token"), host=bindparam("new_host"))
    .values(need=bindparam("new_need"), reserved=bindparam("new_need"), granted=bindparam("new_need"))
    .values(predicted=case((job.c.predicted == bindparam("job_need"), bindparam("new_need")), else_=job.c.predicted))
    .values(dispatched_at=now(), reason=None, claimant=None, passed=0, refused_since=None)
)
_SAID = select(
    *(job.c.number, now(), job.c.state, job.c.stage, job.c.attempt),
    bindparam("actor", type_=event.c.actor.type),
    bindparam("note", type_=event.c.reason.type),
)
_SAYING = ["job_number", "at", "state", "stage", "attempt", "actor", "reason"]
_REMARK = insert(event).from_select(_SAYING, _SAID.where(job.c.number.in_(bindparam("numbers", expanding=True))))
_REMARK_ONE = insert(event).from_select(_SAYING, _SAID.where(job.c.number == bindparam("number")))
