"""Deliveries: submit jobs and batches, ask how they are doing."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response
from fastapi.exceptions import RequestValidationError

from ncr_worker.api.dependencies import Id, TheApp
from ncr_worker.api.problems import documented
from ncr_worker.api.schemas import Accepted, AcceptedBatch, AcceptedJob, ActiveJobs
from ncr_worker.pipelines.deliver.model import DeliverArgs, PlanArgs
from ncr_worker.pipelines.deliver.preview import Preview
from ncr_worker.views.job import moment
from ncr_worker.views.models import BatchStatus, JobReceipt, JobStatus

KIND = "deliver"
PENDING = "pending"

router = APIRouter(tags=["delivery"])

_JOB = {"job_id": "4711", "username": "ann", "campaign": "spring"}
OneJob = Annotated[DeliverArgs, Body(examples=[_JOB, {**_JOB, "row_id": 42}])]
ManyJobs = Annotated[list[DeliverArgs], Body(min_length=1, examples=[[_JOB, {**_JOB, "job_id": "4712"}]])]


@router.post(
    "/process-job", status_code=202, summary="Deliver the files of one job", responses=documented(409, 413, 422, 503)
)
def process_job(args: OneJob, app: TheApp, response: Response) -> Accepted:
    """Stores the job and answers. Of one `job_id` only one delivery may be unfinished: another is a 409 naming it."""
    submitted = app.submit(KIND, args)
    (task_id,) = submitted.job_ids
    response.headers["Location"] = f"/job-status/{task_id}"
    at = moment(submitted.answered_at)
    return Accepted(job_id=args.job_id, task_id=task_id, status=PENDING, message=submitted.message, timestamp=at)


@router.post("/process-batch", status_code=202, summary="Deliver many jobs", responses=documented(409, 413, 422, 503))
def process_batch(many: ManyJobs, app: TheApp, response: Response) -> AcceptedBatch:
    """Stores all jobs or none. At most `BATCH_SIZE` jobs of a batch run at once, over all worker hosts."""
    most = app.settings.max_batch_jobs
    if len(many) > most:
        text = f"{len(many):,} jobs are more than the {most:,} that a batch may have; send several batches"
        raise RequestValidationError([{"type": "too_long", "loc": ("body",), "msg": text}])
    tenants = {args.tenant for args in many}
    submitted = app.submit_batch(KIND, many, tenant=tenants.pop() if len(tenants) == 1 else "")
    response.headers["Location"] = f"/batch-status/{submitted.batch_id}"
    return AcceptedBatch(
        batch_id=submitted.batch_id or "",
        total_jobs=len(many),
        jobs=[
            AcceptedJob(job_id=args.job_id, task_id=task_id, status=PENDING)
            for args, task_id in zip(many, submitted.job_ids, strict=True)
        ],
        status=PENDING,
        message=submitted.message,
        timestamp=moment(submitted.answered_at),
    )


@router.get("/job-status/{task_id}", summary="How one job is doing", responses=documented(404, 422, 503))
def get_job_status(task_id: Id, app: TheApp) -> JobStatus:
    """From the ledger; live figures from Redis where they are fresh. Without Redis the ledger alone still answers."""
    return app.look.status(task_id)


@router.get(
    "/batch-status/{batch_id}", summary="How the jobs of a batch are doing", responses=documented(404, 422, 503)
)
def get_batch_status(batch_id: Id, app: TheApp) -> BatchStatus:
    """`completed`: all succeeded; `partial`: some; `failed`: none; `processing`: some are not yet over."""
    return app.look.batch(batch_id)


@router.get("/plan", summary="What a delivery would be", responses=documented(404, 422, 503))
def get_plan(args: Annotated[PlanArgs, Query()], app: TheApp) -> Preview:
    """The target tree, bytes, disk and memory that a delivery would need now; nothing is fetched or stored.

    A 422 says why the job would fail: two keys for one target, a missing file, an unsafe name.
    """
    return app.plan(args)


@router.get(
    "/jobs/{task_id}/receipt", summary="Proof of a delivery, or why not", responses=documented(404, 409, 422, 503)
)
def get_receipt(task_id: Id, app: TheApp, response: Response) -> JobReceipt:
    """Files, sizes, SHA-256, times, target, host key and the validator's whole answer. 409 while the job runs.

    Of a job that was rejected there is the validator's answer, and no receipt.
    """
    response.headers["Content-Disposition"] = f'attachment; filename="receipt-{task_id}.json"'
    return app.look.receipt(task_id)


@router.get("/jobs/active", summary="Jobs that run now", responses=documented(503))
def active_jobs(app: TheApp) -> ActiveJobs:
    """Jobs that are on a worker host, oldest first; queued ones are counted in `/celery-stats`."""
    jobs = app.look.active()
    return ActiveJobs(active_jobs=jobs, count=len(jobs))
