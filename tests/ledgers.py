"""Ledgers for tests: one database of each kind for a test file, emptied between its tests, and usual first steps.

A plugin for its fixtures: conftest.py names it.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from services import SqlServer
from sqlalchemy import Connection, Executable, select

from ncr_worker.job import Job, NewJob
from ncr_worker.ledger import HostFigures, Ledger, Offer, Picked, schema
from ncr_worker.ledger.tables import hold, job, metadata
from ncr_worker.pipeline import MIB
from ncr_worker.sql import Database

G = TypeVar("G")
A = TypeVar("A")
DATABASES = ("sqlite", "mariadb", "postgresql")
LEASE = 60.0
OVERTAKE_LIMIT = 2
_claimants = itertools.count(1)


@pytest.fixture(params=DATABASES, scope="module")
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A migrated database of each kind."""
    if request.param == "sqlite":
        with opened(f"sqlite:///{tmp_path_factory.mktemp('ledger') / 'ncr.sqlite3'}") as database:
            yield database
        return
    server: SqlServer = request.getfixturevalue(request.param)
    url = server.create_database()
    with opened(url) as database:
        yield database
    server.drop_database(url)


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return emptied(database)


@pytest.fixture
def with_hosts(ledger: Ledger) -> None:
    """Two hosts are up, of 1000 MiB each; on SQLite one."""
    for host in ("h1",) if ledger.database.dialect == "sqlite" else ("h1", "h2"):
        ledger.hosts.register(host, "first", figures())


@contextmanager
def opened(url: str) -> Iterator[Database]:
    """The database, migrated."""
    database = Database(url, patience=10, pool_size=10)
    schema.upgrade(database)
    yield database
    database.close()


def emptied(database: Database, *, overtake_limit: int = OVERTAKE_LIMIT, batch_timeout: float = 300) -> Ledger:
    """A ledger without any job or host."""

    def work(connection: Connection) -> None:
        for table in metadata.sorted_tables:
            connection.execute(table.delete())

    database.transact(work)
    return Ledger(database, lease=LEASE, batch_timeout=batch_timeout, overtake_limit=overtake_limit)


def new_job(**changes: Any) -> NewJob:
    fresh: dict[str, Any] = {"id": str(uuid.uuid4()), "kind": "deliver", "version": 1, "ref": "A-1", "tenant": "ann"}
    return NewJob(**fresh | {"args": {"n": 1}, "need": 100 * MIB} | changes)


def figures(**changes: Any) -> HostFigures:
    usual: dict[str, Any] = {"limit_bytes": 1000 * MIB, "limit_source": "host", "budget": 800 * MIB}
    return HostFigures(**usual | {"others": 0, "reserved": 0, "observed": 0, "slots": 4, "running": 0} | changes)


def offer(
    host: str = "h1",
    *,
    slots: int = 4,
    free: int = 800,
    idle: bool = False,
    limit: int = 1000,
    held: Sequence[int] = (),
) -> Offer:
    """`free`, `limit` and `held` in MiB."""
    return Offer(host, slots, free * MIB, idle, limit * MIB, held=[size * MIB for size in held])


def submit(ledger: Ledger, **changes: Any) -> str:
    """One new job; its id."""
    new = new_job(**changes)
    ledger.intake.submit([new])
    return new.id


def pick_one(ledger: Ledger, host: str = "h1") -> Picked:
    """The next job, dispatched to a host with room for all."""
    [picked] = ledger.queue.pick(offer(host, slots=1, idle=True))
    return picked


def claim(ledger: Ledger, picked: Picked, stage: str = "plan") -> Job:
    """The picked job, running."""
    claimed = ledger.work.claim(picked.job_id, picked.token, f"{next(_claimants)}-test", stage)
    assert claimed is not None
    return claimed.job


def start(ledger: Ledger, host: str = "h1", **changes: Any) -> Job:
    """A new job, running on `host`. Nothing else may be queued."""
    submit(ledger, **changes)
    return claim(ledger, pick_one(ledger, host))


def waits(ledger: Ledger, job_id: str) -> float:
    """Seconds until a queued job is due."""
    return ledger.reads.job(job_id).next_run_at - time.time()


def holds(ledger: Ledger) -> dict[str, int]:
    """exclusive key -> number of the job that holds it."""
    query = select(hold.c.key, hold.c.job_number)
    return {row.key: row.job_number for row in ledger.database.read(lambda c: c.execute(query).all())}


def alter(ledger: Ledger, job_id: str, **values: Any) -> None:
    """Change columns of a job behind the ledger's back: the past, mostly."""
    execute(ledger, job.update().where(job.c.id == job_id).values(**values))


def execute(ledger: Ledger, statement: Executable, many: Sequence[dict[str, Any]] | None = None) -> None:
    """Behind the ledger's back. `many`: rows to insert."""
    ledger.database.transact(lambda c: c.execute(statement, many))


def together(work: Callable[[G], A], given: Sequence[G]) -> list[A]:
    """What `work` answers to each, called by as many threads that begin at the same moment."""
    gate = threading.Barrier(len(given))

    def begin(one: G) -> A:
        gate.wait()
        return work(one)

    with ThreadPoolExecutor(len(given)) as pool:
        return list(pool.map(begin, given))
