"""The work of `make bench-memory` as a plain Celery task, set so that as little as possible is lost."""

from __future__ import annotations

import os
from typing import Any

import redis
from celery import Celery
from memory_work import ATTEMPTS, do

app = Celery("peer", broker=os.environ.get("PEER_BROKER"))
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,  # a task whose process is killed comes back, for ever
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)


@app.task
def work(job: dict[str, Any]) -> None:
    """Nobody but the task itself can count how often it was begun."""
    with redis.Redis.from_url(os.environ["PEER_BROKER"]) as counter:
        begun = counter.incr(f"begun:{job['number']}")
    if begun <= ATTEMPTS:
        do(job)
