"""Every pair of states: a change that the table allows is made and noted, any other is refused without a trace."""

from __future__ import annotations

import pytest
from ledgers import LEASE, alter, claim, holds, pick_one, start, submit
from sqlalchemy import select

from ncr_worker.job import OUT, TERMINAL, TRANSITIONS, Event, Reason, State
from ncr_worker.ledger import Checkpoint, Ledger
from ncr_worker.ledger.tables import checkpoint
from ncr_worker.ledger.transition import move


def change(ledger: Ledger, job_id: str, target: State, token: int | None = None) -> bool:
    number = ledger.reads.job(job_id).number
    return ledger.database.transact(lambda c: move(c, number, target, actor="test", note="why", token=token))


@pytest.mark.parametrize("source", State)
def test_exactly_the_allowed_changes_are_made_and_noted(ledger: Ledger, source: State) -> None:
    for target in State:
        job_id = submit(ledger)
        alter(ledger, job_id, state=source.value, token=7)
        before = ledger.reads.events(job_id)
        moved = change(ledger, job_id, target, token=7)
        after = ledger.reads.events(job_id)
        assert moved is (target in TRANSITIONS[source]), target
        assert ledger.reads.job(job_id).state is (target if moved else source)
        assert len(after) == len(before) + moved
        if moved:
            assert (after[-1].state, after[-1].actor, after[-1].reason) == (target.value, "test", "why")


@pytest.mark.parametrize("target", State)
def test_no_change_is_made_under_another_token(ledger: Ledger, target: State) -> None:
    for source in State:
        job_id = submit(ledger)
        alter(ledger, job_id, state=source.value, token=7)
        assert not change(ledger, job_id, target, token=8)
        assert ledger.reads.job(job_id).state is source


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_an_ended_job_holds_no_key_no_memory_and_no_checkpoint(ledger: Ledger, state: State) -> None:
    job = start(ledger, exclusive_key="target")
    ledger.work.enter(job, "fetch", done=Checkpoint(0, "plan", None, "{}"))
    if state is State.CANCELLED:
        ledger.intake.cancel(job.id, actor="ann")
    ledger.work.finish(job, state)
    ended = ledger.reads.job(job.id)
    assert ended.state is state
    assert ended.reserved == 0
    assert ended.finished_at is not None
    assert holds(ledger) == {}
    assert ledger.database.read(lambda c: c.execute(select(checkpoint)).all()) == []


@pytest.mark.parametrize("state", [s for s in State if s not in OUT])
def test_only_a_job_on_a_host_has_memory_reserved(ledger: Ledger, state: State) -> None:
    for source in State:
        if state not in TRANSITIONS[source]:
            continue
        job_id = submit(ledger)
        alter(ledger, job_id, state=source.value, reserved=5, attempt=1)
        assert change(ledger, job_id, state)
        assert ledger.reads.job(job_id).reserved == 0


def _line(event: Event) -> tuple[str, str | None, str, str | None, int]:
    return event.state, event.stage, event.actor, event.reason, event.attempt


def test_the_audit_trail_tells_the_whole_story(ledger: Ledger) -> None:
    job = start(ledger)
    ledger.work.enter(job, "fetch", done=Checkpoint(0, "plan", None, "{}"))
    ledger.work.give_back(job, reason=Reason.RETRY, counted=True, error_code="s3", error="S3 is away")
    again = claim(ledger, pick_one(ledger))
    ledger.intake.cancel(job.id, actor="ann")
    ledger.work.finish(again, State.CANCELLED, error_code="cancelled")
    events = ledger.reads.events(job.id)
    assert [_line(event) for event in events] == [
        ("queued", None, "api", "new", 0),
        ("dispatched", None, "feeder", "h1", 0),
        ("running", "plan", "runner", None, 1),
        ("running", "fetch", "runner", None, 1),
        ("queued", "fetch", "runner", "S3 is away", 1),
        ("dispatched", "fetch", "feeder", "h1", 1),
        ("running", "plan", "runner", None, 2),
        ("cancelling", "plan", "ann", None, 2),
        ("cancelled", "plan", "runner", "cancelled", 2),
    ]
    numbers, times = [event.id for event in events], [event.at for event in events]
    assert numbers == sorted(set(numbers))
    assert ledger.reads.events(job.id, after=numbers[6]) == events[7:]
    assert times == sorted(times)
    assert times[-1] - times[0] < LEASE


def test_a_long_reason_is_cut_in_the_trail_and_whole_in_the_job(ledger: Ledger) -> None:
    job = start(ledger)
    text = "ü" * 5000
    ledger.work.give_back(job, reason=Reason.RETRY, counted=True, error_code="s3", error=text)
    assert ledger.reads.events(job.id)[-1].reason == text[:400]
    assert ledger.reads.job(job.id).error == text
