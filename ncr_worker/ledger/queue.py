"""Which queued jobs a host may start now. One transaction: pick in turn what fits, reserve, issue tokens."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, func, select, update

from ncr_worker.job import Reason, State
from ncr_worker.ledger.pauses import work_paused
from ncr_worker.ledger.search import WINDOW, Ahead, Search
from ncr_worker.ledger.tables import host, job
from ncr_worker.ledger.transition import dispatch, wind_up
from ncr_worker.picking import Room, Round, Waiting
from ncr_worker.sql import Database, now

__all__ = ["WINDOW", "Offer", "Picked", "Queue"]

SERVES = 0.2  # seconds after which what was read ahead no longer tells that nothing else would fit


@dataclass(frozen=True, slots=True)
class Offer:
    """What a host can take: see picking.Room. `running`: byte-seconds of what runs there, so far, by tenant."""

    host: str
    slots: int
    free: int
    idle: bool
    limit: int
    kinds: tuple[str, ...] | None = None  # what this worker can run; None: everything
    running: Mapping[str, float] = field(default_factory=dict)

    @property
    def room(self) -> Room:
        return Room(self.slots, self.free, self.limit, self.idle)


@dataclass(frozen=True, slots=True)
class Picked:
    number: int
    job_id: str
    kind: str
    token: int
    reserved: int
    tenant: str = ""


class Queue:
    """`overtake_limit`: how many smaller jobs may pass one that waits for memory.

    `batch_timeout`: seconds a batch's job may be refused for memory alone before it fails. `pick` and `charge` are
    for one thread of the process that picks.
    """

    def __init__(self, database: Database, *, overtake_limit: int, batch_timeout: float) -> None:
        self.database = database
        self.overtake_limit = overtake_limit
        self.batch_timeout = batch_timeout
        self._ahead: Ahead | None = None
        self._spent: dict[str, float] = {}

    def charge(self, tenant: str, byte_seconds: float) -> None:
        """A run of one of the tenant's jobs has ended here."""
        self._spent[tenant] = self._spent.get(tenant, 0.0) + byte_seconds

    @property
    def dry(self) -> bool:
        """Nothing that was read ahead is left."""
        return self._ahead is None or not self._ahead.jobs

    def pick(self, offer: Offer, *, fresh: bool = True) -> list[Picked]:
        """Take the next jobs that fit; they are `dispatched` to the host when this returns.

        Not `fresh`: from what an earlier pick has read ahead, as long as that fills the host.
        """
        ahead, self._ahead = self._ahead, None  # should this go wrong, the next pick looks again
        if fresh:
            ahead = None
        elif ahead is not None and not self._is_old(ahead):
            most = Round(offer.room, self.overtake_limit).most
            if not any(waiting.need <= most for waiting in ahead.jobs):
                self._ahead = ahead
                return []
        picked, self._ahead = self.database.transact(lambda connection: self._pick(connection, offer, ahead))
        return picked

    def _pick(
        self, connection: Connection, offer: Offer, ahead: Ahead | None = None
    ) -> tuple[list[Picked], Ahead | None]:
        looked = ahead is None
        if looked and connection.execute(select(work_paused())).scalar_one():
            return [], None
        round_ = Round(offer.room, self.overtake_limit)
        search = Search(connection, round_, offer.kinds)
        if ahead is None:
            ahead = search.look(self._spent)
            self._spent = {}  # a commit that fails loses at most a second of it
        used = {name: ahead.used.get(name, 0.0) + self._spent.get(name, 0.0) for name in ahead.tenants}
        used = {name: amount + offer.running.get(name, 0.0) for name, amount in used.items()}
        search.go_through(ahead.jobs, used)
        if looked:
            search.go_deeper(ahead)
        elif not round_.done and self._is_old(ahead):
            return self._pick(connection, offer)  # there may be more behind it
        picked = [
            Picked(waiting.number, waiting.job_id, waiting.kind, token, waiting.need, waiting.tenant)
            for waiting, token in dispatch(connection, round_.taken, offer.host, locked=looked)
        ]
        changed = self._note_refused(connection, search, looked=looked)
        gone = {waiting.number for waiting in round_.taken}
        left = tuple(changed.get(each.number, each) for each in ahead.jobs if each.number not in gone)
        return picked, replace(ahead, jobs=left)

    def _is_old(self, ahead: Ahead) -> bool:
        return not ahead.whole and time.monotonic() - ahead.read_at > SERVES

    def _note_refused(self, connection: Connection, search: Search, *, looked: bool) -> dict[int, Waiting]:
        """Write down who was passed, and who waits for memory; these, as they are then."""
        round_ = search.round
        for number, count in round_.passed.items():
            connection.execute(update(job).where(job.c.number == number).values(passed=job.c.passed + count))
        waiting = round_.refused | round_.too_big
        # What waits for its batch does not wait for memory alone: its time begins anew.
        spared = {number for number, one in waiting.items() if search.rooms.get(one.batch_id or "") == 0}
        again = sorted(number for number in spared if waiting[number].refused)
        fresh = sorted(number for number in waiting.keys() - spared if not waiting[number].refused)
        if again:
            connection.execute(update(job).where(job.c.number.in_(again)).values(refused_since=None))
        if fresh:
            values = {"reason": Reason.NO_MEMORY.value, "refused_since": now()}
            connection.execute(update(job).where(job.c.number.in_(fresh)).values(**values))
        if looked and (numbers := sorted(waiting.keys() - spared)):
            self._fail_hopeless(connection, numbers)
        return {
            number: replace(one, passed=one.passed + round_.passed[number], refused=number not in spared)
            for number, one in waiting.items()
        }

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
