"""Which queued jobs a host may start now. One transaction: pick in turn what fits, reserve, issue tokens."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, select, update

from ncr_worker.job import Reason, State
from ncr_worker.ledger.hosts import LARGEST
from ncr_worker.ledger.pauses import work_paused
from ncr_worker.ledger.search import WINDOW, Ahead, Foresee, Place, Search
from ncr_worker.ledger.tables import job
from ncr_worker.ledger.transition import dispatch, unlocked, wind_up
from ncr_worker.picking import Room, Round, Waiting
from ncr_worker.sql import Database, now
from ncr_worker.sqlite import Executes

__all__ = ["WINDOW", "Offer", "Picked", "Queue"]

SERVES = 0.2  # seconds for which what was read ahead serves, when there is news; and what it was foreseen to need


@dataclass(frozen=True, slots=True)
class Offer:
    """What a host can take, and what its jobs hold: see picking.Room. `running`: byte-seconds of what runs there, so
    far, by tenant."""

    host: str
    slots: int
    free: int
    idle: bool
    limit: int
    kinds: tuple[str, ...] | None = None  # what this worker can run; None: everything
    running: Mapping[str, float] = field(default_factory=dict)
    held: Sequence[int] = ()

    @property
    def room(self) -> Room:
        return Room(self.slots, self.free, self.limit, self.idle, self.held)


@dataclass(frozen=True, slots=True)
class Picked:
    number: int
    job_id: str
    kind: str
    token: int
    reserved: int
    tenant: str = ""


class Queue:
    """`overtake_limit`: how many jobs may pass one that waits for memory, and may delay it.

    `batch_timeout`: seconds a batch's job may be refused for memory alone before it fails. `pick` and `charge` are
    for one thread of the process that picks.
    """

    def __init__(self, database: Database, *, overtake_limit: int, batch_timeout: float) -> None:
        self.database = database
        self.overtake_limit = overtake_limit
        self.batch_timeout = batch_timeout
        self.foresee: Foresee | None = None
        self._ahead: Ahead | None = None
        self._foreseen_at = 0.0  # monotonic seconds
        self._probed: set[str] = set()  # kinds: see picking.Turns
        self._reached: dict[str, Place] = {}  # see Search.go_deeper
        self._spent: dict[str, float] = {}  # by tenants since the last look
        self._passed: Counter[int] = Counter()  # since the last look

    def charge(self, tenant: str, byte_seconds: float) -> None:
        """A run of one of the tenant's jobs has ended here."""
        self._spent[tenant] = self._spent.get(tenant, 0.0) + byte_seconds

    @property
    def dry(self) -> bool:
        """Nothing that was read ahead is left."""
        return self._ahead is None or not self._ahead.jobs

    def pick(self, offer: Offer, *, fresh: bool = True) -> list[Picked]:
        """Take the next jobs that fit; they are `dispatched` to the host when this returns.

        Not `fresh`: only from what an earlier pick has read ahead.
        """
        ahead, self._ahead = self._ahead, None  # should this go wrong, the next pick looks again
        if fresh or ahead is None:
            picked, self._ahead = self.database.transact(lambda connection: self._pick(connection, offer))
            return picked
        ahead, most = self._foreseen(ahead), offer.room.most
        plan = self._plan(None, offer, ahead) if any(waiting.need <= most for waiting in ahead.jobs) else None
        if plan is None or not plan.round.taken:
            self._ahead = ahead
            return []
        search, picked = self._carry_out(plan, offer, ahead)
        # Who was passed is written down at the next look: each write would cost as much as the pick.
        self._passed.update(search.round.passed)
        for one in search.round.taken:
            del self._passed[one.number]
        self._ahead = self._left(ahead, search)
        return picked

    def _carry_out(self, plan: Search, offer: Offer, ahead: Ahead) -> tuple[Search, list[Picked]]:
        """What was taken in the end, out of what was read ahead: how many of a batch are out is known by the ledger."""
        taken = plan.round.taken
        batches = any(waiting.batch_id for waiting in taken)
        if len(taken) == 1 and not batches and self.database.dialect == "sqlite":  # as mostly
            return plan, self.database.transact_unflushed(lambda connection: self._take(connection, taken, offer))

        def work(connection: Connection) -> tuple[Search, list[Picked]]:
            search = self._plan(connection, offer, ahead) if batches else plan
            return search, self._take(connection, unlocked(connection, search.round.taken), offer)

        return self.database.transact(work)

    def _foreseen(self, ahead: Ahead) -> Ahead:
        if self.foresee is None or time.monotonic() - self._foreseen_at < SERVES:
            return ahead
        self._foreseen_at = time.monotonic()
        return ahead.foreseen(self.foresee)

    def _pick(self, connection: Connection, offer: Offer) -> tuple[list[Picked], Ahead | None]:
        if connection.execute(_PAUSED).scalar_one():
            return [], None
        self._tell_passed(connection, self._passed)
        search = self._search(connection, offer)
        ahead = search.look(self._spent)
        self._passed, self._spent = Counter(), {}  # a commit that fails loses at most a second of it
        used = self._used(offer, ahead)
        search.go_through(ahead.jobs, used)
        search.go_deeper(ahead, used, self._reached)
        picked = self._take(connection, search.round.taken, offer)
        self._tell_passed(connection, search.round.passed)
        self._note_refused(connection, search)
        return picked, self._left(ahead, search)

    def _plan(self, connection: Connection | None, offer: Offer, ahead: Ahead) -> Search:
        """Without a connection: as if no batch were full."""
        search = self._search(connection, offer)
        search.go_through(ahead.jobs, self._used(offer, ahead))
        return search

    def _search(self, connection: Connection | None, offer: Offer) -> Search:
        return Search(connection, Round(offer.room, self.overtake_limit), offer.kinds, self.foresee, self._probed)

    def _used(self, offer: Offer, ahead: Ahead) -> dict[str, float]:
        """Byte-seconds of each tenant now, what runs included."""
        added = (ahead.used, self._spent, offer.running)
        return {name: sum(each.get(name, 0.0) for each in added) for name in ahead.tenants}

    def _take(self, connection: Executes, jobs: Sequence[Waiting], offer: Offer) -> list[Picked]:
        dispatched = dispatch(connection, jobs, offer.host)
        self._probed |= {waiting.kind for waiting, _ in dispatched if waiting.unknown}
        return [
            Picked(waiting.number, waiting.job_id, waiting.kind, token, waiting.need, waiting.tenant)
            for waiting, token in dispatched
        ]

    def _left(self, ahead: Ahead, search: Search) -> Ahead:
        """What was not taken, with those counted that have passed it."""
        gone, passed = {waiting.number for waiting in search.round.taken}, search.round.passed
        jobs = [waiting for waiting in ahead.jobs if waiting.number not in gone]
        if passed:
            jobs = [
                one._replace(passed=one.passed + passed[one.number]) if one.number in passed else one for one in jobs
            ]
        return replace(ahead, jobs=tuple(jobs))

    def _tell_passed(self, connection: Connection, passed: Mapping[int, int]) -> None:
        for count in set(passed.values()):
            numbers = sorted(number for number, times in passed.items() if times == count)
            where = (job.c.number.in_(numbers), job.c.state == State.QUEUED)
            connection.execute(update(job).where(*where).values(passed=job.c.passed + count))

    def _note_refused(self, connection: Connection, search: Search) -> None:
        """Write down who waits for memory."""
        waiting = search.round.refused | search.round.too_big
        # What waits for its batch does not wait for memory alone: its time begins anew.
        spared = {number for number, one in waiting.items() if search.rooms.get(one.batch_id or "") == 0}
        again = sorted(number for number in spared if waiting[number].refused)
        fresh = sorted(number for number in waiting.keys() - spared if not waiting[number].refused)
        if again:
            connection.execute(update(job).where(job.c.number.in_(again)).values(refused_since=None))
        if fresh:
            values = {"reason": Reason.NO_MEMORY.value, "refused_since": now()}
            connection.execute(update(job).where(job.c.number.in_(fresh)).values(**values))
        self._fail_hopeless(connection, [one for number, one in sorted(waiting.items()) if number not in spared])

    def _fail_hopeless(self, connection: Connection, waiting: Sequence[Waiting]) -> None:
        """Jobs that no host can ever hold, and batch jobs refused for longer than their batch waits."""
        if not waiting:
            return
        largest = connection.execute(LARGEST).scalar_one() or 0
        needs = {one.number: one.need for one in waiting if one.need > largest or one.batch_id}
        if not needs:
            return
        waited = now() - job.c.refused_since
        columns = (job.c.number, job.c.batch_id, job.c.error_code, job.c.error, waited.label("waited"))
        rows = connection.execute(select(*columns).where(job.c.number.in_(sorted(needs))))
        for row in rows.all():
            need = needs[row.number]
            if need > largest:
                code, text = "never_fits", f"needs {need:,} bytes"
                if row.error_code == Reason.OUT_OF_MEMORY:  # then the need is but our guess
                    code, text = row.error_code, f"{row.error}"
                text += f"; the largest worker host has {largest:,} bytes; add memory or split the job"
                wind_up(connection, row.number, State.QUEUED, actor="feeder", code=code, text=text)
            elif row.batch_id and row.waited > self.batch_timeout:
                text = f"no host had {need:,} bytes free for {row.waited:.0f} s (BATCH_TIMEOUT)"
                wind_up(connection, row.number, State.QUEUED, actor="feeder", code="memory_timeout", text=text)


# Built once: building a statement costs more than running it.
_PAUSED = select(work_paused())
