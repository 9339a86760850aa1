"""The customer's catalog: which files belong to a job, and what became of it. All access to it is here.

The tables below are ours; another catalog fits when its views have the columns that are read (`job_files`,
`job_details`) and it has tables for what is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    DateTime,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    select,
    update,
)
from sqlalchemy.dialects import mysql

from ncr_worker.errors import Rejected
from ncr_worker.settings import Settings
from ncr_worker.sql import TABLE, Database
from ncr_worker.validator import Verdict

metadata = MetaData()

_Id = BigInteger().with_variant(Integer(), "sqlite")  # SQLite numbers rows by itself only so
_Time = DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
"""UTC, without a zone."""

job_files = Table(
    "job_files",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("job_id", String(128), nullable=False),
    Column("key", String(1024), nullable=False),
    Column("file_type", String(32), nullable=False, server_default="base"),
    Column("uploaded_at", _Time, nullable=False),
    Index("ix_job_files_job_id", "job_id"),
    **TABLE,
)
job_details = Table(
    "job_details",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("job_id", String(128), nullable=False),
    Column("sku_id", String(255), nullable=False),
    Column("status", String(32), nullable=False, server_default="new"),
    Column("updated_at", _Time),
    Index("ix_job_details_job_id", "job_id"),
    **TABLE,
)
model_validation = Table(
    "model_validation",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("job_id", String(128), nullable=False),
    Column("run", String(36), nullable=False),
    Column("round", Integer, nullable=False),
    Column("result", String(64), nullable=False),
    Column("answer", JSON, nullable=False),
    Column("created_at", _Time, nullable=False),
    UniqueConstraint("run", "round", name="uq_model_validation_run"),
    Index("ix_model_validation_job_id", "job_id"),
    **TABLE,
)
delivery = Table(
    "delivery",
    metadata,
    Column("job_id", String(128), primary_key=True),
    Column("state", String(32), nullable=False),
    Column("deliveries", Integer, nullable=False),
    Column("files", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("updated_at", _Time, nullable=False),
    **TABLE,
)
delivery_history = Table(
    "delivery_history",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("job_id", String(128), nullable=False),
    Column("run", String(36), nullable=False),
    Column("round", Integer, nullable=False),
    Column("target", String(1024), nullable=False),
    Column("files", Integer, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("result", String(64), nullable=False),
    Column("delivered_at", _Time, nullable=False),
    UniqueConstraint("run", "round", name="uq_delivery_history_run"),
    Index("ix_delivery_history_job_id", "job_id"),
    **TABLE,
)

BASE = "base"


@dataclass(frozen=True, slots=True)
class Entry:
    """What is written about. `run` and `round`: the engine's job id and round; each is recorded once."""

    job_id: str
    row_id: int | None
    run: str
    round: int

    @property
    def once(self) -> dict[str, Any]:
        return {"job_id": self.job_id, "run": self.run, "round": self.round}


def catalog(settings: Settings) -> Catalog:
    """The catalog of this process: CATALOG_URL, else the ledger's database."""
    url = settings.catalog_url or settings.ledger_url
    return Catalog(Database(url, patience=settings.db_patience, pool_size=settings.db_pool_size))


class Catalog:
    """Safe to share between threads. Raises DatabaseAway where the database is away for too long."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def close(self) -> None:
        self.database.close()

    def sku(self, job_id: str, row_id: int | None) -> str:
        """The job's sku. Raises Rejected `catalog_missing`: no such job, or row `row_id` is another job's."""
        query = select(job_details.c.sku_id).where(job_details.c.job_id == job_id).order_by(job_details.c.id.desc())
        if row_id is not None:
            query = query.where(job_details.c.id == row_id)
        found = self.database.read(lambda connection: connection.scalar(query.limit(1)))
        if found is None:
            row = "" if row_id is None else f" in row {row_id}"
            raise Rejected(f"the catalog has no job {job_id}{row}", code="catalog_missing")
        return str(found)

    def keys(self, job_id: str) -> list[str]:
        """Keys of the job's base files, each once, in order. Raises Rejected `catalog_no_files`."""
        query = select(job_files.c.key).where(job_files.c.job_id == job_id, job_files.c.file_type == BASE).distinct()
        found = self.database.read(lambda connection: connection.scalars(query).all())
        if not found:
            raise Rejected(f"the catalog has no base files for job {job_id}", code="catalog_no_files")
        return sorted(found)

    def record_validation(self, entry: Entry, verdict: Verdict) -> None:
        """Keep the validator's whole answer; again for the same round, it replaces the earlier one."""
        row = {"result": verdict.result[:64], "answer": verdict.answer, "created_at": _utc_now()}

        def work(connection: Connection) -> None:
            _upsert(connection, model_validation, {"run": entry.run, "round": entry.round}, entry.once | row)
            _set_state(connection, entry, "validated" if verdict.passed else "validation_failed")

        self.database.transact(work)

    def record_delivery(self, entry: Entry, target: str, files: int, size: int, result: str) -> None:
        """Count and keep a delivery of `files` with `size` bytes. Once for each round: again changes nothing."""
        row = {"target": target, "files": files, "bytes": size, "result": result, "delivered_at": _utc_now()}

        def work(connection: Connection) -> None:
            known = select(delivery_history.c.id).where(
                delivery_history.c.run == entry.run, delivery_history.c.round == entry.round
            )
            if connection.scalar(known) is not None:
                return
            connection.execute(delivery_history.insert().values(**entry.once, **row))
            _set_state(connection, entry, "delivered", files=files, size=size)

        self.database.transact(work)


def _set_state(connection: Connection, entry: Entry, state: str, *, files: int = 0, size: int = 0) -> None:
    """The job's state here and in its catalog row; figures given are those of one more delivery."""
    now = _utc_now()
    where = job_details.c.job_id == entry.job_id
    if entry.row_id is not None:
        where &= job_details.c.id == entry.row_id
    connection.execute(update(job_details).where(where).values(status=state, updated_at=now))
    old = connection.execute(select(delivery).where(delivery.c.job_id == entry.job_id)).one_or_none()
    row = {
        "state": state,
        "deliveries": (old.deliveries if old else 0) + (state == "delivered"),
        "files": (old.files if old else 0) + files,
        "bytes": (old.bytes if old else 0) + size,
        "updated_at": now,
    }
    _upsert(connection, delivery, {"job_id": entry.job_id}, row)


def _upsert(connection: Connection, table: Table, key: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Update the one row with `key`, or insert it: one job has one writer."""
    same = [table.c[name] == value for name, value in key.items()]
    # Asked for first: MySQL counts changed rows, not found ones.
    if connection.execute(select(table.c[next(iter(key))]).where(*same)).first() is None:
        connection.execute(table.insert().values({**key, **row}))
    else:
        connection.execute(table.update().where(*same).values(dict(row)))


def _utc_now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
