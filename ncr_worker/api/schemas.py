"""What the routes answer. Times are RFC 3339 UTC, sizes are bytes, percentages are 0..100."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ncr_worker.pipelines.deliver.model import Receipt
from ncr_worker.validator import Verdict
from ncr_worker.worker.inspection import RunningTask, WorkerStats

NAME = "NCR Upload API"

_TASK = "0b0f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c"
_BATCH = "7d1c2b3a-4f5e-4a6b-8c7d-9e0f1a2b3c4d"
_TIME = "2026-11-22T09:30:00.123456Z"
_HOST = "worker-1"
_GIB = 1024**3
_VERDICT = {"result": "Valid", "answer": {"data": [{"result": "Valid", "reasons": []}]}}


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [values]})


class Service(BaseModel):
    """`links`: what to look at next."""

    name: str
    version: str
    links: dict[str, str]

    model_config = _example(
        name=NAME, version="0.1.0", links={"docs": "/docs", "openapi": "/openapi.json", "health": "/health"}
    )


class Accepted(BaseModel):
    """The job is stored. `task_id` is what to ask `/job-status` with; `job_id` is the client's own."""

    job_id: str
    task_id: str
    status: str
    message: str
    timestamp: datetime

    model_config = _example(
        job_id="4711", task_id=_TASK, status="pending", message="stored; 2 worker host(s) up", timestamp=_TIME
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

    model_config = _example(
        batch_id=_BATCH,
        total_jobs=1,
        jobs=[{"job_id": "4711", "task_id": _TASK, "status": "pending"}],
        status="pending",
        message="stored; 2 worker host(s) up",
        timestamp=_TIME,
    )


class JobProgress(BaseModel):
    """Files and bytes are those of the current step; of a job that is done, those of the whole."""

    current_step: str
    total_files: int = 0
    processed_files: int = 0
    current_file: str = ""
    percentage: float = 0.0
    bytes_done: int = 0
    bytes_total: int = 0


class JobError(BaseModel):
    code: str
    detail: str


class JobStatus(BaseModel):
    """`reason`: why a job that is not running waits. `error`: the last one; of a job that goes on, of its last try."""

    job_id: str
    task_id: str
    batch_id: str | None = None
    kind: str
    status: str
    progress: JobProgress
    message: str
    reason: str | None = None
    error: JobError | None = None
    attempt: int
    max_attempts: int
    host: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    timestamp: datetime

    model_config = _example(
        job_id="4711",
        task_id=_TASK,
        batch_id=None,
        kind="deliver",
        status="uploading",
        progress={
            "current_step": "upload",
            "total_files": 12,
            "processed_files": 7,
            "current_file": "CHAIR-1/textures/oak.png",
            "percentage": 81.5,
            "bytes_done": 7340032,
            "bytes_total": 12582912,
        },
        message="step upload runs",
        reason=None,
        error=None,
        attempt=1,
        max_attempts=5,
        host=_HOST,
        created_at=_TIME,
        started_at=_TIME,
        finished_at=None,
        timestamp=_TIME,
    )


class JobReceipt(BaseModel):
    """`verdict`: the validator's word and whole answer, if it was asked. `receipt`: only of a job that delivered."""

    job_id: str
    task_id: str
    status: str
    error: JobError | None = None
    verdict: Verdict | None = None
    receipt: Receipt | None = None

    model_config = _example(
        job_id="4711",
        task_id=_TASK,
        status="completed",
        error=None,
        verdict=_VERDICT,
        receipt={
            "target": "./CHAIR-1",
            "server": "sftp.example:22",
            "host_key": "SHA256:uNiVztksCsDhcc0u9e8BrrJXVGDBSpyfzkZ7H8MyLFc",
            "files": [
                {
                    "key": "4711/CHAIR-1/GLB_files/chair.glb",
                    "target": "CHAIR-1/CHAIR-1.glb",
                    "size": 7340032,
                    "etag": '"9b2cf535f27731c974343645a3985328"',
                    "sha256": "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
                }
            ],
            "total_files": 1,
            "total_bytes": 7340032,
            "verdict": _VERDICT,
            "submitted_at": _TIME,
            "validated_at": _TIME,
            "published_at": _TIME,
            "delivered_at": _TIME,
        },
    )


class BatchJob(BaseModel):
    job_id: str
    task_id: str
    status: str
    percentage: float


class BatchStatus(BaseModel):
    """`counts`: jobs by their status. `percentage`: how much of the work is over; a job that has ended counts whole."""

    batch_id: str
    status: Literal["pending", "processing", "completed", "partial", "failed", "cancelled"]
    total_jobs: int
    counts: dict[str, int]
    percentage: float
    jobs: list[BatchJob]
    timestamp: datetime

    model_config = _example(
        batch_id=_BATCH,
        status="processing",
        total_jobs=2,
        counts={"completed": 1, "uploading": 1},
        percentage=90.8,
        jobs=[
            {"job_id": "4711", "task_id": _TASK, "status": "completed", "percentage": 100.0},
            {
                "job_id": "4712",
                "task_id": "1c1f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c",
                "status": "uploading",
                "percentage": 81.5,
            },
        ],
        timestamp=_TIME,
    )


class ActiveJobs(BaseModel):
    """Jobs that are on a worker host now."""

    active_jobs: list[JobStatus]
    count: int

    model_config = _example(active_jobs=[], count=0)


class Health(BaseModel):
    """`degraded`: jobs are taken in, but nothing runs them now (no worker) or shows them live (no Redis)."""

    status: Literal["healthy", "degraded", "unhealthy"]
    redis: Literal["connected", "disconnected"]
    database: Literal["connected", "disconnected", "not_migrated"]
    workers: int
    timestamp: datetime

    model_config = _example(status="healthy", redis="connected", database="connected", workers=2, timestamp=_TIME)


class Probe(BaseModel):
    status: str

    model_config = _example(status="ok")


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

    model_config = _example(
        process={"pid": 4321, "rss_bytes": 95_000_000, "anonymous_bytes": 70_000_000},
        system={"limit_bytes": 8 * _GIB, "limit_source": "cgroup v2", "used_bytes": 2 * _GIB, "used_percent": 25.0},
        recommended_concurrency=46,
        accepting_jobs=True,
        reason="1 worker host(s) up",
        hosts=[
            {
                "host": _HOST,
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
        timestamp=_TIME,
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

    model_config = _example(
        broker="connected",
        active={f"ncr@{_HOST}": [{"task_id": _TASK, "kind": "deliver", "pid": 4330, "started_at": 1763803800.1}]},
        reserved={f"ncr@{_HOST}": []},
        stats={
            f"ncr@{_HOST}": {
                "pid": 4322,
                "uptime": 3600,
                "concurrency": 4,
                "processes": [4330],
                "total": {"deliver": 9},
            }
        },
        scheduled=1,
        queues={_HOST: 0},
        backlog=[{"kind": "deliver", "reason": "retry", "jobs": 1, "scheduled": 1, "need_bytes": 100_663_296}],
        timestamp=_TIME,
    )
