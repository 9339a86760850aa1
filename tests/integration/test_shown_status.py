"""Whatever happens to a job, and whoever else writes to the board: what is shown goes back with a reason only."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from ledgers import emptied
from serving import order, settings_for, start
from sqlalchemy import update

from ncr_worker.app import App
from ncr_worker.job import Job, Reason, State
from ncr_worker.ledger import Checkpoint, schema
from ncr_worker.ledger.tables import job as jobs
from ncr_worker.memory.slots import JobSlot, Slots
from ncr_worker.pipelines.deliver import PIPELINE
from ncr_worker.pipelines.deliver.model import DeliverArgs
from ncr_worker.progress import percent
from ncr_worker.run import ActiveRun
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.views.models import JobStatus

RANKS = {"pending": 0, "waiting": 0, "processing": 1, "validation_passed": 2, "uploading": 3}
STAGES = [stage.name for stage in PIPELINE.stages]
WEIGHTS = [(stage.name, stage.weight) for stage in PIPELINE.stages]
FILES = 10


def rank(word: str) -> int:
    return RANKS.get(word, len(RANKS))


class ShownStatus(RuleBasedStateMachine):
    """One job. Its runs go on writing to the board long after they have lost it."""

    app: App

    runs = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        emptied(self.app.database)
        self.app.admission.forget()
        self.slots = Slots(1)
        (self.task_id,) = self.app.submit("deliver", DeliverArgs.model_validate(order())).job_ids
        self.files: dict[float | None, int] = {}  # of each run, in its present stage
        self.shown: JobStatus | None = None
        self.last = 0  # event

    @property
    def job(self) -> Job:
        return self.app.ledger.reads.job(self.task_id)

    def _is(self, *states: State) -> bool:
        return self.job.state in states

    def _enter(self, run: ActiveRun, stage: str) -> None:
        self.files[run.job.started_at] = 0
        run.enter(PIPELINE.stages[STAGES.index(stage)])

    # --- what happens to the job ----------------------------------------------------------------------
    @precondition(lambda self: self._is(State.QUEUED))
    @rule(target=runs)
    def it_is_started(self) -> ActiveRun:
        due = update(jobs).values(next_run_at=0.0)
        self.app.database.transact(lambda connection: connection.execute(due))
        job = start(self.app).job
        slot = JobSlot(self.slots, 0, job.token or 0)
        run = ActiveRun(job, PIPELINE, self.app.connectors, self.app.ledger.work, self.app.board, slot)
        self._enter(run, job.stage or STAGES[0])
        return run

    @precondition(lambda self: self._is(State.RUNNING))
    @rule(run=runs)
    def a_stage_is_done(self, run: ActiveRun) -> None:
        job = self.job
        position = STAGES.index(job.stage or "")
        if run.job.token == job.token and position + 1 < len(STAGES):
            done = Checkpoint(position, STAGES[position], None, "{}")
            self.app.ledger.work.enter(run.job, STAGES[position + 1], done=done)
            self._enter(run, STAGES[position + 1])

    @rule(run=runs, files=st.integers(0, FILES))
    def a_run_shows_how_far_it_is(self, run: ActiveRun, files: int) -> None:
        self.files[run.job.started_at] = files
        run.advance(files=files, total_files=FILES)
        run.show(State.RUNNING)

    @rule(run=runs, reason=st.sampled_from([Reason.RETRY, Reason.YIELDED, Reason.GIVEN_BACK]))
    def it_is_given_back(self, run: ActiveRun, reason: Reason) -> None:
        self.app.ledger.work.give_back(run.job, reason=reason, counted=reason is Reason.RETRY)
        run.show(State.QUEUED, message="later", event=True)

    @precondition(lambda self: self._is(State.DISPATCHED, State.RUNNING, State.CANCELLING))
    @rule()
    def its_process_dies(self) -> None:
        self.app.ledger.work.lost(self.job.number, self.job.token or 0, "died")

    @precondition(lambda self: self._is(State.RUNNING, State.CANCELLING))
    @rule(run=runs, code=st.sampled_from(["source_missing", "validation_failed"]))
    def it_ends(self, run: ActiveRun, code: str) -> None:
        if run.job.token == self.job.token:
            self.app.ledger.work.finish(run.job, State.FAILED, error_code=code, error="because")
            run.show(State.FAILED, message="because", event=True)

    @precondition(lambda self: not self.job.terminal)
    @rule()
    def a_person_cancels_it(self) -> None:
        self.app.cancel(self.task_id, actor="ann")

    @precondition(lambda self: self._is(State.FAILED, State.CANCELLED))
    @rule()
    def a_person_retries_it(self) -> None:
        self.app.retry(self.task_id, actor="ann")

    # --- what is always true --------------------------------------------------------------------------
    @invariant()
    def it_never_goes_back_without_a_reason(self) -> None:
        new = self.app.look.events(self.task_id, after=self.last)
        now, before = self.app.look.status(self.task_id), self.shown
        visible = any(event.state == State.QUEUED and event.reason for event in new)
        assert before is None or visible or rank(now.status) >= rank(before.status), (before, now, new)
        self.shown, self.last = now, new[-1].id if new else self.last

    @invariant()
    def the_figures_are_of_this_run_and_stage(self) -> None:
        job, now = self.job, self.app.look.status(self.task_id)
        files = self.files.get(job.started_at, 0)
        known: tuple[float, ...] = (percent(WEIGHTS, job.stage, 0.0), percent(WEIGHTS, job.stage, files / FILES))
        assert now.progress.percentage in known
        assert now.progress.processed_files in (0, files)
        assert job.state not in (State.QUEUED, State.DISPATCHED) or now.progress.percentage == known[0]


@pytest.fixture
def machine(valkey: Valkey) -> Any:
    folder = Path(tempfile.mkdtemp(prefix="ncr-"))
    app = App(settings_for(f"sqlite:///{folder / 'ncr.sqlite3'}", valkey.url, folder))
    schema.upgrade(app.database)
    yield type("Machine", (ShownStatus,), {"app": app})
    app.close()
    shutil.rmtree(folder)


def test_what_is_shown_goes_back_with_a_reason_only(machine: Any) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=[Phase.generate],
        ),
    )
