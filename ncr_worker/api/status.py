"""How a job looks to a user: the ledger's row is the truth, the board's figures only decorate it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel

from ncr_worker.api.schemas import BatchJob, BatchStatus, JobError, JobProgress, JobReceipt, JobStatus
from ncr_worker.errors import Conflict
from ncr_worker.job import OUT, Job, Reason, State
from ncr_worker.pipeline import Pipeline
from ncr_worker.progress import percent

ALMOST = 99.9  # only a job that has succeeded is at 100

WAITS: Mapping[str, str] = {
    Reason.NEW: "waits for its turn",
    Reason.NO_MEMORY: "waits until enough memory is free",
    Reason.YIELDED: "needs more memory than was reserved; waits until so much is free",
    Reason.RETRY: "will be tried again",
    Reason.TARGET_BUSY: "waits for another delivery to the same target",
    Reason.GIVEN_BACK: "its worker was stopped; the next one goes on with it",
    Reason.HOST_LOST: "its worker host was lost; the next one goes on with it",
    Reason.WORKER_LOST: "its process was lost; the next one goes on with it",
    Reason.SERVICE_DOWN: "waits for a service that does not work now",
}
FOR_MEMORY = (Reason.NO_MEMORY, Reason.YIELDED)


class Live(BaseModel):
    """What the runner last wrote to the board about a job."""

    stage: str | None = None
    attempt: int = 0
    percentage: float = 0.0
    files: int = 0
    total_files: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    current_file: str = ""
    message: str = ""


def job_status(job: Job, pipeline: Pipeline[Any], live: Mapping[str, Any] | None, now: datetime) -> JobStatus:
    """`live`: the job's status on the board, if there is one."""
    shown = _of_this_run(job, live)
    return JobStatus(
        job_id=job.ref,
        task_id=job.id,
        batch_id=job.batch_id,
        kind=job.kind,
        status=word(job, pipeline),
        progress=progress(job, pipeline, shown),
        message=_message(job, shown),
        reason=job.reason if job.state is State.QUEUED else None,
        error=_error(job),
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        host=None if job.state is State.QUEUED else job.host,
        created_at=_moment(job.created_at),
        started_at=_moment(job.started_at) if job.started_at is not None else None,
        finished_at=_moment(job.finished_at) if job.finished_at is not None else None,
        timestamp=now,
    )


def word(job: Job, pipeline: Pipeline[Any]) -> str:
    """The public status word."""
    if job.state is State.QUEUED and job.reason in FOR_MEMORY:
        return "waiting"
    if job.state is State.FAILED and job.error_code == "validation_failed":
        return "validation_failed"
    return pipeline.word(job.state, job.stage)


def progress(job: Job, pipeline: Pipeline[Any], live: Live | None) -> JobProgress:
    """`live` is of this job's present attempt and stage, or None. It never contradicts the ledger."""
    step = job.stage or "queued"
    if job.state is State.SUCCEEDED:
        files, size = delivered(job.result)
        return JobProgress(
            current_step=step,
            total_files=files,
            processed_files=files,
            percentage=100.0,
            bytes_done=size,
            bytes_total=size,
        )
    weights = [(stage.name, stage.weight) for stage in pipeline.stages]
    lowest, highest = percent(weights, job.stage, 0.0), percent(weights, job.stage, 1.0)
    if live is None:
        return JobProgress(current_step=step, percentage=lowest)
    return JobProgress(
        current_step=step,
        total_files=live.total_files,
        processed_files=live.files,
        current_file=live.current_file,
        percentage=min(max(live.percentage, lowest), highest, ALMOST),
        bytes_done=live.bytes_done,
        bytes_total=live.bytes_total,
    )


def delivered(result: Mapping[str, Any] | None) -> tuple[int, int]:
    """Files and bytes of a finished job, from the receipt in its parcel; zeros for kinds that leave none."""
    receipt = (result or {}).get("receipt") or {}
    return receipt.get("total_files", 0), receipt.get("total_bytes", 0)


def job_receipt(job: Job, pipeline: Pipeline[Any]) -> JobReceipt:
    """What is kept of a finished job. Raises Conflict while it is not finished."""
    if not job.terminal:
        raise Conflict(f"job {job.id} has not ended yet: {job.state}", code="not_finished")
    kept = job.result or {}
    return JobReceipt(
        job_id=job.ref,
        task_id=job.id,
        status=word(job, pipeline),
        error=_error(job),
        verdict=kept.get("verdict"),
        receipt=kept.get("receipt"),
    )


def _error(job: Job) -> JobError | None:
    return JobError(code=job.error_code, detail=job.error or "") if job.error_code else None


def batch_status(
    batch_id: str,
    jobs: Sequence[Job],
    pipelines: Mapping[str, Pipeline[Any]],
    lives: Mapping[str, Mapping[str, Any]],
    now: datetime,
) -> BatchStatus:
    """`lives`: job id -> status on the board."""
    shown = [
        BatchJob(
            job_id=job.ref,
            task_id=job.id,
            status=word(job, pipelines[job.kind]),
            percentage=progress(job, pipelines[job.kind], _of_this_run(job, lives.get(job.id))).percentage,
        )
        for job in jobs
    ]
    over = sum(100.0 if job.terminal else one.percentage for job, one in zip(jobs, shown, strict=True))
    return BatchStatus(
        batch_id=batch_id,
        status=batch_word([job.state for job in jobs]),
        total_jobs=len(jobs),
        counts=Counter(job.status for job in shown),
        percentage=round(over / max(len(jobs), 1), 1),
        jobs=shown,
        timestamp=now,
    )


def batch_word(
    states: Sequence[State],
) -> Literal["pending", "processing", "completed", "partial", "failed", "cancelled"]:
    """`partial`: all have ended, some without success."""
    kinds = set(states)
    if kinds <= {State.QUEUED}:
        return "pending"
    if kinds & {State.QUEUED, *OUT}:
        return "processing"
    if kinds == {State.SUCCEEDED}:
        return "completed"
    if State.SUCCEEDED in kinds:
        return "partial"
    return "failed" if State.FAILED in kinds else "cancelled"


def _of_this_run(job: Job, live: Mapping[str, Any] | None) -> Live | None:
    """The board's figures, when they are of the attempt and the stage that the ledger names."""
    if live is None:
        return None
    shown = Live.model_validate(live)
    return shown if (shown.attempt, shown.stage) == (job.attempt, job.stage) else None


def _message(job: Job, live: Live | None) -> str:
    match job.state:
        case State.QUEUED:
            named = job.error if job.reason == Reason.SERVICE_DOWN else None
            return named or WAITS.get(job.reason or "", "waits for its turn")
        case State.DISPATCHED:
            return f"starts on {job.host}"
        case State.RUNNING:
            return (live.message if live else "") or f"step {job.stage} runs"
        case State.CANCELLING:
            return "was asked to stop"
        case State.SUCCEEDED:
            return "done"
        case _:
            return job.error or job.state


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
