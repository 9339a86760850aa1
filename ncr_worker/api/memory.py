"""Where the memory is, why jobs wait or are refused, and why they need so much."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from ncr_worker.api.dependencies import Id, TheApp
from ncr_worker.api.problems import documented
from ncr_worker.api.schemas import Word
from ncr_worker.views.explain import JobExplanation
from ncr_worker.views.figures import AdmissionExplanation, MemoryHistory, MemoryStats
from ncr_worker.views.memory import MAIN_KIND
from ncr_worker.views.models import HOST

router = APIRouter(tags=["memory"])

_HOST = r"^[^/\x00-\x1f\x7f]+$"


@router.get("/memory-stats", summary="Memory here and on every worker host", responses=documented(503))
def memory_stats(app: TheApp) -> MemoryStats:
    """Whether deliveries are taken in now, and why; the limit that counts is the cgroup's where there is one."""
    return app.memory.stats()


@router.get(
    "/hosts/{host}/memory", summary="The last hour of a worker host's memory", responses=documented(404, 422, 503)
)
def host_memory(
    host: Annotated[str, Path(max_length=100, pattern=_HOST, description="Its HOST_ID", examples=[HOST])], app: TheApp
) -> MemoryHistory:
    """A sample each five seconds, for a chart. Kept in Redis: when that is lost there is only what came after."""
    return app.memory.hour(host)


@router.get("/admission/explain", summary="Would a job be taken in now, and why", responses=documented(404, 422, 503))
def explain_admission(
    app: TheApp,
    kind: Annotated[Word, Query(description="Of the job")] = MAIN_KIND,
    need: Annotated[
        int | None, Query(ge=0, lt=2**63, description="Bytes that it needs; as jobs of its kind do, when not given")
    ] = None,
    user: Annotated[Word | None, Query(description="Whose job it is")] = None,
) -> AdmissionExplanation:
    """Nothing is stored or counted. What is refused here with `code` and `reason`, a submit refuses in the same words.

    `hosts`: where such a job fits now, or which running jobs have to end first. `prediction`: what earlier jobs of the
    kind took, the curve by which memory is reserved, and why, in words.
    """
    return app.memory.explain_admission(kind, need, user)


@router.get(
    "/jobs/{task_id}/explain", summary="Why a job waits, and needs so much", responses=documented(404, 422, 503)
)
def explain_job(task_id: Id, app: TheApp) -> JobExplanation:
    """All that stands before it, the first thing first; which running jobs have to end on which host.

    `prediction`: what earlier jobs of its kind took, the curve by which memory is reserved, and why, in words.
    """
    return app.memory.explain_job(task_id)
