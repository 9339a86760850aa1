"""Deliveries: submit jobs and batches, ask how they are doing."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Response
from fastapi.exceptions import RequestValidationError

from ncr_worker.api.dependencies import BatchId, Caller, Id, IdempotencyKey, TheApp
from ncr_worker.api.problems import documented
from ncr_worker.ledger.idempotency import Stored
from ncr_worker.pipelines.deliver.model import DeliverArgs, PlanArgs
from ncr_worker.pipelines.deliver.preview import Preview
from ncr_worker.views.answers import Accepted, AcceptedBatch, accepted, accepted_batch
from ncr_worker.views.models import BatchStatus, JobStatus

KIND = "deliver"
REPLAYED = "Idempotency-Replayed"

router = APIRouter(tags=["delivery"])

_JOB = {"job_id": "4711", "username": "ann", "campaign": "spring"}
OneJob = Annotated[DeliverArgs, Body(examples=[_JOB, {**_JOB, "row_id": 42}])]
MOST = 100_000
"""Entries of a batch that are looked at, whatever MAX_BATCH_JOBS is: telling what is wrong with millions would take
gigabytes."""
ManyJobs = Annotated[
    list[DeliverArgs], Body(min_length=1, max_length=MOST, examples=[[_JOB, {**_JOB, "job_id": "4712"}]])
]

_HEADERS = {
    "Location": {"description": "Where to ask how it is doing", "schema": {"type": "string"}},
    REPLAYED: {"description": "`true`: nothing new was stored", "schema": {"type": "string", "enum": ["true"]}},
}
_ANSWERS: dict[int | str, dict[str, Any]] = documented(400, 409, 413, 422, 503) | {202: {"headers": _HEADERS}}


@router.post("/process-job", status_code=202, summary="Deliver the files of one job", responses=_ANSWERS)
def process_job(args: OneJob, app: TheApp, caller: Caller, key: IdempotencyKey, response: Response) -> Accepted:
    """Stores the job and answers. Of one `job_id` only one delivery may be unfinished: another is a 409 naming it."""
    stored = app.submit(KIND, args, actor=caller, key=key)
    _tell(response, f"/job-status/{stored.job_ids[0]}", stored)
    return accepted(args, stored)


@router.post("/process-batch", status_code=202, summary="Deliver many jobs", responses=_ANSWERS)
def process_batch(
    many: ManyJobs, app: TheApp, caller: Caller, key: IdempotencyKey, response: Response
) -> AcceptedBatch:
    """Stores all jobs or none. At most `BATCH_SIZE` jobs of a batch run at once, over all worker hosts."""
    most = app.settings.max_batch_jobs
    if len(many) > most:
        text = f"{len(many):,} jobs are more than the {most:,} that a batch may have; send several batches"
        raise RequestValidationError([{"type": "too_long", "loc": ("body",), "msg": text}])
    tenants = {args.tenant for args in many}
    tenant = tenants.pop() if len(tenants) == 1 else ""
    stored = app.submit_batch(KIND, many, tenant=tenant, actor=caller, key=key)
    _tell(response, f"/batch-status/{stored.batch_id}", stored)
    return accepted_batch(many, stored)


@router.get("/job-status/{task_id}", summary="How one job is doing", responses=documented(404, 422, 503))
def get_job_status(task_id: Id, app: TheApp) -> JobStatus:
    """From the ledger; live figures from Redis where they are fresh. Without Redis the ledger alone still answers."""
    return app.look.status(task_id)


@router.get(
    "/batch-status/{batch_id}", summary="How the jobs of a batch are doing", responses=documented(404, 422, 503)
)
def get_batch_status(batch_id: BatchId, app: TheApp) -> BatchStatus:
    """`completed`: all succeeded; `partial`: some; `failed`: none; `processing`: some are not yet over."""
    return app.look.batch(batch_id)


@router.get("/plan", summary="What a delivery would be", responses=documented(404, 422, 503))
def get_plan(args: Annotated[PlanArgs, Query()], app: TheApp) -> Preview:
    """The target tree, bytes, disk and memory that a delivery would need now; nothing is fetched or stored.

    A 422 says why the job would fail: two keys for one target, a missing file, an unsafe name.
    """
    return app.plan(args)


def _tell(response: Response, location: str, stored: Stored) -> None:
    response.headers["Location"] = location
    if stored.again:
        response.headers[REPLAYED] = "true"
