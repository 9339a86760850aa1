"""How a batch looks to a user. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from ncr_worker.history import Batch, Line
from ncr_worker.job import OUT, State
from ncr_worker.pipeline import Pipeline
from ncr_worker.views.job import moment, of_this_run, percentage, word
from ncr_worker.views.models import BatchJob, BatchLine, BatchStatus, BatchWord


def batch_line(batch: Batch) -> BatchLine:
    return BatchLine(
        batch_id=batch.id,
        user=batch.tenant,
        status=batch_word(batch.counts),
        total_jobs=batch.total,
        counts={state.value: number for state, number in batch.counts.items()},
        created_at=moment(batch.created_at),
    )


def batch_status(
    batch_id: str,
    jobs: Sequence[Line],
    pipelines: Mapping[str, Pipeline[Any]],
    lives: Mapping[str, Mapping[str, Any]],
    now: datetime,
) -> BatchStatus:
    """`lives`: job id -> status on the board."""
    shown = [
        BatchJob(
            job_id=job.ref,
            task_id=job.id,
            status=word(job, pipelines[job.kind]),
            percentage=percentage(job, pipelines[job.kind], of_this_run(job, lives.get(job.id))),
        )
        for job in jobs
    ]
    over = sum(100.0 if job.terminal else one.percentage for job, one in zip(jobs, shown, strict=True))
    return BatchStatus(
        batch_id=batch_id,
        status=batch_word([job.state for job in jobs]),
        total_jobs=len(jobs),
        counts=Counter(job.status for job in shown),
        percentage=round(over / max(len(jobs), 1), 1),
        jobs=shown,
        timestamp=now,
    )


def batch_word(states: Iterable[State]) -> BatchWord:
    """`partial`: all have ended, some without success."""
    kinds = set(states)
    if kinds <= {State.QUEUED}:
        return "pending"
    if kinds & {State.QUEUED, *OUT}:
        return "processing"
    if kinds == {State.SUCCEEDED}:
        return "completed"
    if State.SUCCEEDED in kinds:
        return "partial"
    return "failed" if State.FAILED in kinds else "cancelled"
