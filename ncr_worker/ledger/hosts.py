"""Worker hosts: a host's heartbeat is the lease of all its jobs."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, func, insert, select, update

from ncr_worker.errors import ConfigError
from ncr_worker.job import OUT, Reason
from ncr_worker.ledger.tables import host, job
from ncr_worker.ledger.transition import lose
from ncr_worker.sql import Database, now

LARGEST = select(func.max(host.c.limit_bytes))
"""Bytes that the largest worker host has; NULL without any."""
_OUT = sorted(OUT)
# A host that was reaped may pick once more before it hears of it; should it die then, nobody knows it.
_UNKNOWN = select(job.c.host).where(job.c.state.in_(_OUT), job.c.host.not_in(select(host.c.id))).distinct()


@dataclass(frozen=True, slots=True)
class HostFigures:
    """What a host says of its memory, in bytes, and of its slots."""

    limit_bytes: int
    limit_source: str
    budget: int
    others: int
    reserved: int
    slots: int
    running: int
    observed: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    id: str
    incarnation: str
    state: str
    figures: HostFigures
    seconds_since_seen: float


class Hosts:
    """`lease`: seconds without a heartbeat after which a host is dead."""

    def __init__(self, database: Database, *, lease: float) -> None:
        self.database = database
        self.lease = lease

    def register(self, host_id: str, incarnation: str, figures: HostFigures) -> int:
        """A worker starts. The jobs of this host's earlier incarnation are released at once; how many.

        The caller has made sure that no other process uses this host id. Raises ConfigError for a second
        host on SQLite.
        """

        def work(connection: Connection) -> int:
            others = [h for h in _live(connection, self.lease) if h.id != host_id]
            if others and self.database.dialect == "sqlite":
                raise ConfigError(
                    "DATABASE_URL",
                    f"SQLite serves one worker host only, and {others[0].id!r} is alive",
                    "Use PostgreSQL or MySQL for several hosts, or stop the other worker",
                )
            released = 0
            if _incarnation(connection, host_id) != incarnation:
                released = _release(connection, host_id, Reason.HOST_LOST, "the worker was started again")
            connection.execute(delete(host).where(host.c.id == host_id))
            times = {"started_at": now(), "seen_at": now()}
            values = {"incarnation": incarnation, "pid": os.getpid(), "state": "up", **asdict(figures), **times}
            connection.execute(insert(host).values(id=host_id, **values))
            return released

        return self.database.transact(work)

    def beat(self, host_id: str, incarnation: str, state: str, figures: HostFigures) -> bool:
        """The heartbeat; False when the host was taken for dead meanwhile: register again."""
        statement = update(host).where(host.c.id == host_id, host.c.incarnation == incarnation)
        statement = statement.values(state=state, seen_at=now(), **asdict(figures))
        return self.database.transact(lambda connection: connection.execute(statement).rowcount == 1)

    def leave(self, host_id: str, incarnation: str) -> None:
        """A worker ends in an orderly way; whatever it still had is released."""

        def work(connection: Connection) -> None:
            if _incarnation(connection, host_id) == incarnation:
                _release(connection, host_id, Reason.GIVEN_BACK, "the worker was stopped")
                connection.execute(delete(host).where(host.c.id == host_id))

        self.database.transact(work)

    def reap(self, reaper: str) -> list[str]:
        """Release the jobs of hosts whose lease has ended; their ids. Call only when in touch for two periods."""

        def work(connection: Connection) -> list[str]:
            query = select(host.c.id).where(host.c.seen_at < now() - self.lease, host.c.id != reaper)
            dead = set(connection.execute(query.with_for_update(skip_locked=True)).scalars())
            dead |= set(connection.execute(_UNKNOWN).scalars())
            for host_id in sorted(dead):
                _release(connection, host_id, Reason.HOST_LOST, f"no heartbeat of {host_id} for {self.lease:g} s")
                connection.execute(delete(host).where(host.c.id == host_id))
            return sorted(dead)

        return self.database.transact(work)

    def live(self) -> list[Host]:
        return self.database.read(lambda connection: _live(connection, self.lease))

    def tokens(self, host_id: str) -> dict[int, int]:
        """token -> job number of all jobs that the ledger counts as being on this host."""
        query = select(job.c.token, job.c.number).where(job.c.host == host_id, job.c.state.in_(_OUT))
        rows = self.database.read(lambda connection: connection.execute(query).all())
        return {row.token: row.number for row in rows}


def _incarnation(connection: Connection, host_id: str) -> str | None:
    return connection.execute(
        select(host.c.incarnation).where(host.c.id == host_id).with_for_update()
    ).scalar_one_or_none()


def _release(connection: Connection, host_id: str, reason: Reason, note: str) -> int:
    query = select(job.c.number, job.c.token).where(job.c.host == host_id, job.c.state.in_(_OUT))
    rows = connection.execute(query.order_by(job.c.number)).all()
    for row in rows:
        lose(connection, row.number, actor="reaper", reason=reason, token=row.token, note=note)
    return len(rows)


def _live(connection: Connection, lease: float) -> list[Host]:
    columns = [column for column in host.c if column is not host.c.metrics]  # long, and asked for often
    query = select(*columns, (now() - host.c.seen_at).label("age")).where(host.c.seen_at >= now() - lease)
    return [
        Host(
            row.id,
            row.incarnation,
            row.state,
            HostFigures(**{name: getattr(row, name) for name in HostFigures.__dataclass_fields__}),
            row.age,
        )
        for row in connection.execute(query.order_by(host.c.id))
    ]
