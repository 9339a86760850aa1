"""Batches: lists; cancel and retry of their jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ncr_worker.api.dependencies import BatchId, Caller, TheApp
from ncr_worker.api.problems import documented
from ncr_worker.api.schemas import BatchQuery
from ncr_worker.views.answers import BatchCancelled, BatchRetried
from ncr_worker.views.models import BatchList

router = APIRouter(tags=["batches"])


@router.get("/batches", summary="Batches, the newest first", responses=documented(422, 503))
def list_batches(wanted: Annotated[BatchQuery, Query()], app: TheApp) -> BatchList:
    """`user`: of batches whose jobs are all of this user. `next_cursor` of one page is `cursor` for the next."""
    return app.look.batches(user=wanted.user, cursor=wanted.cursor, limit=wanted.limit)


@router.post(
    "/batches/{batch_id}/cancel",
    status_code=202,
    summary="Stop all jobs of a batch",
    responses=documented(404, 422, 503),
)
def cancel_batch(batch_id: BatchId, app: TheApp, caller: Caller) -> BatchCancelled:
    """Those that have not ended; the answer names them. Asking again does no harm."""
    return BatchCancelled(batch_id=batch_id, cancelled=app.cancel_batch(batch_id, actor=caller))


@router.post(
    "/batches/{batch_id}/retry",
    status_code=202,
    summary="Run the failed jobs of a batch again",
    responses=documented(404, 422, 503),
)
def retry_batch(batch_id: BatchId, app: TheApp, caller: Caller) -> BatchRetried:
    """Only those that failed. The answer says which have a new round, and of the others why not.

    They are admitted as a new batch is: 503 while the intake is paused or too many jobs wait.
    """
    found = app.retry_batch(batch_id, actor=caller)
    return BatchRetried(batch_id=batch_id, retried=found.job_ids, refused=found.refused)
