"""The composition root: builds everything from Settings once, and offers what edges need."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from ncr_worker import logs
from ncr_worker.announcer import Announcer
from ncr_worker.batches import Batches, Retried
from ncr_worker.board import Board
from ncr_worker.errors import Conflict, NotFound, Rejected
from ncr_worker.group_commit import GroupCommit
from ncr_worker.history import History
from ncr_worker.job import Job, NewBatch, NewJob, State
from ncr_worker.ledger import Ledger
from ncr_worker.ledger.idempotency import Once, Stored
from ncr_worker.ledger.intake import Again
from ncr_worker.ledger.pauses import Pauses, Scope
from ncr_worker.memory.admission import Admission, Limits
from ncr_worker.memory.drain import Asked
from ncr_worker.memory.needs import Needs
from ncr_worker.pipeline import Args, Pipeline
from ncr_worker.pipelines import load_pipelines
from ncr_worker.pipelines.deliver.model import DeliverArgs
from ncr_worker.pipelines.deliver.preview import Preview, preview
from ncr_worker.run import Connectors
from ncr_worker.settings import Settings
from ncr_worker.sql import Database
from ncr_worker.views.lookup import Lookup
from ncr_worker.views.memory import MemoryLook

log = logging.getLogger(__name__)

FIRST = -10
"""Priority of the service's own jobs: they are small, and make room."""


