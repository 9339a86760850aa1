"""The peer of `make bench-submit`: the same FastAPI application, that only hands each job to Celery."""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime
from typing import Any

from celery import Celery
from fastapi import FastAPI

from ncr_worker.pipelines.deliver.model import DeliverArgs

queue = Celery("peer", broker=os.environ["PEER_BROKER"])
queue.conf.task_ignore_result = True
api = FastAPI()


@queue.task
def deliver(args: dict[str, Any]) -> None:
    """Nothing: only the way here is measured."""


@api.get("/health/live")
def live() -> dict[str, str]:
    return {"status": "ok"}


@api.post("/process-job", status_code=202)
def process_job(args: DeliverArgs) -> dict[str, Any]:
    task = deliver.delay(args.model_dump(mode="json"))
    return {"job_id": args.job_id, "task_id": task.id, "status": "pending", "timestamp": datetime.now(UTC)}


@api.post("/process-batch", status_code=202)
def process_batch(many: list[DeliverArgs]) -> dict[str, Any]:
    jobs = [
        {"job_id": args.job_id, "task_id": deliver.delay(args.model_dump(mode="json")).id, "status": "pending"}
        for args in many
    ]
    return {"batch_id": str(uuid.uuid4()), "total_jobs": len(jobs), "jobs": jobs, "timestamp": datetime.now(UTC)}
