"""The ledger's tables. Times are epoch seconds (double) by the database's clock; sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
)

from ncr_worker.job import Job, State
from ncr_worker.sql import TABLE, Json, LongNote, LongText, Note

metadata = MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "pk": "pk_%(table_name)s"},
)

# SQLite numbers rows by itself only in a column that is exactly INTEGER PRIMARY KEY.
Number = BigInteger().with_variant(Integer(), "sqlite")

host = Table(
    "host",
    metadata,
    Column("id", String(100), primary_key=True),
    Column("incarnation", String(36), nullable=False),  # one for each start of the worker
    Column("pid", Integer, nullable=False),
    Column("state", String(10), nullable=False),  # up, draining
    Column("limit_bytes", BigInteger, nullable=False),
    Column("limit_source", String(30), nullable=False),  # cgroup v1, cgroup v2, host, setting
    Column("budget", BigInteger, nullable=False),
    Column("others", BigInteger, nullable=False),  # anonymous memory that is not our jobs'
    Column("reserved", BigInteger, nullable=False),
    Column("observed", BigInteger, nullable=False),  # what its jobs use
    Column("slots", Integer, nullable=False),
    Column("running", Integer, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("metrics", LongText),  # counters of its processes, as Prometheus reads them
    **TABLE,
)

batch = Table(
    "batch",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("tenant", String(100), nullable=False),
    Column("total", Integer, nullable=False),
    Column("size", Integer, nullable=False),  # jobs that may be out at once, over all hosts
    Column("created_at", Double, nullable=False),
    Index(None, "created_at", "id"),
    **TABLE,
)

job = Table(
    "job",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("kind", String(50), nullable=False),
    Column("version", Integer, nullable=False),
    Column("ref", String(255), nullable=False),
    Column("tenant", String(100), nullable=False),
    Column("args", Json, nullable=False),
    Column("batch_id", String(36)),
    Column("priority", Integer, nullable=False),
    Column("state", String(12), nullable=False),
    Column("reason", String(20)),
    Column("stage", String(50)),
    Column("attempt", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("round", Integer, nullable=False),
    Column("token", BigInteger),  # fences every write of a run; a new one for each dispatch
    Column("claimant", String(60)),  # pid and nonce of the one child that claimed the token
    Column("host", String(100)),
    Column("input_bytes", BigInteger),
    Column("need", BigInteger, nullable=False),
    Column("declared", BigInteger),  # what its pipeline says that it needs
    Column("predicted", BigInteger),  # what it was expected to need when it was submitted, or last picked
    Column("reserved", BigInteger, nullable=False),
    Column("granted", BigInteger),  # what its last run had reserved
    Column("peak", BigInteger),
    Column("passed", Integer, nullable=False),  # smaller jobs that overtook this one while it waited for memory
    Column("refused_since", Double),  # since when memory alone keeps it waiting
    Column("created_at", Double, nullable=False),
    Column("next_run_at", Double, nullable=False),
    Column("dispatched_at", Double),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("error_code", String(50)),
    Column("error", LongNote),
    Column("result", Json),
    Column("request_id", String(128)),
    # The order of the pick, so that it reads and locks no more; with the need, by which it passes over long lines.
    Index(None, "state", "tenant", "priority", "number", "need"),
    Index(None, "batch_id", "state"),
    Index(None, "host", "state"),
    Index(None, "kind", "ref"),
    Index(None, "tenant", "number"),
    **TABLE,
)

# What a stage left behind: where a later attempt starts. Deleted when the job ends.
checkpoint = Table(
    "checkpoint",
    metadata,
    Column("job_number", Number, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),  # index of the stage that is done
    Column("stage", String(50), nullable=False),
    Column("host", String(100)),  # set when it needs files that lie on that host
    Column("parcel", LongText, nullable=False),
    **TABLE,
)

# The audit trail of each job.
event = Table(
    "event",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=True),
    Column("job_number", Number, nullable=False),
    Column("at", Double, nullable=False),
    Column("state", String(12), nullable=False),
    Column("stage", String(50)),
    Column("attempt", Integer, nullable=False),
    Column("actor", Note(120), nullable=False),
    Column("reason", Note(400)),
    Index(None, "job_number", "id"),
    **TABLE,
)

# What tenants have used of the hosts' memory, for fair turns.
share = Table(
    "share",
    metadata,
    Column("tenant", String(100), primary_key=True),
    Column("used", Double, nullable=False),  # byte-seconds
    **TABLE,
)

# What runs were seen to use: the predictor learns from the newest of each kind.
observation = Table(
    "observation",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=True),
    Column("kind", String(50), nullable=False),
    Column("version", Integer, nullable=False),
    Column("stage", String(50)),  # none: the whole run
    Column("input_bytes", BigInteger),
    Column("declared", BigInteger),  # what its pipeline had said
    Column("peak", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("killed", Boolean, nullable=False),  # for its memory: it would have needed more than `peak`
    Index(None, "kind", "stage", "id"),
    **TABLE,
)

# Exclusive keys of unfinished jobs: the primary key is the guard.
hold = Table(
    "hold",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("job_number", Number, nullable=False),
    Index(None, "job_number"),
    **TABLE,
)

_JOB_FIELDS = tuple(Job.__dataclass_fields__)
JOB_COLUMNS = tuple(job.c[name] for name in _JOB_FIELDS)


def to_job(row: RowMapping | Mapping[str, Any]) -> Job:
    """A row of JOB_COLUMNS as a Job."""
    values = {name: row[name] for name in _JOB_FIELDS}
    values["state"] = State(values["state"])
    return Job(**values)
