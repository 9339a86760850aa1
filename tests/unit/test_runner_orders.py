"""Orders, memory and clean-up in the runner: a run that is told to stop leaves nothing behind."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from engine import Tally, Work, WorkerHost, noting, pipeline, raising, soon, step
from ledgers import alter, claim, holds, waits

from ncr_worker.errors import GivenBack, Rejected
from ncr_worker.job import Event, Job, Reason, State
from ncr_worker.ledger import Checkpoint
from ncr_worker.memory.slots import Order, Phase
from ncr_worker.pipeline import MIB


def folder(host: WorkerHost, job: Job) -> Path:
    return host.settings.jobs_folder / job.id


def states(events: list[Event]) -> list[str]:
    return [event.state for event in events]


# --- orders -------------------------------------------------------------------------------------------
def ordered(host: WorkerHost, order: Order) -> Work:
    """Gets this order in the middle of a stage, and reports progress as every stage does."""

    def work(run: Any, _parcel: Tally) -> None:
        (run.folder / "half").touch()
        if order is Order.CANCEL:
            host.ledger.intake.cancel(run.job.id, actor="ann")
        host.slots.order(0, order)
        run.advance(files=1)
        raise AssertionError("the order was not obeyed")

    return work


def test_a_job_that_is_cancelled_stops_and_cleans_up(host: WorkerHost) -> None:
    host.submit(exclusive_key="target")
    job = host.run(pipeline(step("fetch", ordered(host, Order.CANCEL))))
    assert (job.state, job.error_code) == (State.CANCELLED, "cancelled")
    assert not folder(host, job).exists()
    assert holds(host.ledger) == {}
    assert host.slots.read(0).phase is Phase.LEFT


def test_a_job_that_is_given_back_costs_no_attempt_and_leaves_no_files(host: WorkerHost) -> None:
    host.submit()
    job = host.run(pipeline(step("plan"), step("fetch", ordered(host, Order.GIVE_BACK))))
    assert (job.state, job.reason, job.attempt) == (State.QUEUED, Reason.GIVEN_BACK, 0)
    assert waits(host.ledger, job.id) <= 0
    assert not folder(host, job).exists()


def test_a_job_that_is_not_ours_any_more_is_left_alone(host: WorkerHost) -> None:
    host.submit()
    job = host.run(pipeline(step("fetch", ordered(host, Order.LOST))))
    assert job.state is State.RUNNING  # whoever ordered this knows better
    assert host.slots.read(0).phase is Phase.LEFT


def test_orders_are_obeyed_between_two_tries_too(host: WorkerHost) -> None:
    def work(_run: Any, _parcel: Tally) -> None:
        host.slots.order(0, Order.GIVE_BACK)
        raise soon(retry_in=3600.0)

    host.submit()
    assert host.run(pipeline(step("validate", work, attempts=3))).reason == Reason.GIVEN_BACK


def test_a_cancel_is_noticed_between_stages_without_any_order(host: WorkerHost) -> None:
    ran: list[str] = []
    plan = step("plan", lambda run, _parcel: host.ledger.intake.cancel(run.job.id, actor="ann"))
    host.submit()
    job = host.run(pipeline(plan, step("fetch", noting(ran, "fetch"))))
    assert job.state is State.CANCELLED
    assert ran == []


def test_ownership_is_asked_of_the_ledger_before_an_outside_effect(host: WorkerHost) -> None:
    outside: list[str] = []

    def publish(run: Any, _parcel: Tally) -> None:
        host.ledger.work.lost(run.job.number, run.job.token, "no heartbeat")
        run.confirm_ownership()
        outside.append("published")

    host.submit()
    job = host.run(pipeline(step("publish", publish)))
    assert outside == []
    assert (job.state, job.reason) == (State.QUEUED, Reason.WORKER_LOST)


def test_a_run_that_was_replaced_does_not_end_the_job(host: WorkerHost) -> None:
    def slow(run: Any, _parcel: Tally) -> None:
        host.ledger.work.lost(run.job.number, run.job.token, "no heartbeat")

    host.submit()
    job = host.run(pipeline(step("fetch", slow)))
    assert job.state is State.QUEUED
    assert "succeeded" not in states(host.ledger.reads.events(job.id))


def test_a_target_that_another_job_holds_is_waited_for(host: WorkerHost) -> None:
    host.submit(kind="other", exclusive_key="target")
    claim(host.ledger, host.pick())
    kind = pipeline(step("publish", lambda run, _parcel: run.hold("target")))
    host.submit()
    job = host.run(kind)
    assert (job.state, job.reason, job.attempt) == (State.QUEUED, Reason.TARGET_BUSY, 0)
    assert waits(host.ledger, job.id) == pytest.approx(2, abs=1)


# --- memory -------------------------------------------------------------------------------------------
def test_a_stage_that_needs_more_yields_with_its_need_and_costs_no_attempt(host: WorkerHost) -> None:
    host.submit(need=100 * MIB)
    kind = pipeline(step("plan"), step("pack", memory=lambda _parcel: 300 * MIB), memory=100 * MIB)
    job = host.run(kind)
    assert (job.state, job.reason, job.attempt, job.need) == (State.QUEUED, Reason.YIELDED, 0, 300 * MIB)
    job = host.run(kind)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 1)
    running = [event.stage for event in host.ledger.reads.events(job.id) if event.state == "running"]
    assert running == ["plan", "pack", "plan", "pack"], "shown at its first stage until it is known where it goes on"


def test_a_stage_that_needs_less_lowers_the_charge(host: WorkerHost) -> None:
    charged: list[int] = []
    look = step("upload", lambda _r, _p: charged.append(host.slots.read(0).reserved), memory=lambda _parcel: 10 * MIB)
    host.submit(need=100 * MIB)
    assert host.run(pipeline(look, memory=100 * MIB)).state is State.SUCCEEDED
    assert charged == [10 * MIB]


# --- cleaning up outside ------------------------------------------------------------------------------
def with_abandon(host: WorkerHost, work: Work) -> tuple[Job, list[tuple[str, ...]]]:
    abandoned: list[tuple[str, ...]] = []

    def abandon(run: Any, parcel: Tally) -> None:
        assert holds(host.ledger), "the key is held until everything is clean"
        abandoned.append(parcel.done)

    host.submit(exclusive_key="target", max_attempts=2)
    return host.run(pipeline(step("plan"), step("upload", work, attempts=1), abandon=abandon)), abandoned


def test_a_job_that_fails_is_cleaned_up_outside_first(host: WorkerHost) -> None:
    job, abandoned = with_abandon(host, raising(Rejected("no")))
    assert job.state is State.FAILED
    assert abandoned == [("plan",)]


def test_a_job_that_is_cancelled_is_cleaned_up_outside_too(host: WorkerHost) -> None:
    job, abandoned = with_abandon(host, ordered(host, Order.CANCEL))
    assert job.state is State.CANCELLED
    assert abandoned == [("plan",)]


@pytest.mark.parametrize("work", [raising(), raising(soon()), raising(GivenBack("", reason=Reason.TARGET_BUSY))])
def test_a_job_that_succeeds_or_comes_back_is_not_cleaned_up(host: WorkerHost, work: Work) -> None:
    _job, abandoned = with_abandon(host, work)
    assert abandoned == []


def test_a_job_asked_to_stop_while_its_stage_fails_is_cleaned_up(host: WorkerHost) -> None:
    def work(run: Any, _parcel: Tally) -> None:
        host.ledger.intake.cancel(run.job.id, actor="ann")
        raise soon()

    job, abandoned = with_abandon(host, work)
    assert job.state is State.CANCELLED
    assert abandoned == [("plan",)]
    assert not folder(host, job).exists()


def test_a_failing_clean_up_does_not_hide_why_the_job_ended(host: WorkerHost, caplog: pytest.LogCaptureFixture) -> None:
    def abandon(_run: Any, _parcel: Tally) -> None:
        raise OSError("SFTP is away")

    host.submit()
    job = host.run(pipeline(step("plan", raising(Rejected("no", code="unknown_sku"))), abandon=abandon))
    assert (job.state, job.error_code) == (State.FAILED, "unknown_sku")
    assert any("clean up" in record.message for record in caplog.records if record.levelno == logging.ERROR)


def test_after_too_many_deaths_the_last_run_only_cleans_up(host: WorkerHost) -> None:
    job_id = host.submit(max_attempts=1, exclusive_key="target")
    job = claim(host.ledger, host.pick())
    host.ledger.work.enter(job, "upload", done=Checkpoint(0, "plan", None, Tally(args={}).model_dump_json()))
    assert job.token is not None
    host.ledger.work.lost(job.number, job.token, "process 17 died")
    alter(host.ledger, job_id, next_run_at=0.0)
    done: list[str] = []
    kind = pipeline(
        step("plan"),
        step("upload", noting(done, "upload")),
        abandon=noting(done, "abandon"),
    )
    failed = host.run(kind)
    assert done == ["abandon"]
    assert (failed.state, failed.error_code) == (State.FAILED, "worker_lost")
    assert "process 17 died" in (failed.error or "")
