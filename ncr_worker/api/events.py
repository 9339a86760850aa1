"""What a client sees of one job as it goes on: server-sent events, read from the ledger and the board."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
from anyio import CapacityLimiter, to_thread
from fastapi.sse import ServerSentEvent

from ncr_worker.app import App
from ncr_worker.sql import DatabaseAway
from ncr_worker.views.models import TIME, JobEvent, JobStatus

EVERY = 1.0  # seconds between two looks
WATCHERS = 4
"""Threads that all watchers of this process share: they wait for each other, and no other request for them."""

_LINE = {"id": 17, "at": TIME, "state": "running", "stage": "plan", "attempt": 1, "actor": "runner", "reason": None}
EXAMPLE = f'event: state\ndata: {json.dumps(_LINE)}\nid: 17\n\nevent: progress\ndata: {{"status": "processing"}}\n\n'


async def follow(app: App, task_id: str, after: int, threads: CapacityLimiter) -> AsyncIterator[ServerSentEvent]:
    """The events behind number `after`, and the status each time it has changed, until the job has ended.

    A database that is away is waited for. Raises NotFound.
    """
    shown: dict[str, Any] | None = None
    while True:
        try:
            status, events = await to_thread.run_sync(_look, app, task_id, after, limiter=threads)
        except DatabaseAway:
            yield ServerSentEvent(comment="the database is away")
            await anyio.sleep(EVERY)
            continue
        for event in events:
            after = event.id
            yield ServerSentEvent(event="state", id=str(event.id), data=event)
        figures = status.model_dump(exclude={"timestamp"})
        if figures != shown:
            shown = figures
            yield ServerSentEvent(event="progress", data=status)
        if status.finished_at is not None:
            yield ServerSentEvent(event="end", data=status)
            return
        await anyio.sleep(EVERY)


def _look(app: App, task_id: str, after: int) -> tuple[JobStatus, list[JobEvent]]:
    """The status, and all events that led to it: neither is older than the other."""
    seen: list[JobEvent] = []
    while True:
        status = app.look.status(task_id)
        more = app.look.events(task_id, after=seen[-1].id if seen else after)
        if not more:
            return status, seen
        seen += more
