"""The runner: takes one dispatched job through the stages of its pipeline, and writes down how it went.

Every pipeline gets progress, retries, resume, memory accounting, cancellation and clean-up from here.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from typing import Any

from ncr_worker import logs
from ncr_worker.board import Board
from ncr_worker.errors import (
    Cancelled,
    GivenBack,
    LostOwnership,
    NcrError,
    NeedsMemory,
    OutOfMemory,
    StageError,
    Transient,
)
from ncr_worker.job import Reason, State
from ncr_worker.ledger import Checkpoint, Claim, Ledger
from ncr_worker.ledger.observations import Seen
from ncr_worker.memory.domain import Domain, rss_anon
from ncr_worker.memory.needs import Needs
from ncr_worker.memory.peaks import StagePeak
from ncr_worker.memory.slots import JobSlot, Slots
from ncr_worker.pipeline import Parcel, Pipeline, Stage
from ncr_worker.run import ActiveRun, Connectors
from ncr_worker.settings import Settings
from ncr_worker.sql import DatabaseAway

log = logging.getLogger(__name__)

LITTLE = 1.05  # times what is reserved: two predictions of the same differ by more, and a yield costs more


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
        self.needs = Needs(ledger.database, learned=settings.memory_prediction == "learned")

    def run(self, kind: str, job_id: str, token: int, slot: int) -> None:
        """Run the job if this message is its first and only one; a stale or doubled message leaves no trace."""
        pipeline = self.pipelines[kind]
        claimant = f"{os.getpid()}-{secrets.token_hex(8)}"
        claim = self.ledger.work.claim(job_id, token, claimant, pipeline.stages[0].name)
        if claim is None:
            return
        mine = JobSlot(self.slots, slot, token)
        if not mine.begin(rss_anon(os.getpid())):
            return
        clean = False
        try:
            with logs.bind(claim.job):
                self._run(ActiveRun(claim.job, pipeline, self.connectors, self.ledger.work, self.board, mine), claim)
            clean = True
        finally:
            mine.leave(clean=clean)

    def _run(self, run: ActiveRun, claim: Claim) -> None:
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            result = self._fold(run, claim)
        except Exception as error:  # noqa: BLE001 - the one place that decides what an error means for its job
            self._conclude(run, self._overruled(run, error))
        else:
            if len(run.seen) == len(run.pipeline.stages):  # else an earlier run has done a part of it
                run.seen.append(self._whole(run, result))
            self._finish(run, State.SUCCEEDED, result=result.model_dump(mode="json"))

    def _fold(self, run: ActiveRun, claim: Claim) -> Parcel:
        """The stages that are still to do, one after another; each result is a checkpoint before the next begins."""
        stages = run.pipeline.stages
        parcel, start = self._resume(run, claim)
        run.parcel = parcel
        if run.job.attempt > run.job.max_attempts:  # its end is decided: all that is left to do is to clean up
            wound_up = Cancelled if run.job.error_code == Cancelled.code else StageError
            raise wound_up(run.job.error or "its attempts are used up", code=run.job.error_code)
        done: Checkpoint | None = None
        for position, stage in enumerate(stages[start:], start):
            run.parcel = parcel
            if done or stage.name != run.job.stage:
                self.ledger.work.enter(run.job, stage.name, done=done, input_bytes=parcel.size)
            declared = run.pipeline.need(stage, parcel)
            need = self.needs.predict(run.job.kind, run.job.version, stage.name, parcel.size, declared).need
            if stage.name == claim.stopped_at and run.job.need > (run.job.predicted or 0):
                need = run.job.need  # it stopped here, for want of so much
            if need > run.slot.reserved * LITTLE:
                if not run.slot.ask(need):
                    raise NeedsMemory(need)
                self.ledger.work.granted(run.job, need)
            run.slot.lower(need)
            run.enter(stage)
            measured = StagePeak(run.slot)
            parcel = self._stage(stage, run, parcel)
            peak, seconds = measured.end()
            run.seen.append(Seen(run.job.kind, run.job.version, stage.name, parcel.size, declared, peak, seconds))
            host = self.settings.host if stage.local else None
            done = Checkpoint(position, stage.name, host, parcel.model_dump_json())
        return parcel

    def _whole(self, run: ActiveRun, parcel: Parcel) -> Seen:
        job, seconds = run.job, sum(seen.seconds for seen in run.seen)
        declared = run.pipeline.declared(run.pipeline.args.model_validate(job.args))
        return Seen(job.kind, job.version, None, parcel.size, declared, run.peak, seconds)

    def _resume(self, run: ActiveRun, claim: Claim) -> tuple[Parcel, int]:
        """The newest checkpoint that is whole on this host, and the stage after it; else the start."""
        pipeline = run.pipeline
        names = [stage.name for stage in pipeline.stages]
        for checkpoint in reversed(claim.checkpoints):
            if names[checkpoint.position : checkpoint.position + 1] != [checkpoint.stage]:
                continue  # written by another version of the pipeline
            if checkpoint.host not in (None, self.settings.host):
                continue
            intact = pipeline.stages[checkpoint.position].intact
            parcel = pipeline.parcel.model_validate_json(checkpoint.parcel)
            if checkpoint.host is None or intact is None or intact(run, parcel):
                return parcel, checkpoint.position + 1
        return pipeline.start(pipeline.args.model_validate(claim.job.args)), 0

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

    def _overruled(self, run: ActiveRun, error: Exception) -> Exception:
        """What counts more than the error: the job may be another run's by now, whose work we must not touch.

        And a person's cancel goes before any wish to come back later: only so is it cleaned up outside.
        """
        if isinstance(error, LostOwnership | DatabaseAway):
            return error
        try:
            self.ledger.work.confirm(run.job)
        except (LostOwnership, DatabaseAway) as order:
            return order
        except Cancelled as order:
            return order if isinstance(error, GivenBack | Transient | OutOfMemory | MemoryError) else error
        return error

    def _conclude(self, run: ActiveRun, error: Exception) -> None:
        match error:
            case LostOwnership():
                log.warning("left the job alone: %s", error)
            case GivenBack():
                self._give_back(run, error)
            case OutOfMemory() | MemoryError():  # Celery would end the whole worker; it is this job's trouble alone
                self._outgrow(run)
            case Cancelled():
                self._fail(run, error, state=State.CANCELLED)
            case Transient():
                self._retry(run, error)
            case DatabaseAway():
                raise error  # the ledger, for longer than our patience: main sees a dirty leave
            case NcrError():
                self._fail(run, error)
            case _:
                reference = secrets.token_hex(4)
                log.error("bug in a stage, reference %s", reference, exc_info=error)
                text = f"internal error; the log of {self.settings.host} has the details under reference {reference}"
                self._fail(run, NcrError(text))

    def _retry(self, run: ActiveRun, error: Transient) -> None:
        job = run.job
        if job.attempt >= job.max_attempts:
            self._fail(run, StageError(f"gave up after {job.attempt} attempts: {error}", code=error.code))
            return
        pause = max(error.retry_in or 0.0, min(self.settings.retry_delay * 2 ** (job.attempt - 1), 300.0))
        log.warning("attempt %d of %d failed, next in %.1f s: %s", job.attempt, job.max_attempts, pause, error)
        self.ledger.work.give_back(
            job, reason=Reason.RETRY, retry_in=pause, counted=True, error_code=error.code, error=str(error)
        )
        run.show(State.QUEUED, message=str(error), event=True)

    def _outgrow(self, run: ActiveRun) -> None:
        used, limit = run.peak, Domain(self.settings.host_memory_bytes).read().limit
        log.warning("ran out of memory: used %d bytes, %d were reserved", used, run.slot.reserved)
        self.ledger.work.outgrown(run.job.number, run.job.token or 0, used=used, limit=limit, actor="runner")
        run.show(State.QUEUED, message="ran out of memory; it is tried again with more", event=True)
        self.board.wake()

    def _give_back(self, run: ActiveRun, error: GivenBack) -> None:
        log.info("gave the job back: %s", error)
        need = max(run.job.need, error.need) if isinstance(error, NeedsMemory) else None
        down = error.reason == Reason.SERVICE_DOWN
        if error.reason == Reason.GIVEN_BACK:
            self._tidy(run)  # another host takes it over
        shown: dict[str, Any] = {"error_code": error.code, "error": str(error)} if down else {}
        self.ledger.work.give_back(run.job, reason=Reason(error.reason), retry_in=error.retry_in, need=need, **shown)
        run.show(State.QUEUED, message=str(error), event=True)
        self.board.wake()

    def _fail(self, run: ActiveRun, error: NcrError, *, state: State = State.FAILED) -> None:
        level = logging.INFO if state is State.CANCELLED else logging.ERROR
        log.log(level, "job %s: %s: %s", state, error.code, error)
        if run.pipeline.abandon is not None and run.parcel is not None:
            try:  # before the job's exclusive keys are released
                run.pipeline.abandon(run, run.parcel)
            except Exception:  # whatever it is, it must not hide why the job ended
                log.exception("could not clean up outside")
        self._finish(run, state, error=error, result=error.result)

    def _finish(
        self, run: ActiveRun, state: State, *, error: NcrError | None = None, result: Mapping[str, Any] | None = None
    ) -> None:
        code, text = (error.code, str(error)) if error else (None, None)
        try:
            seen = run.seen if state is State.SUCCEEDED else ()
            self.ledger.work.finish(
                run.job, state, error_code=code, error=text, result=result, peak=run.peak, seen=seen
            )
        except LostOwnership as lost:
            log.warning("%s; it had %s here", lost, state)
            return  # and the folder is not ours either: another run of the job may be on this host
        self._tidy(run)
        run.show(state, message=text or "", event=True)

    def _tidy(self, run: ActiveRun) -> None:
        shutil.rmtree(run.folder, ignore_errors=True)
