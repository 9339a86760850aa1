"""Figures of memory, workers and queues."""

from __future__ import annotations

import os

import psutil
from fastapi import APIRouter

from ncr_worker.api.delivery import KIND
from ncr_worker.api.dependencies import Now, TheApp, TheInspector
from ncr_worker.api.problems import documented
from ncr_worker.api.schemas import (
    BacklogEntry,
    CeleryStats,
    HostMemory,
    MemoryStats,
    ProcessMemory,
    SystemMemory,
    Waiting,
)
from ncr_worker.ledger import Host
from ncr_worker.memory.domain import Domain, rss_anon
from ncr_worker.memory.drain import Asked
from ncr_worker.views.job import FOR_MEMORY

router = APIRouter(tags=["statistics"])


@router.get("/memory-stats", summary="Memory here and on every worker host", responses=documented(503))
def memory_stats(app: TheApp, now: Now) -> MemoryStats:
    """Whether deliveries are taken in now, and why; the limit that counts is the cgroup's where there is one."""
    need = app.pipeline(KIND).memory
    verdict = app.admission.explain(Asked(KIND, need))
    short = [entry for entry in app.history.backlog() if entry.reason in FOR_MEMORY]
    waiting = Waiting(jobs=sum(entry.jobs for entry in short), bytes=sum(entry.need for entry in short))
    here = Domain(app.settings.host_memory_bytes).read()
    share = int(here.limit * app.settings.max_memory_usage_percent / 100)
    return MemoryStats(
        process=ProcessMemory(
            pid=os.getpid(), rss_bytes=psutil.Process().memory_info().rss, anonymous_bytes=rss_anon(os.getpid())
        ),
        system=SystemMemory(
            limit_bytes=here.limit,
            limit_source=here.source,
            used_bytes=here.anonymous,
            used_percent=round(100 * here.anonymous / here.limit, 1),
        ),
        recommended_concurrency=_fitting(share - here.anonymous, need),
        accepting_jobs=verdict.accepting,
        reason=verdict.reason,
        hosts=[_host(host, waiting, need) for host in verdict.hosts],
        timestamp=now,
    )


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


def _host(host: Host, waiting: Waiting, need: int) -> HostMemory:
    figures = host.figures
    return HostMemory(
        host=host.id,
        state=host.state,
        limit_bytes=figures.limit_bytes,
        limit_source=figures.limit_source,
        budget_bytes=figures.budget,
        used_bytes=figures.others,
        reserved_bytes=figures.reserved,
        waiting=waiting,
        slots=figures.slots,
        running_jobs=figures.running,
        recommended_concurrency=_fitting(figures.budget, need),
        seconds_since_heartbeat=round(host.seconds_since_seen, 1),
    )


def _fitting(budget: int, need: int) -> int:
    """Jobs of `need` bytes that fit at once; one always may run, alone."""
    return max(budget // need, 1)
