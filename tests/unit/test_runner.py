"""The runner on a real ledger with small pipelines: whatever a stage does, the job ends up where it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine import Children, Tally, WorkerHost, noting, pipeline, raising, soon, step
from ledgers import alter, waits

from ncr_worker.errors import Busy, GivenBack, NcrError, Rejected
from ncr_worker.job import Job, Reason, State
from ncr_worker.memory.slots import Phase
from ncr_worker.pipeline import MIB
from ncr_worker.sql import Database, DatabaseAway


def folder(host: WorkerHost, job: Job) -> Path:
    return host.settings.jobs_folder / job.id


def due(host: WorkerHost, job: Job) -> None:
    alter(host.ledger, job.id, next_run_at=0.0)


# --- the way through ----------------------------------------------------------------------------------
def test_a_job_goes_through_its_stages_and_keeps_the_result(host: WorkerHost) -> None:
    host.submit(args={"text": "hello"})
    job = host.run(pipeline(step("plan"), step("fetch"), step("pack")))
    assert (job.state, job.attempt, job.stage, job.error) == (State.SUCCEEDED, 1, "pack", None)
    assert job.result == {"args": {"text": "hello"}, "done": ["plan", "fetch", "pack"]}
    trail = [(event.state, event.stage) for event in host.ledger.reads.events(job.id)]
    assert trail[2:] == [("running", "plan"), ("running", "fetch"), ("running", "pack"), ("succeeded", "pack")]


def test_a_stage_has_a_folder_of_its_own_and_nothing_of_it_stays(host: WorkerHost) -> None:
    def work(run: Any, _parcel: Tally) -> None:
        (run.folder / "model.glb").write_text("glTF")

    host.submit()
    job = host.run(pipeline(step("fetch", work)))
    assert job.state is State.SUCCEEDED
    assert list(host.settings.jobs_folder.iterdir()) == []


def test_the_peak_of_a_run_is_kept(host: WorkerHost) -> None:
    blocks: list[bytearray] = []

    def work(_run: Any, _parcel: Tally) -> None:
        blocks.append(bytearray(b"x" * (48 * MIB)))
        host.slots.sample(0)

    host.submit()
    job = host.run(pipeline(step("pack", work)))
    blocks.clear()
    assert 44 * MIB < (job.peak or 0) < 120 * MIB, "the block, and perhaps what it was copied from"


def test_a_doubled_or_stale_message_leaves_no_trace(host: WorkerHost) -> None:
    kind = pipeline(step("plan"))
    host.submit()
    picked = host.pick()
    host.runner(kind).run("tally", picked.job_id, picked.token, 0)
    host.slots.arm(0, 99, MIB)  # the slot has another job by now
    ended, trail = host.ledger.reads.job(picked.job_id), host.ledger.reads.events(picked.job_id)
    for token in (picked.token, picked.token + 1):
        host.runner(kind).run("tally", picked.job_id, token, 0)
    assert host.ledger.reads.job(picked.job_id) == ended
    assert host.ledger.reads.events(picked.job_id) == trail
    assert (host.slots.read(0).token, host.slots.read(0).phase) == (99, Phase.SENT)
    assert not (host.settings.jobs_folder / picked.job_id).exists()


def test_connectors_are_built_once_and_closed_with_the_runner(host: WorkerHost) -> None:
    class Connector:
        closed = False

        def close(self) -> None:
            self.closed = True

    built: list[Connector] = []

    def connect(_settings: object) -> Connector:
        built.append(Connector())
        return built[-1]

    kind = pipeline(step("plan", lambda run, _: run.use(connect)), step("fetch", lambda run, _: run.use(connect)))
    host.submit()
    picked = host.pick()
    runner = host.runner(kind)
    runner.run("tally", picked.job_id, picked.token, 0)
    assert len(built) == 1
    assert not built[0].closed
    runner.connectors.close()
    assert built[0].closed


# --- resume -------------------------------------------------------------------------------------------
def stopped_after(host: WorkerHost, *stages: Any) -> Job:
    """A job that went through `stages` and was then given back for a busy target, its folder left."""
    busy = raising(GivenBack("busy", reason=Reason.TARGET_BUSY))
    host.submit()
    job = host.run(pipeline(*stages, step("last", busy)))
    assert job.state is State.QUEUED
    return job


def second_run(host: WorkerHost, *stages: Any) -> tuple[Job, list[str]]:
    """The job again, and the stages that really ran in this second run."""
    ran: list[str] = []
    again = [step(s.name, noting(ran, s.name), local=s.local, intact=s.intact) for s in stages]
    return host.run(pipeline(*again, step("last", noting(ran, "last")))), ran


def test_a_second_run_starts_after_the_last_checkpoint(host: WorkerHost) -> None:
    stages = (step("plan"), step("fetch"))
    stopped_after(host, *stages)
    job, ran = second_run(host, *stages)
    assert ran == ["last"]
    assert job.result is not None
    assert job.result["done"] == ["plan", "fetch", "last"]


@pytest.mark.parametrize(("intact", "expected"), [(True, ["last"]), (False, ["fetch", "last"])])
def test_a_local_checkpoint_counts_while_its_files_are_whole(
    host: WorkerHost, intact: bool, expected: list[str]
) -> None:
    def is_intact(run: Any, _parcel: Tally) -> bool:
        return intact and run.folder.is_dir()

    stages = (step("plan"), step("fetch", local=True, intact=is_intact))
    stopped_after(host, *stages)
    _job, ran = second_run(host, *stages)
    assert ran == expected


def test_on_another_host_a_run_starts_after_the_last_checkpoint_without_files(host: WorkerHost, tmp_path: Path) -> None:
    stages = (step("plan"), step("fetch", local=True, intact=lambda _r, _p: True), step("pack", local=True))
    stopped_after(host, *stages)
    elsewhere = host.settings.model_copy(update={"host_id": "h2"})
    _job, ran = second_run(WorkerHost(elsewhere, host.ledger.database), *stages)
    assert ran == ["fetch", "pack", "last"]


def test_a_checkpoint_of_an_unknown_stage_is_passed_over(host: WorkerHost) -> None:
    stopped_after(host, step("plan"), step("renamed"))
    _job, ran = second_run(host, step("plan"), step("fetch"))
    assert ran == ["fetch", "last"]


def test_each_stage_sees_what_the_one_before_made_also_after_a_resume(host: WorkerHost) -> None:
    seen: list[tuple[str, ...]] = []
    stages = (step("plan"), step("fetch"))
    stopped_after(host, *stages)
    host.run(pipeline(*stages, step("last", lambda _run, parcel: seen.append(parcel.done))))
    assert seen == [("plan", "fetch")]


# --- errors -------------------------------------------------------------------------------------------
def test_an_error_that_passes_is_tried_again_in_place(host: WorkerHost) -> None:
    host.submit()
    job = host.run(pipeline(step("fetch", raising(soon(), soon()), attempts=3)))
    assert (job.state, job.attempt) == (State.SUCCEEDED, 1)


def test_a_database_of_a_stage_that_is_away_for_a_moment_is_such_an_error(host: WorkerHost) -> None:
    host.submit()
    away = DatabaseAway("the catalog does not answer", retry_in=0.0)
    assert host.run(pipeline(step("plan", raising(away), attempts=2))).state is State.SUCCEEDED


def test_an_error_that_stays_costs_an_attempt_and_waits_longer_each_time(host: WorkerHost) -> None:
    host.submit(max_attempts=3)
    kind = pipeline(step("plan"), step("fetch", raising(*[soon()] * 9), attempts=1))
    pauses = []
    for attempt in (1, 2):
        job = host.run(kind)
        assert (job.state, job.reason, job.attempt) == (State.QUEUED, Reason.RETRY, attempt)
        assert (job.error_code, job.error) == ("s3_unavailable", "S3 is away")
        pauses.append(waits(host.ledger, job.id))
        due(host, job)
    assert pauses == [pytest.approx(30, abs=5), pytest.approx(60, abs=5)]
    job = host.run(kind)
    assert (job.state, job.attempt, job.error_code) == (State.FAILED, 3, "s3_unavailable")
    assert job.error == "gave up after 3 attempts: S3 is away"


def test_the_wait_that_the_other_side_asks_for_is_the_least(host: WorkerHost) -> None:
    host.submit()
    job = host.run(pipeline(step("validate", raising(soon(retry_in=500.0)), attempts=1)))
    assert waits(host.ledger, job.id) == pytest.approx(500, abs=10)


@pytest.mark.parametrize(
    "error", [Rejected("no such sku", code="unknown_sku"), NcrError("odd", code="odd"), Busy("full", code="full")]
)
def test_an_error_that_no_retry_can_help_ends_the_job_at_once(host: WorkerHost, error: NcrError) -> None:
    host.submit()
    job = host.run(pipeline(step("plan", raising(error), attempts=5)))
    assert (job.state, job.attempt, job.error_code, job.error) == (State.FAILED, 1, error.code, str(error))
    assert not folder(host, job).exists()


def test_a_bug_fails_the_job_with_a_reference_to_the_logged_traceback(
    host: WorkerHost, caplog: pytest.LogCaptureFixture
) -> None:
    host.submit()
    job = host.run(pipeline(step("plan", raising(ZeroDivisionError("secret detail")))))
    assert (job.state, job.error_code) == (State.FAILED, "internal_error")
    assert job.error is not None
    assert "secret" not in job.error
    assert "Traceback" not in job.error
    reference = job.error.split()[-1]
    [record] = [record for record in caplog.records if record.exc_info]
    assert reference in record.getMessage()
    assert "secret detail" in str(record.exc_info)


def test_arguments_that_no_longer_fit_the_pipeline_fail_the_job(host: WorkerHost) -> None:
    host.submit(args={"unknown": 1})
    job = host.run(pipeline(step("plan")))
    assert (job.state, job.error_code) == (State.FAILED, "internal_error")


def test_running_out_of_memory_is_this_jobs_trouble_alone(host: WorkerHost) -> None:
    host.submit(max_attempts=2)
    kind = pipeline(step("pack", raising(MemoryError(), MemoryError())))
    job = host.run(kind)
    assert (job.state, job.reason, job.error_code) == (State.QUEUED, Reason.OUT_OF_MEMORY, "out_of_memory")
    assert job.need == 200 * MIB, "it is tried again with more"
    due(host, job)
    job = host.run(kind)
    assert (job.state, job.need) == (State.QUEUED, 0), "one more run, to clean up"
    due(host, job)
    job = host.run(kind)
    assert (job.state, job.error_code) == (State.FAILED, "out_of_memory")
    assert "100 MiB were reserved" in (job.error or "")
    assert "of 200 MiB" in (job.error or "")
    assert host.slots.read(0).phase is Phase.LEFT


def test_a_ledger_that_is_away_leaves_the_slot_dirty(host: WorkerHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_arguments: object, **_options: object) -> None:
        raise DatabaseAway("the database does not answer")

    host.submit()
    picked = host.pick()
    monkeypatch.setattr(host.ledger.work, "finish", away)
    with pytest.raises(DatabaseAway):
        host.runner(pipeline(step("plan"))).run("tally", picked.job_id, picked.token, 0)
    assert host.slots.read(0).phase is Phase.LEFT_DIRTY
    assert host.ledger.reads.job(picked.job_id).state is State.RUNNING


# --- the whole in a child -----------------------------------------------------------------------------
def test_a_forked_child_runs_a_job_with_connections_of_its_own(host: WorkerHost) -> None:
    host.submit()
    picked = host.pick()
    host.ledger.database.survive_forks()

    def work() -> None:
        child = WorkerHost(host.settings, Database(host.settings.ledger_url))
        child.slots = host.slots
        child.runner(pipeline(step("plan"))).run("tally", picked.job_id, picked.token, 0)

    children = Children()
    assert children.wait(children.start(work)) == 0
    assert host.ledger.reads.job(picked.job_id).state is State.SUCCEEDED
    assert host.slots.read(0).phase is Phase.LEFT
