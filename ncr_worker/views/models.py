"""How jobs and batches are shown, over HTTP and on the command line alike.

Times are RFC 3339 UTC, sizes are bytes, percentages are 0..100.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ncr_worker.pipelines.deliver.model import Receipt
from ncr_worker.validator import Verdict

TASK = "0b0f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c"
BATCH = "7d1c2b3a-4f5e-4a6b-8c7d-9e0f1a2b3c4d"
TIME = "2026-11-22T09:30:00.123456Z"
HOST = "worker-1"
_STATUS: dict[str, Any] = {
    "job_id": "4711",
    "task_id": TASK,
    "batch_id": None,
    "kind": "deliver",
    "status": "uploading",
    "progress": {
        "current_step": "upload",
        "total_files": 12,
        "processed_files": 7,
        "current_file": "CHAIR-1/textures/oak.png",
        "percentage": 81.5,
        "bytes_done": 7340032,
        "bytes_total": 12582912,
    },
    "message": "step upload runs",
    "reason": None,
    "error": None,
    "attempt": 1,
    "max_attempts": 5,
    "host": HOST,
    "created_at": TIME,
    "started_at": TIME,
    "finished_at": None,
    "timestamp": TIME,
}
VERDICT = {"result": "Valid", "answer": {"data": [{"result": "Valid", "reasons": []}]}}


def example(**values: Any) -> ConfigDict:
    """The configuration of a model with one example in its schema."""
    return ConfigDict(json_schema_extra={"examples": [values]})


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

    model_config = example(**_STATUS)


class JobRecord(JobStatus):
    """All that is known of a job. `state`: the engine's word. Memory: `predicted` when it was submitted; `need` it asks
    for now; `reserved` it has, or had last; `peak` was measured.

    `round`: 1, and one more for each retry by a person. `next_run_at`: when a waiting job is due. `request_id`: of
    the request that submitted it, as the logs of its stages have it.
    `result`: what it has left, without what `/receipt` shows.
    """

    user: str
    state: str
    stage: str | None = None
    args: dict[str, Any]
    priority: int
    round: int
    input_bytes: int | None = None
    predicted_bytes: int | None = None
    need_bytes: int
    reserved_bytes: int
    peak_bytes: int | None = None
    next_run_at: datetime | None = None
    request_id: str | None = None
    result: dict[str, Any] | None = None
    links: dict[str, str]

    model_config = example(
        **_STATUS,
        user="ann",
        state="running",
        stage="upload",
        args={"job_id": "4711", "username": "ann", "campaign": "spring", "row_id": None},
        priority=0,
        round=1,
        input_bytes=None,
        predicted_bytes=67_108_864,
        need_bytes=67_108_864,
        reserved_bytes=67_108_864,
        peak_bytes=None,
        next_run_at=None,
        request_id="5f0c7a3e0d9b4c7f8a1e2d3c4b5a6978",
        result=None,
        links={"audit": f"/jobs/{TASK}/audit", "events": f"/jobs/{TASK}/events", "receipt": f"/jobs/{TASK}/receipt"},
    )


class JobLine(BaseModel):
    """A job in a list."""

    job_id: str
    task_id: str
    batch_id: str | None = None
    kind: str
    user: str
    status: str
    stage: str | None = None
    reason: str | None = None
    error_code: str | None = None
    attempt: int
    host: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None


class JobList(BaseModel):
    """A page of jobs, the newest first. `next_cursor`: ask with it for the next page; null: this is the last one."""

    jobs: list[JobLine]
    next_cursor: str | None = None

    model_config = example(
        jobs=[
            {
                "job_id": "4711",
                "task_id": TASK,
                "batch_id": None,
                "kind": "deliver",
                "user": "ann",
                "status": "failed",
                "stage": "fetch",
                "reason": None,
                "error_code": "source_missing",
                "attempt": 1,
                "host": HOST,
                "created_at": TIME,
                "started_at": TIME,
                "finished_at": TIME,
            }
        ],
        next_cursor="1234",
    )


class JobEvent(BaseModel):
    """One line of a job's audit trail. `actor`: who or what did it; `reason`: why, in the engine's words."""

    id: int
    at: datetime
    state: str
    stage: str | None = None
    attempt: int
    actor: str
    reason: str | None = None


class Audit(BaseModel):
    """Everything that happened to a job, the oldest first."""

    job_id: str
    task_id: str
    events: list[JobEvent]

    model_config = example(
        job_id="4711",
        task_id=TASK,
        events=[
            {"id": 17, "at": TIME, "state": "queued", "stage": None, "attempt": 0, "actor": "api", "reason": "new"},
            {"id": 18, "at": TIME, "state": "dispatched", "attempt": 0, "actor": "feeder", "reason": HOST},
        ],
    )


class JobReceipt(BaseModel):
    """`verdict`: the validator's word and whole answer, if it was asked. `receipt`: only of a job that delivered."""

    job_id: str
    task_id: str
    status: str
    error: JobError | None = None
    verdict: Verdict | None = None
    receipt: Receipt | None = None

    model_config = example(
        job_id="4711",
        task_id=TASK,
        status="completed",
        error=None,
        verdict=VERDICT,
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
            "verdict": VERDICT,
            "submitted_at": TIME,
            "validated_at": TIME,
            "published_at": TIME,
            "delivered_at": TIME,
        },
    )


class BatchJob(BaseModel):
    job_id: str
    task_id: str
    status: str
    percentage: float


BatchWord = Literal["pending", "processing", "completed", "partial", "failed", "cancelled"]


class BatchLine(BaseModel):
    """A batch in a list. `status` and `counts` as in `/batch-status`, but counted by the engine's states."""

    batch_id: str
    user: str
    status: BatchWord
    total_jobs: int
    counts: dict[str, int]
    created_at: datetime


class BatchList(BaseModel):
    """A page of batches, the newest first. `next_cursor`: ask with it for the next page; null: this is the last one."""

    batches: list[BatchLine]
    next_cursor: str | None = None

    model_config = example(
        batches=[
            {
                "batch_id": BATCH,
                "user": "ann",
                "status": "processing",
                "total_jobs": 2,
                "counts": {"succeeded": 1, "running": 1},
                "created_at": TIME,
            }
        ],
        next_cursor=None,
    )


class BatchStatus(BaseModel):
    """`counts`: jobs by their status. `percentage`: how much of the work is over; a job that has ended counts whole."""

    batch_id: str
    status: BatchWord
    total_jobs: int
    counts: dict[str, int]
    percentage: float
    jobs: list[BatchJob]
    timestamp: datetime

    model_config = example(
        batch_id=BATCH,
        status="processing",
        total_jobs=2,
        counts={"completed": 1, "uploading": 1},
        percentage=90.8,
        jobs=[
            {"job_id": "4711", "task_id": TASK, "status": "completed", "percentage": 100.0},
            {
                "job_id": "4712",
                "task_id": "1c1f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c",
                "status": "uploading",
                "percentage": 81.5,
            },
        ],
        timestamp=TIME,
    )
