"""What worker hosts count, for Prometheus: exact across pool children, also those that died or were renewed.

Each process writes its figures to mapped files of its own in one folder of its host, as prometheus_client's
multiprocess mode has it: they outlive a killed child. Their sum goes to the host's row in the ledger, where the API
finds it: so there is one place to scrape, and a worker needs no port.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector
from sqlalchemy import select, update

from ncr_worker.job import Job, Reason, State
from ncr_worker.ledger import Checkpoint, Claim, Work
from ncr_worker.ledger.observations import Seen
from ncr_worker.ledger.tables import host
from ncr_worker.sql import Database

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
MIB = 2**20
SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
BYTES = tuple(MIB * 2**power for power in range(4, 15))  # 16 MiB … 16 GiB


def fresh_folder(folder: Path) -> Path:
    """An empty folder for this worker's processes, below `folder`. A second worker there cannot disturb the first."""
    own = folder / str(os.getpid())
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    return own


def forget_others(own: Path) -> None:
    """Remove the figures of this host's earlier workers. Call only when none of them can be alive."""
    for path in own.parent.iterdir():
        if path != own:
            shutil.rmtree(path, ignore_errors=True)


class Metrics:
    """The counters of this process. Make it after the fork: prometheus_client's locks do not survive one.

    `process`: a name that no other living process of `folder` has. Who takes over the name of a dead one goes on with
    its figures, so that there are no more files than processes at once.
    """

    def __init__(self, folder: Path, process: str) -> None:
        self.folder = folder
        self.pid = os.getpid()
        os.environ[FOLDER] = str(folder)
        # prometheus_client makes this choice when it is imported: Celery's command line has done that, for Flower.
        values.ValueClass = values.MultiProcessValue(lambda: process)  # type: ignore[no-untyped-call]
        self.children = Counter("ncr_children_started", "Pool children that were started", registry=None)
        self.ended = Counter(
            "ncr_jobs_ended", "Jobs that a run here brought to their end", ["kind", "state", "code"], registry=None
        )
        self.returned = Counter(
            "ncr_jobs_returned",
            "Jobs that a run here gave back to the backlog",
            ["kind", "reason", "code"],
            registry=None,
        )
        self.lost = Counter("ncr_runs_lost", "Runs that ended without a word", ["reason"], registry=None)
        self.seconds = Histogram(
            "ncr_job_seconds", "Duration of the run that ended a job", ["kind"], registry=None, buckets=SECONDS
        )
        self.stages = Histogram(
            "ncr_stage_seconds", "Duration of a completed stage", ["kind", "stage"], registry=None, buckets=SECONDS
        )
        self.peaks = Histogram(
            "ncr_job_peak_bytes", "Most anonymous memory that a job used", ["kind"], registry=None, buckets=BYTES
        )

        self._running = {
            name: Counter(f"ncr_{name}", text, registry=None)
            for name, text in {
                "feeder_cpu_seconds": "CPU time of the feeder, without sending",
                "publish_cpu_seconds": "CPU time of the feeder for sending messages",
                "budget_exceeded": "Samples at which several jobs together were charged more than the budget",
                "jobs_ended_for_memory": "Runs that were ended because the host was short of memory",
            }.items()
        }
        self._told: dict[str, float] = {}

    def running(self, **totals: float) -> None:
        """Totals that are kept elsewhere, as they are now: `feeder_cpu_seconds` and so on."""
        for name, total in totals.items():
            self._running[name].inc(total - self._told.get(name, 0.0))
            self._told[name] = total

    def text(self) -> str:
        """The sum over all processes of the folder, as Prometheus reads it."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(self.folder))  # type: ignore[no-untyped-call]
        return generate_latest(registry).decode()


class _Clock(threading.local):
    """When the job of this thread was claimed, and entered its stage; monotonic seconds."""

    claimed = 0.0
    entered = 0.0
    stage: str | None = None


class CountedWork(Work):
    """Counts what it writes, once that is stored: each end of a job exactly once, whoever else wished to write it."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        super().__init__(database)
        self.metrics = metrics
        self._clock = _Clock()

    def claim(self, job_id: str, token: int, claimant: str, first_stage: str) -> Claim | None:
        claim = super().claim(job_id, token, claimant, first_stage)
        if claim is not None:
            self._clock.claimed = self._clock.entered = time.monotonic()
            self._clock.stage = claim.job.stage
        return claim

    def enter(
        self, running: Job, stage: str, *, done: Checkpoint | None = None, input_bytes: int | None = None
    ) -> None:
        super().enter(running, stage, done=done, input_bytes=input_bytes)
        if done is not None:
            self._completed(running)
        self._clock.entered, self._clock.stage = time.monotonic(), stage

    def finish(
        self,
        running: Job,
        state: State,
        *,
        error_code: str | None = None,
        error: str | None = None,
        result: Mapping[str, Any] | None = None,
        peak: int | None = None,
        seen: Sequence[Seen] = (),
    ) -> None:
        super().finish(running, state, error_code=error_code, error=error, result=result, peak=peak, seen=seen)
        if state is State.SUCCEEDED:
            self._completed(running)
        self.metrics.ended.labels(running.kind, state.value, error_code or "").inc()
        self.metrics.seconds.labels(running.kind).observe(time.monotonic() - self._clock.claimed)
        if peak is not None:
            self.metrics.peaks.labels(running.kind).observe(peak)

    def give_back(
        self,
        running: Job,
        *,
        reason: Reason,
        retry_in: float = 0.0,
        counted: bool = False,
        need: int | None = None,
        error_code: str | None = None,
        error: str | None = None,
    ) -> None:
        super().give_back(
            running,
            reason=reason,
            retry_in=retry_in,
            counted=counted,
            need=need,
            error_code=error_code,
            error=error,
        )
        self.metrics.returned.labels(running.kind, reason.value, error_code or "").inc()

    def lost(self, number: int, token: int, note: str, reason: Reason = Reason.WORKER_LOST) -> None:
        super().lost(number, token, note, reason)
        self.metrics.lost.labels(reason.value).inc()

    def outgrown(self, number: int, token: int, *, used: int, limit: int, actor: str) -> None:
        super().outgrown(number, token, used=used, limit=limit, actor=actor)
        self.metrics.lost.labels(Reason.OUT_OF_MEMORY.value).inc()

    def _completed(self, running: Job) -> None:
        duration = time.monotonic() - self._clock.entered
        self.metrics.stages.labels(running.kind, self._clock.stage or "").observe(duration)


class Reports:
    """What hosts have counted, as text in their rows of the ledger. Raises DatabaseAway."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def write(self, host_id: str, text: str) -> None:
        statement = update(host).where(host.c.id == host_id).values(metrics=text)
        self.database.transact(lambda connection: connection.execute(statement))

    def read(self) -> dict[str, str]:
        """Host id -> text, of those that have reported."""
        query = select(host.c.id, host.c.metrics).where(host.c.metrics.is_not(None))
        rows = self.database.read(lambda connection: connection.execute(query).all())
        return {row.id: row.metrics for row in rows}
