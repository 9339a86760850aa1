"""What people look up: lists of jobs and batches, the backlog. Reads only; the engine does without it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, case, false, func, or_, select

from ncr_worker.errors import NotFound
from ncr_worker.job import OUT, Job, State
from ncr_worker.ledger.tables import JOB_COLUMNS, batch, job, to_job
from ncr_worker.sql import Database, now


@dataclass(frozen=True, slots=True)
class Line:
    """A job in a list: without its args and its result, which may be large. Times are epoch seconds (UTC)."""

    number: int
    id: str
    kind: str
    ref: str
    tenant: str
    batch_id: str | None
    state: State
    reason: str | None
    stage: str | None
    attempt: int
    max_attempts: int
    host: str | None
    need: int
    reserved: int
    peak: int | None
    created_at: float
    next_run_at: float
    started_at: float | None
    finished_at: float | None
    error_code: str | None

    @property
    def terminal(self) -> bool:
        return self.finished_at is not None


_LINE = tuple(job.c[name] for name in Line.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Shape:
    """Jobs of one kind and state. `only`, `but`: column -> values that it must have, or must not have."""

    kind: str
    state: State
    only: Mapping[str, Collection[str]] = field(default_factory=dict)
    but: Mapping[str, Collection[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs; None: all. `shapes`: jobs of any of these. `since`, `until`: when submitted, epoch seconds."""

    kind: str | None = None
    shapes: Sequence[Shape] | None = None
    batch_id: str | None = None
    tenant: str | None = None
    ref: str | None = None
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """`size`: jobs of it that run at once at most, over all hosts."""

    id: str
    tenant: str
    total: int
    size: int
    created_at: float
    counts: Mapping[State, int]


@dataclass(frozen=True, slots=True)
class Backlog:
    """Queued jobs of one kind that wait for one reason; `scheduled`: those of them that are due later."""

    kind: str
    reason: str
    jobs: int
    scheduled: int
    need: int  # bytes, sum


class History:
    def __init__(self, database: Database) -> None:
        self.database = database

    def jobs(self, wanted: Wanted, *, before: int | None = None, limit: int = 100) -> list[Line]:
        """The newest first. `before`: the number of the last job of the page before."""
        where = _where(wanted)
        if before is not None:
            where.append(job.c.number < before)
        query = select(*_LINE).where(*where).order_by(job.c.number.desc()).limit(limit)
        return self._lines(query)

    def lines_of(self, batch_id: str) -> list[Line]:
        """The jobs of a batch, in the order in which they were submitted."""
        return self._lines(select(*_LINE).where(job.c.batch_id == batch_id).order_by(job.c.number))

    def active(self, *, limit: int = 1000) -> list[Job]:
        """Jobs that are on a host now, the oldest first."""
        query = select(*JOB_COLUMNS).where(job.c.state.in_(sorted(OUT))).order_by(job.c.number).limit(limit)
        return [to_job(row) for row in self.database.read(lambda c: c.execute(query).mappings().all())]

    def batch(self, batch_id: str) -> Batch:
        """Raises NotFound."""
        found = self._batches([batch.c.id == batch_id], limit=1)
        if not found:
            raise NotFound(f"there is no batch {batch_id}")
        return found[0]

    def batches(self, *, tenant: str | None = None, before: str | None = None, limit: int = 100) -> list[Batch]:
        """The newest first. `before`: the id of the last batch of the page before. Raises NotFound for that one."""
        where: list[ColumnElement[bool]] = []
        if tenant is not None:
            where.append(batch.c.tenant == tenant)
        if before is not None:
            last = self.batch(before)
            older = and_(batch.c.created_at == last.created_at, batch.c.id < last.id)
            where.append(or_(batch.c.created_at < last.created_at, older))
        return self._batches(where, limit=limit)

    def backlog(self) -> list[Backlog]:
        later = func.coalesce(func.sum(case((job.c.next_run_at > now(), 1), else_=0)), 0)
        query = (
            select(job.c.kind, job.c.reason, func.count(), later, func.sum(job.c.need))
            .where(job.c.state == State.QUEUED)
            .group_by(job.c.kind, job.c.reason)
        )
        rows: Sequence[tuple[str, str | None, int, int, int]] = self.database.read(
            lambda connection: [tuple(row) for row in connection.execute(query)]
        )
        return [Backlog(kind, reason or "new", n, int(later), int(need)) for kind, reason, n, later, need in rows]

    def queued(self) -> int:
        """How many jobs wait."""
        query = select(func.count()).select_from(job).where(job.c.state == State.QUEUED)
        return self.database.read(lambda connection: connection.execute(query).scalar_one())

    def held_up_by(self, limit: int) -> str | None:
        """A job that waits for memory and was passed so often that nothing starts before it; its id."""
        query = select(job.c.id).where(job.c.state == State.QUEUED, job.c.passed >= limit, job.c.next_run_at <= now())
        return self.database.read(lambda connection: connection.execute(query.limit(1)).scalar_one_or_none())

    def counts(self) -> dict[tuple[str, State], int]:
        """(kind, state) -> jobs that the ledger holds."""
        query = select(job.c.kind, job.c.state, func.count()).group_by(job.c.kind, job.c.state)
        rows = self.database.read(lambda connection: connection.execute(query).all())
        return {(kind, State(state)): number for kind, state, number in rows}

    def _batches(self, where: Sequence[ColumnElement[bool]], *, limit: int) -> list[Batch]:
        page = select(batch).where(*where).order_by(batch.c.created_at.desc(), batch.c.id.desc()).limit(limit)

        def work(connection: Connection) -> list[Batch]:
            rows = connection.execute(page).all()
            counts: dict[str, dict[State, int]] = {row.id: {} for row in rows}
            tally = select(job.c.batch_id, job.c.state, func.count()).where(job.c.batch_id.in_(sorted(counts)))
            for batch_id, state, number in connection.execute(tally.group_by(job.c.batch_id, job.c.state)):
                counts[batch_id][State(state)] = number
            return [Batch(r.id, r.tenant, r.total, r.size, r.created_at, counts[r.id]) for r in rows]

        return self.database.read(work)

    def _lines(self, query: Select[Any]) -> list[Line]:
        rows = self.database.read(lambda connection: connection.execute(query).mappings().all())
        return [Line(**{**row, "state": State(row["state"])}) for row in rows]


def _where(wanted: Wanted) -> list[ColumnElement[bool]]:
    equal = {"kind": wanted.kind, "batch_id": wanted.batch_id, "tenant": wanted.tenant, "ref": wanted.ref}
    where: list[ColumnElement[bool]] = [job.c[name] == value for name, value in equal.items() if value is not None]
    if wanted.since is not None:
        where.append(job.c.created_at >= wanted.since)
    if wanted.until is not None:
        where.append(job.c.created_at < wanted.until)
    if wanted.shapes is not None:
        where.append(or_(false(), *(_shaped(shape) for shape in wanted.shapes)))
    return where


def _shaped(shape: Shape) -> ColumnElement[bool]:
    only = [job.c[name].in_(sorted(values)) for name, values in shape.only.items()]
    but = [or_(job.c[name].is_(None), job.c[name].not_in(sorted(values))) for name, values in shape.but.items()]
    return and_(job.c.kind == shape.kind, job.c.state == shape.state, *only, *but)
