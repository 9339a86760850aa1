"""Answers to what people ask about jobs and batches: the same for HTTP, command line and dashboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ncr_worker.board import Board
from ncr_worker.errors import NotFound, Rejected
from ncr_worker.history import History, Wanted
from ncr_worker.job import OUT, Job, Reason, State
from ncr_worker.ledger import Ledger
from ncr_worker.ledger.pauses import Pauses, Scope
from ncr_worker.pipeline import Pipeline
from ncr_worker.views.batch import batch_line, batch_status
from ncr_worker.views.job import Wait, job_event, job_line, job_receipt, job_record, job_status, shapes
from ncr_worker.views.models import (
    Audit,
    BatchList,
    BatchStatus,
    JobEvent,
    JobList,
    JobReceipt,
    JobRecord,
    JobStatus,
)

CURSOR = "cursor: take it from next_cursor of the page before"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs to list; None: all. `status`: a public word. `since`, `until`: when submitted."""

    kind: str | None = None
    status: str | None = None
    batch: str | None = None
    user: str | None = None
    job_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class Lookup:
    """All methods raise DatabaseAway, and NotFound for an id that nobody has. Without Redis the ledger answers."""

    def __init__(
        self, ledger: Ledger, history: History, pauses: Pauses, board: Board, pipelines: Mapping[str, Pipeline[Any]]
    ) -> None:
        self.ledger = ledger
        self.history = history
        self.pauses = pauses
        self.board = board
        self.pipelines = pipelines

    def status(self, task_id: str) -> JobStatus:
        job, live = self._live(task_id)
        return job_status(job, self._pipeline(job.kind), live, _now(), self._wait(job))

    def record(self, task_id: str) -> JobRecord:
        job, live = self._live(task_id)
        return job_record(job, self._pipeline(job.kind), live, _now(), self._wait(job))

    def receipt(self, task_id: str) -> JobReceipt:
        """Raises Conflict while the job has not ended."""
        job = self.ledger.reads.job(task_id)
        return job_receipt(job, self._pipeline(job.kind))

    def audit(self, task_id: str) -> Audit:
        job = self.ledger.reads.job(task_id)
        return Audit(job_id=job.ref, task_id=job.id, events=self.events(task_id))

    def events(self, task_id: str, *, after: int = 0) -> list[JobEvent]:
        """Those behind event number `after`, the oldest first."""
        return [job_event(event) for event in self.ledger.reads.events(task_id, after=after)]

    def active(self) -> list[JobStatus]:
        """Jobs that are on a worker host now, the oldest first."""
        # While a new version is rolled out, a worker may already run a kind that this process does not know yet.
        jobs = [job for job in self.history.active() if job.kind in self.pipelines]
        lives = self.board.statuses([job.id for job in jobs])
        return [job_status(job, self.pipelines[job.kind], lives.get(job.id), _now()) for job in jobs]

    def jobs(self, wanted: Filter, *, cursor: str | None = None, limit: int = 100) -> JobList:
        """The newest first. Raises Rejected for a kind, status word or cursor that does not exist."""
        if wanted.kind is not None and wanted.kind not in self.pipelines:
            known = ", ".join(sorted(self.pipelines))
            raise Rejected(f"kind {wanted.kind!r} does not exist; known: {known}", code="unknown_kind")
        if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
            raise Rejected(CURSOR, code="invalid_cursor")
        found = self.history.jobs(
            Wanted(
                kind=wanted.kind,
                shapes=self._shapes(wanted.status),
                batch_id=wanted.batch,
                tenant=wanted.user,
                ref=wanted.job_id,
                since=_seconds(wanted.since),
                until=_seconds(wanted.until),
            ),
            before=int(cursor) if cursor else None,
            limit=limit + 1,
        )
        page = found[:limit]
        lines = [job_line(line, self.pipelines[line.kind]) for line in page if line.kind in self.pipelines]
        return JobList(jobs=lines, next_cursor=str(page[-1].number) if len(found) > limit else None)

    def batches(self, *, user: str | None = None, cursor: str | None = None, limit: int = 100) -> BatchList:
        """The newest first. Raises Rejected for a cursor that does not exist."""
        try:
            found = self.history.batches(tenant=user, before=cursor, limit=limit + 1)
        except NotFound as error:
            raise Rejected(CURSOR, code="invalid_cursor") from error
        page = found[:limit]
        return BatchList(
            batches=[batch_line(batch) for batch in page], next_cursor=page[-1].id if len(found) > limit else None
        )

    def batch(self, batch_id: str) -> BatchStatus:
        batch = self.history.batch(batch_id)
        lines = self.history.lines_of(batch.id)
        known = {kind: self._pipeline(kind) for kind in {line.kind for line in lines}}
        lives = self.board.statuses([line.id for line in lines if line.state in OUT])
        return batch_status(batch.id, lines, known, lives, _now())

    def _live(self, task_id: str) -> tuple[Job, dict[str, Any] | None]:
        job = self.ledger.reads.job(task_id)
        return job, self.board.statuses([job.id]).get(job.id)

    def _pipeline(self, kind: str) -> Pipeline[Any]:
        if kind not in self.pipelines:
            raise NotFound(f"this process does not know jobs of kind {kind!r} (EXTRA_PIPELINES?)")
        return self.pipelines[kind]

    def _shapes(self, status: str | None) -> Sequence[Any] | None:
        if status is None:
            return None
        found = shapes(status, self.pipelines)
        if not found:
            raise Rejected(f"no job is ever {status!r}; see the status words in /docs", code="unknown_status")
        return found

    def _wait(self, job: Job) -> Wait | None:
        """What keeps a waiting job, where its row does not tell: a person's pause, or its batch."""
        if job.state is not State.QUEUED:
            return None
        for pause in self.pauses.active():
            if pause.scope is Scope.WORK:
                text = f"nothing is started now: paused by {pause.actor}" + (f" ({pause.note})" if pause.note else "")
                return Wait("paused", text)
        if job.batch_id and job.reason == Reason.NEW:
            batch = self.history.batch(job.batch_id)
            if sum(batch.counts.get(state, 0) for state in OUT) >= batch.size:
                return Wait("batch_full", f"waits for its batch: {batch.size} of its jobs run at once (BATCH_SIZE)")
        return None


def _seconds(at: datetime | None) -> float | None:
    # What the ledger holds is finer than the microseconds that were shown, and may have been rounded up to them.
    return None if at is None else at.timestamp() - 0.5e-6


def _now() -> datetime:
    return datetime.now(UTC)
