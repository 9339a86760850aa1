"""The runner: takes one dispatched job through the stages of its pipeline, and writes down how it went.

Every pipeline gets progress, retries, resume, memory accounting, cancellation and clean-up from here.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ncr_worker import logs
from ncr_worker.board import Board
from ncr_worker.errors import Cancelled, GivenBack, LostOwnership, NcrError, NeedsMemory, Transient
from ncr_worker.job import Job, Reason, State
from ncr_worker.ledger import Checkpoint, Claim, Ledger
from ncr_worker.memory.domain import rss_anon
from ncr_worker.memory.slots import Order, Slots
from ncr_worker.pipeline import Parcel, Pipeline, Stage
from ncr_worker.progress import Progress, percent
from ncr_worker.settings import Settings
from ncr_worker.sql import DatabaseAway

log = logging.getLogger(__name__)
T = TypeVar("T")

SHOW_EVERY = 0.5  # seconds between two writes to the board


class Connectors:
    """The connectors of this process: each built at first use, shared, closed at the end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: dict[Callable[[Settings], Any], Any] = {}
        self._lock = threading.RLock()

    def use(self, connect: Callable[[Settings], T]) -> T:
        with self._lock:
            if connect not in self._made:
                self._made[connect] = connect(self._settings)
            made: T = self._made[connect]
            return made

    def close(self) -> None:
        for connector in self._made.values():
            if hasattr(connector, "close"):
                connector.close()
        self._made.clear()


