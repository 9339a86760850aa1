"""Jobs of every kind: lists, records, audit trails, receipts, live events; cancel and retry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ncr_worker.api.dependencies import Caller, Id, TheApp, Watching
from ncr_worker.api.events import EXAMPLE, follow
from ncr_worker.api.problems import documented
from ncr_worker.api.schemas import ActiveJobs, JobQuery
from ncr_worker.views.lookup import Filter
from ncr_worker.views.models import Audit, JobList, JobReceipt, JobRecord

router = APIRouter(tags=["jobs"])

VIEWS = (JobRecord,)
"""How a job may be shown at `/jobs/{task_id}`: its kind decides. Kinds without a view of their own have the record."""
_ONE_OF = {"oneOf": [{"$ref": f"#/components/schemas/{view.__name__}"} for view in VIEWS]}
_RECORD: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"schema": _ONE_OF}}}}
_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"example": EXAMPLE}}}}


@router.get("/jobs", summary="Jobs, the newest first", responses=documented(422, 503))
def list_jobs(wanted: Annotated[JobQuery, Query()], app: TheApp) -> JobList:
    """All filters must hold. `next_cursor` of one page is `cursor` for the next; new jobs do not shift the pages.

    `since` and `until` are about the time of the submit, RFC 3339 with an offset; `since` counts, `until` does not.
    """
    chosen = Filter(**wanted.model_dump(exclude={"cursor", "limit"}))
    return app.look.jobs(chosen, cursor=wanted.cursor, limit=wanted.limit)


# Before /jobs/{task_id}, which would take `active` for an id.
@router.get("/jobs/active", summary="Jobs that run now", responses=documented(503))
def active_jobs(app: TheApp) -> ActiveJobs:
    """Jobs that are on a worker host, oldest first; queued ones are counted in `/celery-stats`."""
    jobs = app.look.active()
    return ActiveJobs(active_jobs=jobs, count=len(jobs))


@router.get(
    "/jobs/{task_id}",
    summary="All that is known of a job",
    response_model=None,
    responses=_RECORD | documented(404, 422, 503),
)
def get_job(task_id: Id, app: TheApp) -> JobRecord:
    """The job's kind decides what is shown; a delivery is shown as the generic record."""
    return app.look.record(task_id)


@router.get("/jobs/{task_id}/audit", summary="What happened to a job", responses=documented(404, 422, 503))
def get_audit(task_id: Id, app: TheApp) -> Audit:
    """Each change of its state or stage: when, who or what did it, and why. The oldest first."""
    return app.look.audit(task_id)


@router.get("/jobs/{task_id}/receipt", summary="Proof of what was done", responses=documented(404, 409, 422, 503))
def get_receipt(task_id: Id, app: TheApp, response: Response) -> JobReceipt:
    """Files, sizes, SHA-256, times, target, host key and the validator's whole answer. 409 while the job runs.

    Of a job that was rejected there is the validator's answer, and no receipt.
    """
    response.headers["Content-Disposition"] = f'attachment; filename="receipt-{task_id}.json"'
    return app.look.receipt(task_id)


def _existing(task_id: Id, app: TheApp) -> str:
    """A stream that has begun cannot say 404 any more."""
    app.ledger.reads.job(task_id)
    return task_id


@router.get(
    "/jobs/{task_id}/events",
    summary="A job as it goes on: server-sent events",
    response_class=EventSourceResponse,
    responses=documented(404, 422, 503) | _STREAM,
)
async def get_events(
    task_id: Annotated[str, Depends(_existing)],
    app: TheApp,
    watching: Watching,
    seen: Annotated[
        int | None,
        Header(alias="Last-Event-ID", ge=0, lt=2**63, description="`id` of the last event that was received"),
    ] = None,
) -> AsyncIterator[ServerSentEvent]:
    """`state`: a line of the audit trail, with its `id`; all of them from the first, or behind `Last-Event-ID`.

    `progress`: the status, each time it has changed. `end`: the status of a job that has ended; nothing follows, so
    close the stream (a browser's EventSource would open it again). A comment each 15 s shows that the line works.
    """
    async for event in follow(app, task_id, seen or 0, watching):
        yield event


@router.post("/jobs/{task_id}/cancel", status_code=202, summary="Stop a job", responses=documented(404, 409, 422, 503))
def cancel_job(task_id: Id, app: TheApp, caller: Caller) -> JobRecord:
    """A waiting job ends at once, a running one when it hears of it. What it left outside is cleaned up.

    409 when it has ended already.
    """
    app.cancel(task_id, actor=caller)
    return app.look.record(task_id)


@router.post(
    "/jobs/{task_id}/retry", status_code=202, summary="Run a job again", responses=documented(404, 409, 422, 503)
)
def retry_job(task_id: Id, app: TheApp, caller: Caller) -> JobRecord:
    """A new round, from the first stage and with all attempts, of a job that failed or was cancelled; else 409.

    It is admitted as a new job is: 503 while the intake is paused or too many jobs wait.
    """
    app.retry(task_id, actor=caller)
    return app.look.record(task_id)
