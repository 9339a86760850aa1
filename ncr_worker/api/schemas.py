"""What the routes take and answer. Times are RFC 3339 UTC, sizes are bytes, percentages are 0..100."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from ncr_worker.ledger.pauses import Scope
from ncr_worker.views.models import HOST, TASK, TIME, JobStatus, example
from ncr_worker.worker.inspection import RunningTask, WorkerStats

NAME = "NCR Upload API"


class Service(BaseModel):
    """`links`: what to look at next."""

    name: str
    version: str
    links: dict[str, str]

    model_config = example(
        name=NAME, version="0.1.0", links={"docs": "/docs", "openapi": "/openapi.json", "health": "/health"}
    )


Word = Annotated[str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
Note = Annotated[str, StringConstraints(max_length=400, pattern=r"^[^\x00-\x1f\x7f]*$")]


def _as_written(text: object) -> object:
    """Pydantic alone would take a number for a time, too."""
    if not re.match(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d", str(text)):
        raise ValueError("write it like 2026-11-22T09:30:00Z")
    return text


Moment = Annotated[AwareDatetime, BeforeValidator(_as_written)]


class Paging(BaseModel):
    model_config = ConfigDict(extra="forbid")

    cursor: Annotated[str, StringConstraints(max_length=36, pattern="^[A-Za-z0-9-]+$")] | None = Field(
        None, description="`next_cursor` of the page before"
    )
    limit: int = Field(100, ge=1, le=1000, description="Most entries in the answer")


class JobQuery(Paging):
    kind: Word | None = Field(None, description="Such as deliver")
    status: Word | None = Field(None, description="A status word")
    batch: Word | None = Field(None, description="A `batch_id`")
    user: Word | None = None
    job_id: Word | None = Field(None, description="The client's own id")
    since: Moment | None = Field(None, description="Submitted at this time or later")
    until: Moment | None = Field(None, description="Submitted before this time")


class BatchQuery(Paging):
    user: Word | None = None


class ResumeOrder(BaseModel):
    model_config = ConfigDict(extra="forbid")

    scope: Scope


class PauseOrder(ResumeOrder):
    """`note`: why, for whoever meets the pause."""

    note: Note = ""


class ActiveJobs(BaseModel):
    """Jobs that are on a worker host now."""

    active_jobs: list[JobStatus]
    count: int

    model_config = example(active_jobs=[], count=0)


class Probe(BaseModel):
    status: str

    model_config = example(status="ok")


class BacklogEntry(BaseModel):
    """Queued jobs of one kind that wait for one reason. `scheduled`: those of them that are due later."""

    kind: str
    reason: str
    jobs: int
    scheduled: int
    need_bytes: int


class CeleryStats(BaseModel):
    """Tasks and statistics by worker, as the workers say it now; those that do not answer at once are left out.

    `queues`: messages in each host's queue, measured at the broker; null when it cannot be reached. They are few:
    the backlog is in the ledger.
    """

    broker: Literal["connected", "disconnected"]
    active: dict[str, list[RunningTask]]
    reserved: dict[str, list[RunningTask]]
    stats: dict[str, WorkerStats]
    scheduled: int
    queues: dict[str, int | None]
    backlog: list[BacklogEntry]
    timestamp: datetime

    model_config = example(
        broker="connected",
        active={f"ncr@{HOST}": [{"task_id": TASK, "kind": "deliver", "pid": 4330, "started_at": TIME}]},
        reserved={f"ncr@{HOST}": []},
        stats={
            f"ncr@{HOST}": {
                "pid": 4322,
                "uptime": 3600,
                "concurrency": 4,
                "processes": [4330],
                "total": {"deliver": 9},
            }
        },
        scheduled=1,
        queues={HOST: 0},
        backlog=[{"kind": "deliver", "reason": "retry", "jobs": 1, "scheduled": 1, "need_bytes": 100_663_296}],
        timestamp=TIME,
    )
