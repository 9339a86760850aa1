"""How a job looks to a user: the ledger's row is the truth, the board's figures only decorate it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ncr_worker.errors import Conflict
from ncr_worker.history import Line, Shape
from ncr_worker.job import Event, Job, Reason, State
from ncr_worker.pipeline import Pipeline
from ncr_worker.pipelines.deliver.model import Receipt
from ncr_worker.progress import percent
from ncr_worker.validator import Verdict
from ncr_worker.views.models import JobError, JobEvent, JobLine, JobProgress, JobReceipt, JobRecord, JobStatus

M = TypeVar("M", bound=BaseModel)
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
    Reason.OUT_OF_MEMORY: "used more memory than was reserved; waits until more is free",
    Reason.WINDING_UP: "has ended; what it left outside is being cleaned up",
}
FOR_MEMORY = (Reason.NO_MEMORY, Reason.YIELDED, Reason.OUT_OF_MEMORY)
NO = "validation_failed"


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job that is due does not start, where its own row does not say it."""

    reason: str
    text: str


class Live(BaseModel):
    """What the runner last wrote to the board about a job. `started_at`: of the run that wrote it."""

    stage: str | None = None
    started_at: float | None = None
    percentage: float = 0.0
    files: int = 0
    total_files: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    current_file: str = ""
    message: str = ""


def job_status(
    job: Job, pipeline: Pipeline[Any], live: Mapping[str, Any] | None, now: datetime, wait: Wait | None = None
) -> JobStatus:
    """`live`: the job's status on the board, if there is one."""
    return JobStatus(**_status(job, pipeline, live, now, wait))


def job_record(
    job: Job, pipeline: Pipeline[Any], live: Mapping[str, Any] | None, now: datetime, wait: Wait | None = None
) -> JobRecord:
    return JobRecord(
        **_status(job, pipeline, live, now, wait),
        user=job.tenant,
        state=job.state,
        stage=job.stage,
        args=dict(job.args),
        priority=job.priority,
        round=job.round,
        input_bytes=job.input_bytes,
        need_bytes=job.need,
        predicted_bytes=job.predicted,
        reserved_bytes=job.reserved or job.granted or 0,
        peak_bytes=job.peak,
        next_run_at=moment(job.next_run_at) if job.state is State.QUEUED else None,
        request_id=job.request_id,
        result=_result(job),
        links={name: f"/jobs/{job.id}/{name}" for name in ("audit", "events", "receipt")},
    )


def job_line(line: Line, pipeline: Pipeline[Any]) -> JobLine:
    return JobLine(
        job_id=line.ref,
        task_id=line.id,
        batch_id=line.batch_id,
        kind=line.kind,
        user=line.tenant,
        status=word(line, pipeline),
        stage=line.stage,
        reason=line.reason if line.state is State.QUEUED else None,
        error_code=line.error_code,
        attempt=line.attempt,
        host=None if line.state is State.QUEUED else line.host,
        created_at=moment(line.created_at),
        started_at=_perhaps(line.started_at),
        finished_at=_perhaps(line.finished_at),
    )


def job_event(event: Event) -> JobEvent:
    return JobEvent(
        id=event.id,
        at=moment(event.at),
        state=event.state,
        stage=event.stage,
        attempt=event.attempt,
        actor=event.actor,
        reason=event.reason,
    )


def _status(
    job: Job, pipeline: Pipeline[Any], live: Mapping[str, Any] | None, now: datetime, wait: Wait | None
) -> dict[str, Any]:
    shown = of_this_run(job, live)
    reason = (wait.reason if wait else job.reason) if job.state is State.QUEUED else None
    return {
        "job_id": job.ref,
        "task_id": job.id,
        "batch_id": job.batch_id,
        "kind": job.kind,
        "status": word(job, pipeline),
        "progress": progress(job, pipeline, shown),
        "message": wait.text if wait else _message(job, shown),
        "reason": reason,
        "error": _error(job),
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "host": None if job.state is State.QUEUED else job.host,
        "created_at": moment(job.created_at),
        "started_at": _perhaps(job.started_at),
        "finished_at": _perhaps(job.finished_at),
        "timestamp": now,
    }


def word(job: Job | Line, pipeline: Pipeline[Any]) -> str:
    """The public status word. `shapes` is its inverse."""
    if job.state is State.QUEUED and job.reason in FOR_MEMORY:
        return "waiting"
    if job.state is State.FAILED and job.error_code == NO:
        return NO
    return pipeline.word(job.state, job.stage)