class ActiveRun:
    """What a stage sees: implements `pipeline.Run` for one job in this process."""

    def __init__(self, runner: Runner, job: Job, pipeline: Pipeline[Any], slot: int) -> None:
        self.job = job
        self.settings = runner.settings
        self.folder = runner.settings.jobs_folder / job.id
        self.use = runner.connectors.use
        self._runner = runner
        self._pipeline = pipeline
        self._slot = slot
        self._lock = threading.Lock()
        self._progress = Progress()
        self._entered = self._shown = 0.0

    def enter(self, stage: Stage[Any]) -> None:
        self._progress, self._entered = Progress(stage=stage.name), time.monotonic()
        self.show(State.RUNNING, event=True)

    def advance(
        self,
        *,
        files: int | None = None,
        total_files: int | None = None,
        bytes: int | None = None,
        total_bytes: int | None = None,
        current: str | None = None,
    ) -> None:
        self.obey()
        with self._lock:
            old = self._progress
            self._progress = Progress(
                old.stage,
                old.files if files is None else files,
                old.total_files if total_files is None else total_files,
                old.bytes_done if bytes is None else bytes,
                old.bytes_total if total_bytes is None else total_bytes,
                old.current_file if current is None else current,
                time.monotonic() - self._entered,
            )
            due = time.monotonic() - self._shown >= SHOW_EVERY
            if due:
                self._shown = time.monotonic()
        if due:
            self.show(State.RUNNING)

    def obey(self) -> None:
        """Raise what main has ordered, if anything."""
        order = self._runner.slots.read(self._slot).order
        if order is Order.CANCEL:
            raise Cancelled("cancelled on request")
        if order is Order.GIVE_BACK:
            raise GivenBack("the worker stops", reason=Reason.GIVEN_BACK)
        if order is Order.LOST:
            raise LostOwnership(f"job {self.job.id} is not ours any more")

    def confirm_ownership(self) -> None:
        self.obey()
        self._runner.ledger.work.confirm(self.job)

    def hold(self, key: str) -> None:
        self._runner.ledger.work.hold(self.job, key)

    def wait(self, seconds: float) -> None:
        """Sleep, but obey orders."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.obey()
            time.sleep(min(left, 0.1))

    def show(self, state: State, *, message: str = "", event: bool = False) -> None:
        """Put the live status on the board."""
        progress = self._progress
        weights = [(stage.name, stage.weight) for stage in self._pipeline.stages]
        done = 100.0 if state is State.SUCCEEDED else percent(weights, progress.stage, progress.fraction)
        status = {
            "job_id": self.job.id,
            "kind": self.job.kind,
            "ref": self.job.ref,
            "status": self._pipeline.word(state, progress.stage),
            "stage": progress.stage,
            "attempt": self.job.attempt,
            "percentage": done,
            "files": progress.files,
            "total_files": progress.total_files,
            "bytes_done": progress.bytes_done,
            "bytes_total": progress.bytes_total,
            "current_file": progress.current_file,
            "rate": round(progress.rate),
            "eta": progress.eta,
            "message": message,
            "host": self.settings.host,
            "at": time.time(),
        }
        self._runner.board.show(self.job.id, status, event=event)


class Runner:
    """Runs jobs in this process, one after another. `slots`: shared with the worker's main process."""

    def __init__(
        self, settings: Settings, ledger: Ledger, board: Board, pipelines: Mapping[str, Pipeline[Any]], slots: Slots
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.board = board
        self.pipelines = pipelines
        self.slots = slots
        self.connectors = Connectors(settings)
        self.baseline = rss_anon(os.getpid())

    def run(self, kind: str, job_id: str, token: int, slot: int) -> None:
        """Run the job if this message is its first and only one; a stale or doubled message leaves no trace."""
        pipeline = self.pipelines[kind]
        claimant = f"{os.getpid()}-{secrets.token_hex(8)}"
        claim = self.ledger.work.claim(job_id, token, claimant, pipeline.stages[0].name)
        if claim is None:
            return
        clean = False
        try:
            self.slots.begin(slot, self.baseline)
            with logs.bind(claim.job):
                self._fold(pipeline, claim, slot)
            clean = True
        finally:
            self.slots.leave(slot, clean=clean)

    def _fold(self, pipeline: Pipeline[Any], claim: Claim, slot: int) -> None:
        run = ActiveRun(self, claim.job, pipeline, slot)
        run.folder.mkdir(parents=True, exist_ok=True)
        parcel: Parcel | None = None
        try:
            parcel, start = self._resume(pipeline, claim, run)
            done: Checkpoint | None = None
            for position, stage in enumerate(pipeline.stages[start:], start):
                if done or stage.name != claim.job.stage:
                    self.ledger.work.enter(claim.job, stage.name, done=done)
                self._reserve(pipeline.need(stage, parcel), slot)
                run.enter(stage)
                parcel = self._stage(stage, run, parcel)
                host = self.settings.host if stage.local else None
                done = Checkpoint(position, stage.name, host, parcel.model_dump_json())
            self._finish(run, State.SUCCEEDED, result=parcel.model_dump(mode="json"))
        except LostOwnership as error:
            log.warning("left the job alone: %s", error)
        except GivenBack as error:
            self._give_back(run, error)
        except Cancelled as error:
            self._abandon(pipeline, run, parcel)
            self._finish(run, State.CANCELLED, code=error.code, error=str(error))
        except Transient as error:
            self._retry(pipeline, run, parcel, error)
        except DatabaseAway:
            raise  # the ledger, for longer than our patience: main sees a dirty leave
        except NcrError as error:
            self._fail(pipeline, run, parcel, error.code, str(error))
        except MemoryError:
            # Celery would end the whole worker; it is this job's trouble alone.
            self._retry(pipeline, run, parcel, Transient("the stage ran out of memory", code="out_of_memory"))
        except Exception:  # the one place for bugs in stages
            reference = secrets.token_hex(4)
            log.exception("bug in a stage, reference %s", reference)
            text = f"internal error; the log of {self.settings.host} has the details under reference {reference}"
            self._fail(pipeline, run, parcel, "internal_error", text)

    def _resume(self, pipeline: Pipeline[Any], claim: Claim, run: ActiveRun) -> tuple[Parcel, int]:
        """The newest checkpoint that is whole on this host, and the stage after it; else the start."""
        for checkpoint in reversed(claim.checkpoints):
            known = checkpoint.position < len(pipeline.stages) and (
                pipeline.stages[checkpoint.position].name == checkpoint.stage
            )
            if not known or checkpoint.host not in (None, self.settings.host):
                continue
            stage = pipeline.stages[checkpoint.position]
            resumed = pipeline.parcel.model_validate_json(checkpoint.parcel)
            if checkpoint.host is None or stage.intact is None or stage.intact(run, resumed):
                return resumed, checkpoint.position + 1
        return pipeline.start(pipeline.args.model_validate(claim.job.args)), 0

    def _reserve(self, need: int, slot: int) -> None:
        if need > self.slots.read(slot).reserved:
            raise NeedsMemory(need)
        self.slots.lower(slot, need)

    def _stage(self, stage: Stage[Any], run: ActiveRun, parcel: Parcel) -> Parcel:
        """One stage, tried again in place while its error is expected to pass."""
        tries = 0
        while True:
            tries += 1
            run.obey()
            with logs.bind(run.job.evolve(stage=stage.name)):
                try:
                    after: Parcel = stage(run, parcel)
                    return after
                except (Transient, DatabaseAway) as error:
                    if tries >= stage.attempts:
                        raise Transient(str(error), code=error.code, retry_in=error.retry_in) from error
                    pause = error.retry_in if error.retry_in is not None else 0.5 * 2 ** (tries - 1)
                    log.warning("try %d of %d failed, next in %.1f s: %s", tries, stage.attempts, pause, error)
                    run.show(State.RUNNING, message=str(error))
            run.wait(min(pause, 30.0))

    def _retry(self, pipeline: Pipeline[Any], run: ActiveRun, parcel: Parcel | None, error: Transient) -> None:
        job = run.job
        if job.attempt >= job.max_attempts:
            self._fail(pipeline, run, parcel, error.code, f"gave up after {job.attempt} attempts: {error}")
            return
        pause = max(error.retry_in or 0.0, min(self.settings.retry_delay * 2 ** (job.attempt - 1), 300.0))
        log.warning("attempt %d of %d failed, next in %.1f s: %s", job.attempt, job.max_attempts, pause, error)
        self.ledger.work.give_back(
            job, reason=Reason.RETRY, retry_in=pause, counted=True, error_code=error.code, error=str(error)
        )
        run.show(State.QUEUED, message=str(error), event=True)

    def _give_back(self, run: ActiveRun, error: GivenBack) -> None:
        log.info("gave the job back: %s", error)
        need = error.need if isinstance(error, NeedsMemory) else None
        if error.reason == Reason.GIVEN_BACK:
            self._tidy(run)  # another host takes it over
        self.ledger.work.give_back(run.job, reason=Reason(error.reason), retry_in=error.retry_in, need=need)
        run.show(State.QUEUED, message=str(error), event=True)
        self.board.wake()

    def _fail(self, pipeline: Pipeline[Any], run: ActiveRun, parcel: Parcel | None, code: str, text: str) -> None:
        log.error("job failed: %s: %s", code, text)
        self._abandon(pipeline, run, parcel)
        self._finish(run, State.FAILED, code=code, error=text)

    def _abandon(self, pipeline: Pipeline[Any], run: ActiveRun, parcel: Parcel | None) -> None:
        """Undo what lies outside, before the job's exclusive keys are released. It may fail; the job ends anyway."""
        if pipeline.abandon is None or parcel is None:
            return
        try:
            pipeline.abandon(run, parcel)
        except Exception:  # whatever it is, it must not hide why the job ended
            log.exception("could not clean up outside")

    def _finish(
        self,
        run: ActiveRun,
        state: State,
        *,
        code: str | None = None,
        error: str | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> None:
        self._tidy(run)
        peak = self.slots.read(run._slot).peak
        try:
            self.ledger.work.finish(run.job, state, error_code=code, error=error, result=result, peak=peak)
        except LostOwnership as lost:
            log.warning("%s; it had %s here", lost, state)
            return
        run.show(state, message=error or "", event=True)

    def _tidy(self, run: ActiveRun) -> None:
        shutil.rmtree(run.folder, ignore_errors=True)
