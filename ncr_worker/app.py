"""The composition root: builds everything from Settings once, and offers what edges need."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ncr_worker.board import Board
from ncr_worker.errors import NotFound, Rejected
from ncr_worker.job import NewBatch, NewJob
from ncr_worker.ledger import Ledger
from ncr_worker.memory.admission import Admission, Verdict
from ncr_worker.pipeline import Args, Pipeline
from ncr_worker.pipelines import load_pipelines
from ncr_worker.pipelines.deliver.model import DeliverArgs
from ncr_worker.pipelines.deliver.preview import Preview, preview
from ncr_worker.run import Connectors
from ncr_worker.settings import Settings
from ncr_worker.sql import Database


@dataclass(frozen=True, slots=True)
class Submitted:
    """What was stored. `verdict`: what admission said, with a word for the user."""

    job_ids: tuple[str, ...]
    batch_id: str | None
    verdict: Verdict


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
        self.admission = Admission(self.ledger)
        self.connectors = Connectors(settings.model_copy(update={"db_patience": patience}))

    def close(self) -> None:
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

    def submit(self, kind: str, args: Args, *, actor: str = "api") -> Submitted:
        """Store one job; once this returns it is not lost. Raises Busy, NeverFits, Conflict, DatabaseAway."""
        return self._submit(kind, [args], None, actor)

    def submit_batch(self, kind: str, many: Sequence[Args], *, tenant: str = "", actor: str = "api") -> Submitted:
        """Store a batch, all of it or nothing. At most BATCH_SIZE of its jobs run at once. Raises like `submit`."""
        batch = NewBatch(str(uuid.uuid4()), tenant, self.settings.batch_size)
        return self._submit(kind, many, batch, actor)

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

    def _submit(self, kind: str, many: Sequence[Args], batch: NewBatch | None, actor: str) -> Submitted:
        pipeline = self.pipeline(kind)
        verdict = self.admission.judge(pipeline.memory)
        jobs = [self._new(pipeline, args, batch) for args in many]
        self.ledger.intake.submit(jobs, batch, actor=actor)
        self.board.wake()
        return Submitted(tuple(job.id for job in jobs), batch.id if batch else None, verdict)

    def _new(self, pipeline: Pipeline[Any], args: Args, batch: NewBatch | None) -> NewJob:
        return NewJob(
            id=str(uuid.uuid4()),
            kind=pipeline.kind,
            version=pipeline.version,
            ref=args.ref,
            tenant=args.tenant,
            args=args.model_dump(mode="json"),
            need=pipeline.memory,
            max_attempts=pipeline.attempts,
            batch_id=batch.id if batch else None,
            exclusive_key=pipeline.exclusive(args),
        )