def shapes(wanted: str, pipelines: Mapping[str, Pipeline[Any]]) -> list[Shape]:
    """The jobs whose public status word is `wanted`, as the ledger knows them; none: nobody says this word."""
    return [shape for pipeline in pipelines.values() for said, shape in _words(pipeline) if said == wanted]


def _words(pipeline: Pipeline[Any]) -> Iterator[tuple[str, Shape]]:
    """Every word of a pipeline with the jobs that it stands for."""
    memory: Mapping[str, Collection[str]] = {"reason": FOR_MEMORY}
    no: Mapping[str, Collection[str]] = {"error_code": (NO,)}
    yield "waiting", Shape(pipeline.kind, State.QUEUED, only=memory)
    yield NO, Shape(pipeline.kind, State.FAILED, only=no)
    names = [stage.name for stage in pipeline.stages]
    for state in State:
        but: Mapping[str, Collection[str]] = {State.QUEUED: memory, State.FAILED: no}.get(state, {})
        if state in (State.RUNNING, State.CANCELLING):
            for name in names:
                yield pipeline.word(state, name), Shape(pipeline.kind, state, only={"stage": (name,)})
            yield pipeline.word(state, None), Shape(pipeline.kind, state, but={"stage": names})
        else:
            yield pipeline.word(state, None), Shape(pipeline.kind, state, but=but)


def progress(job: Job, pipeline: Pipeline[Any], live: Live | None) -> JobProgress:
    """`live` is of this job's present run and stage, or None. It never contradicts the ledger."""
    step, done = job.stage or "queued", percentage(job, pipeline, live)
    if job.state is State.SUCCEEDED:
        files, size = delivered(job.result)
        return JobProgress(
            current_step=step,
            total_files=files,
            processed_files=files,
            percentage=done,
            bytes_done=size,
            bytes_total=size,
        )
    if live is None:
        return JobProgress(current_step=step, percentage=done)
    return JobProgress(
        current_step=step,
        total_files=live.total_files,
        processed_files=live.files,
        current_file=live.current_file,
        percentage=done,
        bytes_done=live.bytes_done,
        bytes_total=live.bytes_total,
    )


def percentage(job: Job | Line, pipeline: Pipeline[Any], live: Live | None) -> float:
    """How much of the job is done, 0..100."""
    if job.state is State.SUCCEEDED:
        return 100.0
    weights = [(stage.name, stage.weight) for stage in pipeline.stages]
    lowest, highest = percent(weights, job.stage, 0.0), percent(weights, job.stage, 1.0)
    return lowest if live is None else min(max(live.percentage, lowest), highest, ALMOST)


def delivered(result: Mapping[str, Any] | None) -> tuple[int, int]:
    """Files and bytes of a finished job, from the receipt in its parcel; zeros for kinds that leave none of ours."""
    match (result or {}).get("receipt"):
        case {"total_files": int(files), "total_bytes": int(size)}:
            return files, size
        case _:
            return 0, 0


def job_receipt(job: Job, pipeline: Pipeline[Any]) -> JobReceipt:
    """What is kept of a finished job. Raises Conflict while it is not finished."""
    if not job.terminal:
        raise Conflict(f"job {job.id} has not ended yet: {job.state}", code="not_finished", retry_in=5)
    return JobReceipt(
        job_id=job.ref,
        task_id=job.id,
        status=word(job, pipeline),
        error=_error(job),
        verdict=_kept(job, "verdict", Verdict),
        receipt=_kept(job, "receipt", Receipt),
    )


def _kept(job: Job, name: str, model: type[M]) -> M | None:
    """What a job has left under this name; None when another kind of job means something else by it."""
    try:
        return model.model_validate((job.result or {}).get(name))
    except ValidationError:
        return None


def _result(job: Job) -> dict[str, Any] | None:
    """What is worth seeing of a job's last parcel: of one with a receipt, the receipt says it all."""
    if job.result is None or _kept(job, "receipt", Receipt) or _kept(job, "verdict", Verdict):
        return None
    return {name: value for name, value in job.result.items() if name != "args"}


def _error(job: Job) -> JobError | None:
    return JobError(code=job.error_code, detail=job.error or "") if job.error_code else None


def of_this_run(job: Job | Line, live: Mapping[str, Any] | None) -> Live | None:
    """The board's figures, when they are of the run and the stage that the ledger names.

    Runs are told apart by their start: who is given back, or retried by a person, has the same attempt again.
    """
    if live is None or job.state in (State.QUEUED, State.DISPATCHED):  # what it did in an earlier run is past
        return None
    shown = Live.model_validate(live)
    return shown if (shown.started_at, shown.stage) == (job.started_at, job.stage) else None


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


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _perhaps(seconds: float | None) -> datetime | None:
    return None if seconds is None else moment(seconds)
