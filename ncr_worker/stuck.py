"""Which jobs do not get on, and why: their host is silent, or they are due and nobody starts them. Reads only."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, FromClause, Label, func, or_, select

from ncr_worker.job import OUT, State
from ncr_worker.ledger import Host
from ncr_worker.ledger.hosts import Hosts
from ncr_worker.ledger.pauses import Pause, Pauses
from ncr_worker.ledger.tables import host, job
from ncr_worker.settings import Settings
from ncr_worker.sql import Database, now

MOST = 100
"""Jobs that are named, the oldest first; of more the number is told."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """`seconds`: since the last heartbeat of its host (None: nobody knows that host), or since it was due."""

    job_id: str
    ref: str
    kind: str
    state: State
    reason: str | None
    batch_id: str | None
    host: str | None
    need: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Scene:
    """`lost`: on hosts without a live heartbeat. `overdue`: due for longer than was asked. Totals count all of them."""

    lost: tuple[Stuck, ...]
    overdue: tuple[Stuck, ...]
    total_lost: int
    total_overdue: int
    hosts: tuple[Host, ...]
    pauses: tuple[Pause, ...]


class Watch:
    """`lease`: seconds without a heartbeat after which a host is dead. Raises DatabaseAway."""

    def __init__(self, database: Database, *, lease: float) -> None:
        self.database = database
        self.lease = lease

    def close(self) -> None:
        self.database.close()

    def look(self, stuck_after: float) -> Scene:
        """`stuck_after`: seconds for which a waiting job may be due."""
        silent = or_(host.c.id.is_(None), host.c.seen_at < now() - self.lease)
        with_host = job.outerjoin(host, host.c.id == job.c.host)
        lost, total_lost = self._jobs(
            with_host, job.c.state.in_(sorted(OUT)) & silent, (now() - host.c.seen_at).label("seconds")
        )
        late = (job.c.state == State.QUEUED) & (job.c.next_run_at < now() - stuck_after)
        overdue, total_overdue = self._jobs(job, late, (now() - job.c.next_run_at).label("seconds"))
        hosts = Hosts(self.database, lease=self.lease).live()
        return Scene(lost, overdue, total_lost, total_overdue, tuple(hosts), tuple(Pauses(self.database).active()))

    def _jobs(
        self, source: FromClause, where: ColumnElement[bool], seconds: Label[float]
    ) -> tuple[tuple[Stuck, ...], int]:
        columns = (job.c.id, job.c.ref, job.c.kind, job.c.state, job.c.reason, job.c.batch_id, job.c.host, job.c.need)
        query = select(*columns, seconds).select_from(source).where(where).order_by(job.c.number).limit(MOST)
        rows = self.database.read(lambda connection: connection.execute(query).all())
        count = select(func.count()).select_from(source).where(where)
        total = self.database.read(lambda connection: connection.execute(count).scalar_one())
        found = (Stuck(r.id, r.ref, r.kind, State(r.state), *tuple(r)[4:]) for r in rows)
        return tuple(found), total


def watch(settings: Settings) -> Watch:
    """Of this process, on the ledger's database."""
    database = Database(settings.ledger_url, patience=settings.db_patience, pool_size=1)
    return Watch(database, lease=settings.host_lease)
