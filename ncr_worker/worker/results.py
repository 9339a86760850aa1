"""What users of Celery look up: how a job ended, in CELERY_RESULT_BACKEND. Nothing depends on it.

Written by ourselves, once the job has ended: Celery knows only that a task returned, not how its job ended, and while
the backend is away it would hold each pool child up for most of a minute.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery, states
from celery.exceptions import TaskRevokedError

from ncr_worker.app import App
from ncr_worker.errors import StageError
from ncr_worker.job import Job, State
from ncr_worker.views.job import word

log = logging.getLogger(__name__)

SETTINGS: dict[str, Any] = {
    "task_ignore_result": True,
    "redis_socket_connect_timeout": 2,  # of the result backend only
    "redis_socket_timeout": 5,
    "result_backend_transport_options": {"retry_policy": {"max_retries": 1, "interval_start": 0}},
}
"""Celery leaves results to us, and gives up soon what cannot be written."""


class Results:
    def __init__(self, app: App, celery: Celery) -> None:
        self.app = app
        self.celery = celery

    def tell(self, job_id: str) -> None:
        """Write how the job has ended, if it has. What goes wrong is logged, and changes nothing."""
        try:
            job = self.app.ledger.reads.job(job_id)
            if job.terminal:
                self.celery.backend.store_result(job.id, *self._outcome(job))
        except Exception as error:  # noqa: BLE001 - whatever a backend's library raises, the job has ended
            log.warning("the result of job %s was not written to CELERY_RESULT_BACKEND: %s", job_id, error)

    def _outcome(self, job: Job) -> tuple[Any, str]:
        """The result and Celery's word for its state."""
        if job.state is State.SUCCEEDED:
            status = word(job, self.app.pipeline(job.kind))
            return {"job_id": job.ref, "kind": job.kind, "status": status}, states.SUCCESS
        if job.state is State.CANCELLED:
            return TaskRevokedError(job.error or "cancelled"), states.REVOKED
        return StageError(f"{job.error_code}: {job.error}"), states.FAILURE
