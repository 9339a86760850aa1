"""Which queued jobs a host may start now. One transaction: pick in order what fits, reserve, issue tokens."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, RowMapping, Select, and_, func, or_, select, update

from ncr_worker.job import OUT, Reason, State
from ncr_worker.ledger.pauses import work_is_paused
from ncr_worker.ledger.tables import batch, host, job
from ncr_worker.ledger.transition import move, wind_up
from ncr_worker.sql import Database, now

WINDOW = 100  # candidates looked at in one query
_OUT = sorted(OUT)
_CANDIDATE = ("number", "id", "kind", "need", "batch_id", "priority", "passed", "refused_since")


@dataclass(frozen=True, slots=True)
class Offer:
    """What a host can take: free slots, free bytes of its budget, and whether nothing runs there now."""

    host: str
    slots: int
    free: int
    idle: bool
    limit: int  # bytes of the whole host: a job that runs alone may use them
    kinds: tuple[str, ...] | None = None  # what this worker can run; None: everything


@dataclass(frozen=True, slots=True)
class Picked:
    number: int
    job_id: str
    kind: str
    token: int
    reserved: int


@dataclass(slots=True)
class _Round:
    """The state of one pick while it goes through the candidates."""

    offer: Offer
    overtake_limit: int
    free: int
    picked: list[Picked] = field(default_factory=list)
    room: dict[str, int] = field(default_factory=dict)  # batch -> jobs it may still have out
    full: set[str] = field(default_factory=set)
    refused: dict[int, RowMapping] = field(default_factory=dict)  # jobs that wait for memory
    passed: Counter[int] = field(default_factory=Counter)  # of these: jobs that passed them in this round
    too_big: dict[int, RowMapping] = field(default_factory=dict)  # jobs for a larger host: none here is in their way
    last: RowMapping | None = None  # the candidate looked at last
    barrier: bool = False  # a job that waits for memory has been passed often enough

    @property
    def done(self) -> bool:
        return self.barrier or len(self.picked) >= self.offer.slots

    @property
    def most(self) -> int:
        """Bytes that the next job may need: on an idle host the first one may have all there is."""
        return max(self.free, self.offer.limit) if self.offer.idle and not self.picked else self.free


class Queue:
    """`overtake_limit`: how many smaller jobs may pass one that waits for memory.

    `batch_timeout`: seconds a batch's job may be refused for memory alone before it fails.
    """

    def __init__(self, database: Database, *, overtake_limit: int, batch_timeout: float) -> None:
        self.database = database
        self.overtake_limit = overtake_limit
        self.batch_timeout = batch_timeout

    def pick(self, offer: Offer) -> list[Picked]:
        """Take the next jobs that fit; they are `dispatched` to the host when this returns."""
        return self.database.transact(lambda connection: self._pick(connection, offer))

    def _pick(self, connection: Connection, offer: Offer) -> list[Picked]:
        round_ = _Round(offer, self.overtake_limit, offer.free)
        if work_is_paused(connection):
            return round_.picked
        round_.full |= {str(batch_id) for batch_id in connection.execute(_full_batches()).scalars()}
        while not round_.done:
            rows = self._candidates(connection, round_)
            for row in rows:
                if round_.done:
                    break
                self._consider(connection, round_, row)
            if len(rows) < WINDOW:
                break
        self._note_refused(connection, round_)
        return round_.picked

    def _candidates(self, connection: Connection, round_: _Round) -> Sequence[RowMapping]:
        query = (
            select(*(job.c[name] for name in _CANDIDATE))
            .where(job.c.state == State.QUEUED, job.c.next_run_at <= now())
            .order_by(job.c.priority, job.c.number)
            .limit(WINDOW)
            .with_for_update(skip_locked=True)
        )
        for dialect in ("mysql", "mariadb"):  # which otherwise sorts the queue, and so locks all of it
            query = query.with_hint(job, "FORCE INDEX (ix_job_state_priority_number)", dialect)
        if round_.offer.kinds is not None:
            query = query.where(job.c.kind.in_(round_.offer.kinds))
        if round_.full:
            query = query.where(or_(job.c.batch_id.is_(None), job.c.batch_id.not_in(sorted(round_.full))))
        if (last := round_.last) is not None:
            later = and_(job.c.priority == last["priority"], job.c.number > last["number"])
            # One window tells who waits for memory; behind it only what fits is of interest.
            query = query.where(or_(job.c.priority > last["priority"], later), job.c.need <= round_.most)
        return connection.execute(query).mappings().all()

    def _consider(self, connection: Connection, round_: _Round, row: RowMapping) -> None:
        round_.last = row
        batch_id = row["batch_id"]
        if batch_id and self._room(connection, round_, batch_id) <= 0:
            round_.full.add(batch_id)
            return
        if row["need"] > round_.offer.limit:
            round_.too_big[row["number"]] = row
            return
        if row["need"] > round_.most:
            round_.refused[row["number"]] = row
            round_.barrier = row["passed"] >= round_.overtake_limit
            return
        self._take(connection, round_, row)
        if batch_id:
            round_.room[batch_id] -= 1

    def _room(self, connection: Connection, round_: _Round, batch_id: str) -> int:
        """Jobs that the batch may still have out. Its row is locked; none while another host picks from it."""
        if batch_id not in round_.room:
            query = select(batch.c.size).where(batch.c.id == batch_id).with_for_update(skip_locked=True)
            size = connection.execute(query).scalar_one_or_none() or 0
            out = connection.execute(
                select(func.count()).select_from(job).where(job.c.batch_id == batch_id, job.c.state.in_(_OUT))
            ).scalar_one()
            round_.room[batch_id] = size - out
        return round_.room[batch_id]

    def _take(self, connection: Connection, round_: _Round, row: RowMapping) -> None:
        token = secrets.randbits(62)
        values = {"host": round_.offer.host, "reserved": row["need"], "dispatched_at": now(), "claimant": None}
        values |= {"passed": 0, "refused_since": None}
        # The token is a new value of the row, not a fence here: the row is locked and queued.
        connection.execute(update(job).where(job.c.number == row["number"]).values(token=token))
        if not move(connection, row["number"], State.DISPATCHED, actor="feeder", note=round_.offer.host, **values):
            return
        round_.picked.append(Picked(row["number"], row["id"], row["kind"], token, row["need"]))
        round_.free -= row["need"]
        for number, waiting in round_.refused.items():
            round_.passed[number] += 1
            round_.barrier |= waiting["passed"] + round_.passed[number] >= round_.overtake_limit

    def _note_refused(self, connection: Connection, round_: _Round) -> None:
        for number, count in round_.passed.items():
            connection.execute(update(job).where(job.c.number == number).values(passed=job.c.passed + count))
        waiting = round_.refused | round_.too_big
        # What waits for its batch does not wait for memory alone: its time begins anew.
        spared = {number for number, row in waiting.items() if round_.room.get(row["batch_id"]) == 0}
        fresh = {number for number, row in waiting.items() if row["refused_since"] is None} - spared
        if spared:
            connection.execute(update(job).where(job.c.number.in_(sorted(spared))).values(refused_since=None))
        if fresh:
            values = {"reason": Reason.NO_MEMORY.value, "refused_since": now()}
            connection.execute(update(job).where(job.c.number.in_(sorted(fresh))).values(**values))
        if numbers := sorted(waiting.keys() - spared):
            self._fail_hopeless(connection, numbers)

    def _fail_hopeless(self, connection: Connection, numbers: list[int]) -> None:
        """Jobs that no host can ever hold, and batch jobs refused for longer than their batch waits."""
        largest = connection.execute(select(func.max(host.c.limit_bytes))).scalar_one() or 0
        waited = now() - job.c.refused_since
        rows = connection.execute(
            select(job.c.number, job.c.need, job.c.batch_id, waited.label("waited")).where(job.c.number.in_(numbers))
        )
        for row in rows.all():
            if row.need > largest:
                text = f"needs {row.need:,} bytes, the largest worker host has {largest:,}; add memory or split the job"
                wind_up(connection, row.number, State.QUEUED, actor="feeder", code="never_fits", text=text)
            elif row.batch_id and row.waited > self.batch_timeout:
                text = f"no host had {row.need:,} bytes free for {row.waited:.0f} s (BATCH_TIMEOUT)"
                wind_up(connection, row.number, State.QUEUED, actor="feeder", code="memory_timeout", text=text)


def _full_batches() -> Select[tuple[str | None]]:
    return (
        select(job.c.batch_id)
        .join(batch, batch.c.id == job.c.batch_id)
        .where(job.c.state.in_(_OUT))
        .group_by(job.c.batch_id, batch.c.size)
        .having(func.count() >= batch.c.size)
    )
