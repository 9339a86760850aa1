"""The candidates of a pick: read from the backlog in fair order, a window at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sqlalchemy import Connection, Executable, Result, Select, func, insert, literal, or_, select, tuple_, update

from ncr_worker.job import OUT, State
from ncr_worker.ledger.tables import batch, job, share
from ncr_worker.picking import CREDIT, Round, Turns, Waiting, level
from ncr_worker.sql import now

WINDOW = 100  # candidates read at once, and kept for the picks that follow
_OUT = sorted(OUT)
_WAITING = (  # in the order of the fields of Waiting, as far as they are stored
    *(job.c.number, job.c.id, job.c.kind, job.c.need, job.c.tenant, job.c.priority, job.c.batch_id, job.c.passed),
    *(job.c.refused_since.is_not(None), job.c.need),
)
_FACTS = (job.c.version, job.c.input_bytes, job.c.declared, job.c.predicted)  # what a need is foreseen by

Foresee = Callable[[str, int, int | None, int | None], int | None]
"""Kind, version, input bytes and declared bytes of a job -> the bytes it will need; None when nothing is known."""
Facts = tuple[int, int | None, int | None]
"""Version, input bytes and declared bytes."""
Place = tuple[int, int]
"""In its tenant's line: priority and number."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """Candidates that were read and not taken yet. `facts`: of those whose need is foreseen, by number. `tenants`: who
    has queued jobs, in fair order; `used`: their byte-seconds then. `behind`: whose lines go on behind what was read,
    and after which place; None: nothing of that line was read."""

    jobs: tuple[Waiting, ...]
    facts: Mapping[int, Facts]
    tenants: tuple[str, ...]
    used: Mapping[str, float]
    behind: Mapping[str, Place | None]

    def foreseen(self, foresee: Foresee) -> Ahead:
        """By what is known now: each job that ends tells more of its kind."""
        foresee = cache(foresee)
        jobs = (
            _foreseen(each, self.facts[each.number], foresee) if each.number in self.facts else each
            for each in self.jobs
        )
        return replace(self, jobs=tuple(jobs))


class Search:
    """One pick's reading, in its transaction. What it finds goes to `round`. Without a connection no batch is full."""

    def __init__(
        self,
        connection: Connection | None,
        round_: Round,
        kinds: tuple[str, ...] | None,
        foresee: Foresee | None = None,
        probed: Collection[str] = (),
    ) -> None:
        self._connection = connection
        self.round = round_
        self.kinds = kinds
        self.foresee = foresee and cache(foresee)  # many jobs of a line are alike
        self.probed = probed  # see picking.Turns
        self.rooms: dict[str, int] = {}  # batch -> jobs it may still have out
        self._full: set[str] = set()
        self._facts: dict[int, Facts] = {}
        self._credit = CREDIT * round_.room.limit

    def look(self, spent: Mapping[str, float]) -> Ahead:
        """The head of each tenant's line. `spent`: byte-seconds to add to what tenants have used."""
        self._full |= {str(batch_id) for batch_id in self._execute(_FULL_BATCHES).scalars()}
        tenants = self._tenants()
        used = self._share(tenants, spent)
        tenants.sort(key=lambda tenant: (tenant != "", used[tenant]))  # nobody's are the service's own: maybe urgent
        jobs: list[Waiting] = []
        behind: dict[str, Place | None] = dict.fromkeys(tenants)
        each = max(WINDOW // max(len(tenants), 1), self.round.room.slots)
        for tenant in tenants:
            found = self._line(tenant, each)
            jobs += found
            if len(found) < each:
                del behind[tenant]
            else:
                behind[tenant] = _place(found[-1])
            if len(jobs) >= WINDOW:
                break
        return Ahead(tuple(jobs), self._facts, tuple(tenants), used, behind)

    def go_through(self, jobs: Iterable[Waiting], used: Mapping[str, float]) -> None:
        """Offer the jobs to the round, in turn."""
        turns = Turns(jobs, used, self._credit, self.probed)
        for waiting in turns:
            if self.round.done:
                return
            batch_id = waiting.batch_id if self._connection is not None else None
            if batch_id and self._room(batch_id) <= 0:
                continue
            if self.round.consider(waiting):
                turns.charge(waiting)
                if batch_id:
                    self.rooms[batch_id] -= 1

    def go_deeper(self, ahead: Ahead, used: Mapping[str, float], reached: dict[str, Place]) -> None:
        """Behind the window only what fits is of interest: who waits for memory is told by the window alone.

        Of each line no more than one window. `reached`: where the next look goes on, when nothing in that one did fit
        after all: what a job needs is known better than what is stored of it.
        """
        for tenant, end in ahead.behind.items():
            if self.round.done or self.round.barrier:  # little of it could start
                return
            taken = len(self.round.taken)
            most = self.round.most
            found = self._line(tenant, WINDOW, reached.pop(tenant, end), most)
            self.go_through((waiting for waiting in found if waiting.need <= most), used)
            if len(found) == WINDOW and len(self.round.taken) == taken:
                reached[tenant] = _place(found[-1])

    def _execute(self, statement: Executable) -> Result[Any]:
        if self._connection is None:
            raise RuntimeError("a search without a connection reads nothing")
        return self._connection.execute(statement)

    def _line(self, tenant: str, count: int, after: Place | None = None, most: int | None = None) -> list[Waiting]:
        query = (
            select(*_WAITING, *_FACTS)
            .where(job.c.state == State.QUEUED, job.c.tenant == tenant, job.c.next_run_at <= now())
            .order_by(job.c.priority, job.c.number)
            .limit(count)
            .with_for_update(skip_locked=True)
        )
        for dialect in ("mysql", "mariadb"):  # which otherwise sorts the queue, and so locks all of it
            query = query.with_hint(job, "FORCE INDEX (ix_job_state_tenant_priority_number_need)", dialect)
        if self.kinds is not None:
            query = query.where(job.c.kind.in_(self.kinds))
        if self._full:
            query = query.where(or_(job.c.batch_id.is_(None), job.c.batch_id.not_in(sorted(self._full))))
        if after is not None:
            query = query.where(tuple_(job.c.priority, job.c.number) > tuple_(*map(literal, after)))
        if most is not None:
            query = query.where(job.c.need <= most)
        return [self._waiting(tuple(row)) for row in self._execute(query)]

    def _waiting(self, row: tuple[Any, ...]) -> Waiting:
        """With what it will need as far as is known now: it may have been submitted when nothing was."""
        waiting = Waiting(*row[: len(_WAITING)])
        version, input_bytes, declared, predicted = row[len(_WAITING) :]
        if self.foresee is None or waiting.need != predicted:  # what it asked for itself is known better
            return waiting
        self._facts[waiting.number] = facts = (version, input_bytes, declared)
        return _foreseen(waiting, facts, self.foresee)

    def _room(self, batch_id: str) -> int:
        """Jobs that the batch may still have out. Its row is locked; none while another host picks from it."""
        if batch_id not in self.rooms:
            query = select(batch.c.size).where(batch.c.id == batch_id).with_for_update(skip_locked=True)
            size = self._execute(query).scalar_one_or_none() or 0
            out = self._execute(
                select(func.count()).select_from(job).where(job.c.batch_id == batch_id, job.c.state.in_(_OUT))
            ).scalar_one()
            self.rooms[batch_id] = size - out
        if self.rooms[batch_id] <= 0:
            self._full.add(batch_id)
        return self.rooms[batch_id]

    def _tenants(self) -> list[str]:
        return [str(name) for name in self._execute(_TENANTS).scalars() if name is not None]

    def _share(self, tenants: Sequence[str], spent: Mapping[str, float]) -> dict[str, float]:
        """What these have used, levelled; `spent` is added and stored."""
        names = sorted({*tenants, *spent})
        query = select(share.c.tenant, share.c.used).where(share.c.tenant.in_(names)).order_by(share.c.tenant)
        known = {row.tenant: row.used for row in self._execute(query.with_for_update())} if names else {}
        used = level(known, names, self._credit)
        for tenant in sorted(spent):
            used[tenant] += spent[tenant]
            if tenant in known:
                self._execute(update(share).where(share.c.tenant == tenant).values(used=used[tenant]))
            else:
                self._execute(insert(share).values(tenant=tenant, used=used[tenant]))
        return used


def _place(waiting: Waiting) -> Place:
    return waiting.priority, waiting.number


def _foreseen(waiting: Waiting, facts: Facts, foresee: Foresee) -> Waiting:
    need = foresee(waiting.kind, *facts)
    if need == waiting.need and not waiting.unknown:
        return waiting
    return waiting._replace(need=waiting.need if need is None else need, unknown=need is None)


def _tenants() -> Select[tuple[str | None]]:
    """Whoever has queued jobs: one step in the index for each, however long their lines are."""
    first = select(func.min(job.c.tenant).label("tenant")).where(job.c.state == State.QUEUED)
    line = first.cte("line", recursive=True)
    following = (
        select(func.min(job.c.tenant))
        .where(job.c.state == State.QUEUED, job.c.tenant > line.c.tenant)
        .scalar_subquery()
    )
    line = line.union_all(select(following).where(line.c.tenant.is_not(None)))
    return select(line.c.tenant)


# Built once: building a statement costs more than running it.
_TENANTS = _tenants()
_FULL_BATCHES = (
    select(job.c.batch_id)
    .join(batch, batch.c.id == job.c.batch_id)
    .where(job.c.state.in_(_OUT))
    .group_by(job.c.batch_id, batch.c.size)
    .having(func.count() >= batch.c.size)
)
