"""What the routes answer. Times are RFC 3339 UTC, sizes are bytes, percentages are 0..100."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from ncr_worker.views.models import BATCH, HOST, TASK, TIME, JobStatus, example
from ncr_worker.worker.inspection import RunningTask, WorkerStats

NAME = "NCR Upload API"

_GIB = 1024**3


class Service(BaseModel):
    """`links`: what to look at next."""

    name: str
    version: str
    links: dict[str, str]

    model_config = example(
        name=NAME, version="0.1.0", links={"docs": "/docs", "openapi": "/openapi.json", "health": "/health"}
    )


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


class ActiveJobs(BaseModel):
    """Jobs that are on a worker host now."""

    active_jobs: list[JobStatus]
    count: int

    model_config = example(active_jobs=[], count=0)


class Health(BaseModel):
    """`degraded`: jobs are taken in, but nothing runs them now (no worker) or shows them live (no Redis)."""

    status: Literal["healthy", "degraded", "unhealthy"]
    redis: Literal["connected", "disconnected"]
    database: Literal["connected", "disconnected", "not_migrated"]
    workers: int
    timestamp: datetime

    model_config = example(status="healthy", redis="connected", database="connected", workers=2, timestamp=TIME)


class Probe(BaseModel):
    status: str

    model_config = example(status="ok")


class ProcessMemory(BaseModel):
    pid: int
    rss_bytes: int
    anonymous_bytes: int


class SystemMemory(BaseModel):
    """Memory where the API runs. `used_bytes` is anonymous memory only: page cache is given back when needed."""

    limit_bytes: int
    limit_source: str
    used_bytes: int
    used_percent: float


class Waiting(BaseModel):
    """Jobs that wait for memory, and what they need together."""

    jobs: int
    bytes: int


class HostMemory(BaseModel):
    """A worker host. `budget`: what its jobs may use together; `used`: by other programs; `reserved`: for its jobs.

    `waiting`: jobs that wait for memory; the first host with enough takes them.
    """

    host: str
    state: str
    limit_bytes: int
    limit_source: str
    budget_bytes: int
    used_bytes: int
    reserved_bytes: int
    waiting: Waiting
    slots: int
    running_jobs: int
    recommended_concurrency: int
    seconds_since_heartbeat: float


class MemoryStats(BaseModel):
    """`recommended_concurrency`: how many deliveries fit into the memory of the machine that the API runs on."""

    process: ProcessMemory
    system: SystemMemory
    recommended_concurrency: int
    accepting_jobs: bool
    reason: str
    hosts: list[HostMemory]
    timestamp: datetime

    model_config = example(
        process={"pid": 4321, "rss_bytes": 95_000_000, "anonymous_bytes": 70_000_000},
        system={"limit_bytes": 8 * _GIB, "limit_source": "cgroup v2", "used_bytes": 2 * _GIB, "used_percent": 25.0},
        recommended_concurrency=46,
        accepting_jobs=True,
        reason="1 worker host(s) up",
        hosts=[
            {
                "host": HOST,
                "state": "up",
                "limit_bytes": 8 * _GIB,
                "limit_source": "cgroup v2",
                "budget_bytes": 6 * _GIB,
                "used_bytes": 400_000_000,
                "reserved_bytes": 201_326_592,
                "waiting": {"jobs": 0, "bytes": 0},
                "slots": 4,
                "running_jobs": 2,
                "recommended_concurrency": 64,
                "seconds_since_heartbeat": 3.2,
            }
        ],
        timestamp=TIME,
    )


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
        active={f"ncr@{HOST}": [{"task_id": TASK, "kind": "deliver", "pid": 4330, "started_at": 1763803800.1}]},
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