class App:
    """`patience`: seconds that a call waits for a database that is away (workers wait, the API answers 503)."""

    def __init__(self, settings: Settings, *, patience: float = 0.0) -> None:
        self.settings = settings
        self.database = Database(settings.ledger_url, patience=patience, pool_size=settings.db_pool_size)
        self.ledger = Ledger(
            self.database,
            lease=settings.host_lease,
            batch_timeout=settings.batch_timeout,
            overtake_limit=settings.overtake_limit,
        )
        self.board = Board(settings.board_url)
        self.history = History(self.database)
        self.pauses = Pauses(self.database)
        limits = Limits(settings.max_backlog, settings.admission_max_wait)
        self.admission = Admission(self.ledger, self.pauses, limits)
        self.needs = Needs(self.database, learned=settings.memory_prediction == "learned")
        self.ledger.queue.foresee = self.needs.foresee
        self.connectors = Connectors(settings.model_copy(update={"db_patience": patience}))
        self._announcer = Announcer(self.board)
        self._single = GroupCommit(self.ledger)
        self._batches = Batches(self.ledger)
        self._in_flight: set[str] = set()

    def close(self) -> None:
        self._announcer.close()
        self.connectors.close()
        self.board.close()
        self.database.close()

    @cached_property
    def pipelines(self) -> Mapping[str, Pipeline[Any]]:
        return load_pipelines(self.settings.extra_pipelines)

    def pipeline(self, kind: str) -> Pipeline[Any]:
        """Raises NotFound."""
        if kind not in self.pipelines:
            raise NotFound(f"there is no kind {kind!r}; known: {', '.join(sorted(self.pipelines))}")
        return self.pipelines[kind]

    @cached_property
    def look(self) -> Lookup:
        return Lookup(self.ledger, self.history, self.pauses, self.board, self.pipelines)

    @cached_property
    def memory(self) -> MemoryLook:
        parts = (self.ledger, self.history, self.board, self.admission)
        return MemoryLook(self.settings, *parts, self.pipelines, self.needs)

    def submit(self, kind: str, args: Args, *, actor: str = "api", key: str | None = None) -> Stored:
        """Store one job; once this returns it is not lost.

        `key`: the client's word that a second submit with it is the same one; it stores nothing and gets the first
        answer. Raises Busy, NeverFits, Conflict, DatabaseAway; Rejected for a key that was used for another submit.
        """
        return self._submit(kind, [args], None, actor, key)

    def submit_batch(
        self, kind: str, many: Sequence[Args], *, tenant: str = "", actor: str = "api", key: str | None = None
    ) -> Stored:
        """Store a batch, all of it or nothing. At most BATCH_SIZE of its jobs run at once. Raises like `submit`."""
        batch = NewBatch(str(uuid.uuid4()), tenant, self.settings.batch_size)
        return self._submit(kind, many, batch, actor, key)

    def submit_tick(self, kind: str, args: Args, *, key: str) -> Stored:
        """Store a job of the service's own schedule: it goes before all others, and no pause or backlog stops it.

        `key`: of the schedule's tick; however often it is submitted, there is one job. Raises Conflict while the
        job of an earlier tick is unfinished, DatabaseAway.
        """
        pipeline = self.pipeline(kind)
        new = replace(self._new(pipeline, args, None), priority=FIRST)
        stored = Stored((new.id,), None, "stored; submitted by schedule", time.time())
        once = Once(key, _fingerprint(kind, [args], False), stored.message, stored.answered_at)
        earlier = self.ledger.intake.submit([new], actor="beat", once=once)
        return earlier or self._announced(pipeline, [new], stored)

    def cancel(self, job_id: str, *, actor: str) -> State:
        """Ask a job to stop; its state now. Raises NotFound; Conflict when it has ended."""
        state = self.ledger.intake.cancel(job_id, actor=actor)
        self.board.wake()
        return state

    def cancel_batch(self, batch_id: str, *, actor: str) -> list[str]:
        """Ask all jobs of a batch that have not ended to stop; which. Raises NotFound."""
        batch = self.history.batch(batch_id)
        unfinished = [line.id for line in self.history.lines_of(batch.id) if not line.terminal]
        stopped = self._batches.cancel(unfinished, actor=actor)
        self.board.wake()
        return stopped

    def retry(self, job_id: str, *, actor: str) -> None:
        """A new round for a job that failed or was cancelled: it is admitted as a new job is.

        Raises NotFound, Conflict, Busy, NeverFits.
        """
        job = self.ledger.reads.job(job_id)
        again = self._again(job)
        self.admission.judge([Asked(job.kind, again.need, job.tenant)])
        self.ledger.intake.retry(job_id, again, actor=actor)
        self.board.wake()

    def retry_batch(self, batch_id: str, *, actor: str) -> Retried:
        """A new round for the failed jobs of a batch, as far as they can have one. Raises NotFound, Busy, NeverFits."""
        batch = self.history.batch(batch_id)
        failed = [line for line in self.history.lines_of(batch.id) if line.state is State.FAILED]
        if failed:
            self.admission.judge([Asked(line.kind, line.need, line.tenant) for line in failed])
        retried = self._batches.retry([line.id for line in failed], self._again, actor=actor)
        self.board.wake()
        return retried

    def pause(self, scope: Scope, *, actor: str, note: str = "") -> None:
        """Refuse new jobs (INTAKE), or start no more of them (WORK)."""
        self.pauses.pause(scope, actor=actor, note=note)
        log.info("%s is paused by %s: %s", scope, actor, note)
        self.admission.forget()

    def resume(self, scope: Scope, *, actor: str) -> bool:
        """Whether it was paused."""
        resumed = self.pauses.resume(scope)
        if resumed:
            log.info("%s is resumed by %s", scope, actor)
        self.admission.forget()
        self.board.wake()
        return resumed

    def plan(self, args: DeliverArgs) -> Preview:
        """What a delivery of this job would be now. Nothing is fetched, stored or reserved.

        Raises NotFound (not in the catalog), Rejected (layout, missing files), Transient, ConfigError, DatabaseAway.
        """
        try:
            return preview(args, self.connectors.use, self.settings)
        except Rejected as error:
            if error.code != "catalog_missing":
                raise
            raise NotFound(str(error), code=error.code) from error

    def _submit(self, kind: str, many: Sequence[Args], batch: NewBatch | None, actor: str, key: str | None) -> Stored:
        pipeline = self.pipeline(kind)
        if key is None:
            return self._store(pipeline, many, batch, actor)
        print_ = _fingerprint(kind, many, batch is not None)
        if key in self._in_flight:
            text = "the first submit with this Idempotency-Key is not answered yet; ask again"
            raise Conflict(text, code="in_flight", retry_in=1)
        self._in_flight.add(key)
        try:
            earlier = self.ledger.intake.stored(key, print_)
            return earlier or self._store(pipeline, many, batch, actor, (key, print_))
        finally:
            self._in_flight.discard(key)

    def _store(
        self,
        pipeline: Pipeline[Any],
        many: Sequence[Args],
        batch: NewBatch | None,
        actor: str,
        known_by: tuple[str, str] | None = None,
    ) -> Stored:
        """`known_by`: the client's key, and the fingerprint of what is submitted."""
        jobs = [self._new(pipeline, args, batch) for args in many]
        verdict = self.admission.judge(jobs)
        ids = tuple(job.id for job in jobs)
        stored = Stored(ids, batch.id if batch else None, f"stored; {verdict.reason}", time.time())
        if batch is None and known_by is None:
            self._single.submit(jobs[0], actor=actor)
            return self._announced(pipeline, jobs, stored)
        once = Once(*known_by, stored.message, stored.answered_at) if known_by else None
        earlier = self.ledger.intake.submit(jobs, batch, actor=actor, once=once)
        return earlier or self._announced(pipeline, jobs, stored)

    def _announced(self, pipeline: Pipeline[Any], jobs: Sequence[NewJob], stored: Stored) -> Stored:
        self._announcer.tell(jobs, pipeline.word(State.QUEUED, None))
        return stored

    def _again(self, job: Job) -> Again:
        """Raises NotFound, Conflict: the job is of a kind, or has arguments, that this version does not know."""
        pipeline = self.pipeline(job.kind)
        try:
            args = pipeline.args.model_validate(job.args)
        except ValidationError as error:
            text = f"the arguments of job {job.id} do not fit {job.kind} any more; submit it anew"
            raise Conflict(text, code="not_retryable") from error
        return Again(self._need(pipeline, args), pipeline.exclusive(args))

    def _need(self, pipeline: Pipeline[Any], args: Args) -> int:
        """Bytes to reserve before the first stage."""
        return self.needs.at_submit(pipeline.kind, pipeline.version, args.size, pipeline.declared(args))

    def _new(self, pipeline: Pipeline[Any], args: Args, batch: NewBatch | None) -> NewJob:
        return NewJob(
            id=str(uuid.uuid4()),
            kind=pipeline.kind,
            version=pipeline.version,
            ref=args.ref,
            tenant=args.tenant,
            args=args.model_dump(mode="json"),
            need=self._need(pipeline, args),
            declared=pipeline.declared(args),
            input_bytes=args.size,
            max_attempts=pipeline.attempts,
            batch_id=batch.id if batch else None,
            exclusive_key=pipeline.exclusive(args),
            request_id=logs.request_id(),
        )


def _fingerprint(kind: str, many: Sequence[Args], batch: bool) -> str:
    """Of what is submitted, as it was understood: another order of fields is no other request."""
    content = [kind, batch, [args.model_dump(mode="json") for args in many]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
