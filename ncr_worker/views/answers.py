"""What those are told who ask for something to be done, and whether all is well: over HTTP and on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from ncr_worker.board import Board
from ncr_worker.errors import ConfigError
from ncr_worker.ledger import Ledger, schema
from ncr_worker.ledger.idempotency import Stored
from ncr_worker.ledger.pauses import Pause, Scope
from ncr_worker.pipeline import Args
from ncr_worker.sql import DatabaseAway
from ncr_worker.views.job import moment
from ncr_worker.views.models import BATCH, TASK, TIME, example

PENDING = "pending"


class Accepted(BaseModel):
    """The job is stored. `task_id` is what to ask `/job-status` with; `job_id` is the client's own."""

    job_id: str
    task_id: str
    status: str
    message: str
    timestamp: datetime

    model_config = example(
        job_id="4711", task_id=TASK, status="pending", message="stored; 2 worker host(s) up", timestamp=TIME
    )


class AcceptedJob(BaseModel):
    job_id: str
    task_id: str
    status: str


class AcceptedBatch(BaseModel):
    """All jobs are stored; they stand in the order in which they were sent."""

    batch_id: str
    total_jobs: int
    jobs: list[AcceptedJob]
    status: str
    message: str
    timestamp: datetime

    model_config = example(
        batch_id=BATCH,
        total_jobs=1,
        jobs=[{"job_id": "4711", "task_id": TASK, "status": "pending"}],
        status="pending",
        message="stored; 2 worker host(s) up",
        timestamp=TIME,
    )


class BatchCancelled(BaseModel):
    """`cancelled`: task ids of the jobs that were asked to stop: those that had not ended."""

    batch_id: str
    cancelled: list[str]

    model_config = example(batch_id=BATCH, cancelled=[TASK])


class BatchRetried(BaseModel):
    """`retried`: task ids of the failed jobs that have a new round. `refused`: task id -> why it has none."""

    batch_id: str
    retried: list[str]
    refused: dict[str, str]

    model_config = example(batch_id=BATCH, retried=[TASK], refused={})


class PauseLine(BaseModel):
    """`intake`: new jobs are refused. `work`: nothing new is started. `note`: why, in the words of `actor`."""

    scope: Scope
    actor: str
    note: str
    since: datetime


class PauseList(BaseModel):
    """What people have stopped; empty: nothing."""

    pauses: list[PauseLine]

    model_config = example(pauses=[{"scope": "intake", "actor": "ann", "note": "moving the bucket", "since": TIME}])


class Health(BaseModel):
    """`degraded`: jobs are taken in, but nothing runs them now (no worker) or shows them live (no Redis)."""

    status: Literal["healthy", "degraded", "unhealthy"]
    redis: Literal["connected", "disconnected"]
    database: Literal["connected", "disconnected", "not_migrated"]
    workers: int
    timestamp: datetime

    model_config = example(status="healthy", redis="connected", database="connected", workers=2, timestamp=TIME)


def accepted(args: Args, stored: Stored) -> Accepted:
    """`stored`: what a submit of `args` has stored."""
    (task_id,) = stored.job_ids
    return Accepted(
        job_id=args.ref, task_id=task_id, status=PENDING, message=stored.message, timestamp=moment(stored.answered_at)
    )


def accepted_batch(many: Sequence[Args], stored: Stored) -> AcceptedBatch:
    return AcceptedBatch(
        batch_id=stored.batch_id or "",
        total_jobs=len(many),
        jobs=[
            AcceptedJob(job_id=args.ref, task_id=task_id, status=PENDING)
            for args, task_id in zip(many, stored.job_ids, strict=True)
        ],
        status=PENDING,
        message=stored.message,
        timestamp=moment(stored.answered_at),
    )


def pause_list(pauses: Sequence[Pause]) -> PauseList:
    return PauseList(
        pauses=[PauseLine(scope=p.scope, actor=p.actor, note=p.note, since=moment(p.since)) for p in pauses]
    )


def health(ledger: Ledger, board: Board, now: datetime) -> Health:
    """Asks each part afresh. Unhealthy: jobs cannot be stored."""
    redis: Literal["connected", "disconnected"] = "connected" if board.ping() else "disconnected"
    try:
        schema.require_current(ledger.database)
        workers = len(ledger.hosts.live())
    except ConfigError:
        return Health(status="unhealthy", redis=redis, database="not_migrated", workers=0, timestamp=now)
    except (DatabaseAway, SQLAlchemyError):
        return Health(status="unhealthy", redis=redis, database="disconnected", workers=0, timestamp=now)
    well = redis == "connected" and workers > 0
    return Health(
        status="healthy" if well else "degraded", redis=redis, database="connected", workers=workers, timestamp=now
    )
