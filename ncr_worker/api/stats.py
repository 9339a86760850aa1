"""Figures of workers and queues."""

from __future__ import annotations

from fastapi import APIRouter

from ncr_worker.api.dependencies import Now, TheApp, TheInspector
from ncr_worker.api.problems import documented
from ncr_worker.api.schemas import BacklogEntry, CeleryStats

router = APIRouter(tags=["statistics"])


@router.get("/celery-stats", summary="Workers, queues and backlog", responses=documented(503))
def celery_stats(app: TheApp, inspector: TheInspector, now: Now) -> CeleryStats:
    """Workers are asked and given a second to answer. `scheduled`: jobs that are due later, such as retries."""
    backlog = app.history.backlog()
    seen = inspector.look([host.id for host in app.ledger.hosts.live()])
    return CeleryStats(
        broker="connected" if seen.connected else "disconnected",
        active=seen.active,
        reserved=seen.reserved,
        stats=seen.stats,
        scheduled=sum(entry.scheduled for entry in backlog),
        queues=seen.queues,
        backlog=[
            BacklogEntry(
                kind=entry.kind,
                reason=entry.reason,
                jobs=entry.jobs,
                scheduled=entry.scheduled,
                need_bytes=entry.need,
            )
            for entry in backlog
        ],
        timestamp=now,
    )
