"""What a pool child may write, and when it may not: one claim for each dispatch, every write fenced by its token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ledgers import (
    alter,
    claim,
    holds,
    new_job,
    offer,
    pick_one,
    start,
    submit,
    together,
    waits,
)

from ncr_worker.errors import Cancelled, GivenBack, LostOwnership
from ncr_worker.job import Job, NewBatch, Reason, State
from ncr_worker.ledger import Checkpoint, Ledger, Picked
from ncr_worker.pipeline import MIB

PLANNED = Checkpoint(0, "plan", None, '{"files": 3}')
FETCHED = Checkpoint(1, "fetch", "h1", '{"files": 3, "bytes": 9}')


def dispatched(ledger: Ledger, **changes: object) -> Picked:
    submit(ledger, **changes)
    return pick_one(ledger)


def reclaim(ledger: Ledger) -> tuple[Job, tuple[Checkpoint, ...]]:
    """The next job of the queue on another host, with what it starts from."""
    picked = pick_one(ledger, "h2")
    claimed = ledger.work.claim(picked.job_id, picked.token, "9-other", "plan")
    assert claimed is not None
    return claimed.job, claimed.checkpoints


# --- claim --------------------------------------------------------------------------------------------
def test_a_claim_counts_the_attempt_before_any_work(ledger: Ledger) -> None:
    job = claim(ledger, dispatched(ledger))
    assert (job.state, job.attempt, job.stage, job.host) == (State.RUNNING, 1, "plan", "h1")
    assert job.started_at is not None
    assert ledger.reads.job(job.id) == job


def test_of_five_claims_at_once_one_gets_the_job(ledger: Ledger) -> None:
    picked = dispatched(ledger)

    def one(number: int) -> bool:
        return ledger.work.claim(picked.job_id, picked.token, f"{number}-x", "plan") is not None

    assert sorted(together(one, range(5))) == [False, False, False, False, True]
    assert ledger.reads.job(picked.job_id).attempt == 1
    assert [event.state for event in ledger.reads.events(picked.job_id)].count("running") == 1


def test_a_claim_repeated_by_the_same_child_gives_the_same_answer(ledger: Ledger) -> None:
    picked = dispatched(ledger)
    first = ledger.work.claim(picked.job_id, picked.token, "1-a", "plan")
    assert first is not None
    assert ledger.work.claim(picked.job_id, picked.token, "1-a", "plan") == first
    assert ledger.reads.job(picked.job_id).attempt == 1


def test_a_message_of_an_earlier_dispatch_is_no_claim(ledger: Ledger) -> None:
    stale = dispatched(ledger)
    assert ledger.work.recall(stale.number, stale.token, "again")
    assert ledger.work.claim(stale.job_id, stale.token, "1-a", "plan") is None
    fresh = pick_one(ledger)
    assert ledger.work.claim(stale.job_id, stale.token, "1-a", "plan") is None
    assert ledger.work.claim(fresh.job_id, fresh.token, "1-b", "plan") is not None
    assert ledger.work.claim("nobody", fresh.token, "1-a", "plan") is None


def test_the_claimant_is_known_under_the_token_only(ledger: Ledger) -> None:
    picked = dispatched(ledger)
    assert ledger.work.claimant(picked.number, picked.token) == (State.DISPATCHED, None)
    ledger.work.claim(picked.job_id, picked.token, "17-abc", "plan")
    assert ledger.work.claimant(picked.number, picked.token) == (State.RUNNING, "17-abc")
    assert ledger.work.claimant(picked.number, picked.token + 1) is None


# --- fencing ------------------------------------------------------------------------------------------
def replaced(ledger: Ledger) -> tuple[Job, Job]:
    """A run whose host was taken for dead, and the run that owns the job now."""
    old = start(ledger, max_attempts=9)
    assert old.token is not None
    ledger.work.lost(old.number, old.token, "no heartbeat")
    alter(ledger, old.id, next_run_at=0.0)
    return old, reclaim(ledger)[0]


WRITES: dict[str, Callable[[Ledger, Job], None]] = {
    "enter": lambda ledger, old: ledger.work.enter(old, "fetch", done=PLANNED),
    "confirm": lambda ledger, old: ledger.work.confirm(old),
    "hold": lambda ledger, old: ledger.work.hold(old, "target"),
    "succeed": lambda ledger, old: ledger.work.finish(old, State.SUCCEEDED, result={"by": "old"}),
    "fail": lambda ledger, old: ledger.work.finish(old, State.FAILED, error_code="old"),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_run_that_was_replaced_learns_so_and_changes_nothing(ledger: Ledger, write: str) -> None:
    old, new = replaced(ledger)
    events = ledger.reads.events(old.id)
    with pytest.raises(LostOwnership):
        WRITES[write](ledger, old)
    assert ledger.reads.job(old.id) == new
    assert ledger.reads.events(old.id) == events
    assert holds(ledger) == {}


def test_a_run_that_was_replaced_cannot_give_the_job_back_nor_lose_it(ledger: Ledger) -> None:
    old, new = replaced(ledger)
    assert old.token is not None
    ledger.work.give_back(old, reason=Reason.RETRY, counted=True)
    ledger.work.lost(old.number, old.token, "died")
    assert not ledger.work.recall(old.number, old.token, "stop")
    assert ledger.reads.job(old.id) == new


@pytest.mark.parametrize("write", WRITES)
def test_a_run_that_was_released_learns_so_before_another_has_begun(ledger: Ledger, write: str) -> None:
    old = start(ledger)
    assert old.token is not None
    ledger.work.lost(old.number, old.token, "no heartbeat")
    with pytest.raises(LostOwnership):
        WRITES[write](ledger, old)
    assert ledger.reads.job(old.id).state is State.QUEUED


@pytest.mark.parametrize("write", WRITES)
def test_a_job_that_has_ended_never_changes(ledger: Ledger, write: str) -> None:
    old = start(ledger)
    ledger.intake.cancel(old.id, actor="ann")
    ledger.work.finish(old, State.CANCELLED)
    ended = ledger.reads.job(old.id)
    with pytest.raises(LostOwnership):
        WRITES[write](ledger, old)
    assert old.token is not None
    ledger.work.give_back(old, reason=Reason.RETRY)
    ledger.work.lost(old.number, old.token, "died")
    assert ledger.reads.job(old.id) == ended


def test_an_end_told_twice_is_one_end(ledger: Ledger) -> None:
    job = start(ledger)
    ledger.work.finish(job, State.SUCCEEDED, result={"files": 3}, peak=5 * MIB)
    ledger.work.finish(job, State.SUCCEEDED, result={"files": 3}, peak=5 * MIB)
    ended = ledger.reads.job(job.id)
    assert (ended.result, ended.peak, ended.error_code) == ({"files": 3}, 5 * MIB, None)
    assert [event.state for event in ledger.reads.events(job.id)].count("succeeded") == 1


# --- stages and checkpoints ---------------------------------------------------------------------------
def test_a_later_attempt_gets_every_checkpoint_in_order(ledger: Ledger) -> None:
    job = start(ledger)
    ledger.work.enter(job, "fetch", done=PLANNED)
    ledger.work.enter(job, "pack", done=FETCHED)
    ledger.work.give_back(job, reason=Reason.GIVEN_BACK)
    again, checkpoints = reclaim(ledger)
    assert again.stage == "plan", "shown so until it is known where it goes on"
    assert checkpoints == (PLANNED, FETCHED)


def test_a_stage_done_again_replaces_its_checkpoint_and_those_after_it(ledger: Ledger) -> None:
    job = start(ledger)
    ledger.work.enter(job, "fetch", done=PLANNED)
    ledger.work.enter(job, "pack", done=FETCHED)
    anew = Checkpoint(0, "plan", None, '{"files": 4}')
    ledger.work.enter(job, "fetch", done=anew)
    ledger.work.enter(job, "fetch", done=anew)  # told twice
    ledger.work.give_back(job, reason=Reason.GIVEN_BACK)
    assert reclaim(ledger)[1] == (anew,)


def test_entering_a_stage_without_a_result_keeps_the_checkpoints(ledger: Ledger) -> None:
    job = start(ledger)
    ledger.work.enter(job, "fetch", done=PLANNED)
    ledger.work.enter(job, "plan")
    ledger.work.give_back(job, reason=Reason.GIVEN_BACK)
    assert reclaim(ledger)[1] == (PLANNED,)


# --- exclusive keys while running ---------------------------------------------------------------------
def test_a_key_is_held_until_the_job_ends(ledger: Ledger) -> None:
    one, two = start(ledger), start(ledger)
    ledger.work.hold(one, "target")
    ledger.work.hold(one, "target")
    with pytest.raises(GivenBack) as refused:
        ledger.work.hold(two, "target")
    assert (refused.value.reason, refused.value.retry_in) == (Reason.TARGET_BUSY, 2.0)
    ledger.work.finish(one, State.FAILED)
    ledger.work.hold(two, "target")
    assert holds(ledger) == {"target": two.number}


def test_a_job_that_waits_keeps_its_key(ledger: Ledger) -> None:
    one = start(ledger)
    ledger.work.hold(one, "target")
    ledger.work.give_back(one, reason=Reason.RETRY, retry_in=60)
    two = start(ledger)
    with pytest.raises(GivenBack):
        ledger.work.hold(two, "target")


def test_of_many_jobs_that_want_a_key_at_once_one_gets_it(ledger: Ledger) -> None:
    jobs = [start(ledger) for _ in range(5)]

    def one(job: Job) -> bool:
        try:
            ledger.work.hold(job, "target")
        except GivenBack:
            return False
        return True

    assert sorted(together(one, jobs)) == [False, False, False, False, True]


def test_a_cancelled_job_takes_no_key(ledger: Ledger) -> None:
    job = start(ledger)
    ledger.intake.cancel(job.id, actor="ann")
    with pytest.raises(Cancelled):
        ledger.work.hold(job, "target")


# --- back to the queue --------------------------------------------------------------------------------
@pytest.mark.parametrize(("counted", "attempt"), [(True, 1), (False, 0)])
def test_a_job_given_back_waits_with_its_reason(ledger: Ledger, counted: bool, attempt: int) -> None:
    job = start(ledger)
    ledger.work.give_back(
        job, reason=Reason.RETRY, retry_in=60, counted=counted, need=7 * MIB, error_code="s3", error="S3 is away"
    )
    back = ledger.reads.job(job.id)
    assert (back.state, back.reason, back.attempt, back.reserved) == (State.QUEUED, Reason.RETRY, attempt, 0)
    assert (back.need, back.error_code, back.error) == (7 * MIB, "s3", "S3 is away")
    assert back.next_run_at - job.next_run_at >= 60
    assert ledger.queue.pick(offer()) == []


def test_a_job_given_back_without_a_new_need_keeps_its_need(ledger: Ledger) -> None:
    job = start(ledger, need=7 * MIB)
    ledger.work.give_back(job, reason=Reason.GIVEN_BACK)
    assert ledger.reads.job(job.id).need == 7 * MIB


def test_success_clears_the_error_of_an_earlier_attempt(ledger: Ledger) -> None:
    job = start(ledger)
    ledger.work.give_back(job, reason=Reason.RETRY, counted=True, error_code="s3", error="S3 is away")
    ledger.work.finish(claim(ledger, pick_one(ledger)), State.SUCCEEDED)
    ended = ledger.reads.job(job.id)
    assert (ended.attempt, ended.error_code, ended.error) == (2, None, None)


LEAVES: dict[str, Callable[[Ledger, Job], None]] = {
    "given back": lambda ledger, job: ledger.work.give_back(job, reason=Reason.RETRY),
    "child died": lambda ledger, job: ledger.work.lost(job.number, job.token or 0, "died"),
}


@pytest.mark.parametrize("leave", LEAVES)
def test_a_job_that_was_asked_to_stop_ends_cancelled_whichever_way_it_leaves(ledger: Ledger, leave: str) -> None:
    job = start(ledger, exclusive_key="target")
    ledger.intake.cancel(job.id, actor="ann")
    LEAVES[leave](ledger, job)
    assert ledger.reads.job(job.id).reason == Reason.WINDING_UP
    assert holds(ledger) == {"target": job.number}
    clean_up = claim(ledger, pick_one(ledger))
    assert (clean_up.attempt, clean_up.error_code, clean_up.reserved) == (job.max_attempts + 1, "cancelled", 0)
    LEAVES[leave](ledger, clean_up)
    ended = ledger.reads.job(job.id)
    while not ended.terminal:  # a clean-up that was given back is tried again
        ledger.work.finish(claim(ledger, pick_one(ledger)), State.CANCELLED)
        ended = ledger.reads.job(job.id)
    assert ended.state is State.CANCELLED
    assert holds(ledger) == {}


def test_a_recalled_job_was_never_counted(ledger: Ledger) -> None:
    picked = dispatched(ledger)
    assert ledger.work.recall(picked.number, picked.token, "the worker stops")
    job = ledger.reads.job(picked.job_id)
    assert (job.state, job.reason, job.attempt) == (State.QUEUED, Reason.GIVEN_BACK, 0)
    assert pick_one(ledger).job_id == picked.job_id


def test_a_claimed_job_is_not_recalled(ledger: Ledger) -> None:
    picked = dispatched(ledger)
    claim(ledger, picked)
    assert not ledger.work.recall(picked.number, picked.token, "the worker stops")
    assert ledger.reads.job(picked.job_id).state is State.RUNNING


# --- dead children ------------------------------------------------------------------------------------
def test_a_job_whose_child_died_is_tried_again_with_the_attempt_counted(ledger: Ledger) -> None:
    job = start(ledger)
    assert job.token is not None
    ledger.work.lost(job.number, job.token, "process 17 died")
    back = ledger.reads.job(job.id)
    assert (back.state, back.reason, back.attempt, back.reserved) == (State.QUEUED, Reason.WORKER_LOST, 1, 0)
    assert "process 17 died" in (back.error or "")
    assert ledger.reads.events(job.id)[-1].reason == "process 17 died"


def test_a_message_that_was_lost_costs_no_attempt_and_no_time(ledger: Ledger) -> None:
    picked = dispatched(ledger)
    ledger.work.lost(picked.number, picked.token, "not on this host")
    job = ledger.reads.job(picked.job_id)
    assert (job.state, job.attempt) == (State.QUEUED, 0)
    assert pick_one(ledger).job_id == job.id


def test_a_job_that_kills_every_child_ends_after_its_attempts_and_one_clean_up(ledger: Ledger) -> None:
    job_id = submit(ledger, max_attempts=3, exclusive_key="target")
    deaths = 0
    while ledger.reads.job(job_id).state is State.QUEUED:
        alter(ledger, job_id, next_run_at=0.0)
        job = claim(ledger, pick_one(ledger))
        assert job.token is not None
        ledger.work.lost(job.number, job.token, f"process {deaths} died")
        deaths += 1
    failed = ledger.reads.job(job_id)
    assert deaths == 3 + 1
    assert (failed.state, failed.error_code) == (State.FAILED, "worker_lost")
    assert "died 4 times; last: process 3 died" in (failed.error or "")
    assert holds(ledger) == {}


def test_deaths_are_followed_by_longer_and_longer_pauses(ledger: Ledger) -> None:
    job_id = submit(ledger, max_attempts=9)
    pauses = []
    for _ in range(4):
        alter(ledger, job_id, next_run_at=0.0)
        job = claim(ledger, pick_one(ledger))
        assert job.token is not None
        ledger.work.lost(job.number, job.token, "died")
        pauses.append(waits(ledger, job_id))
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(2.0, abs=0.5)


def test_a_lost_job_makes_room_in_its_batch(ledger: Ledger) -> None:
    jobs = [new_job(batch_id="b") for _ in range(2)]
    ledger.intake.submit(jobs, NewBatch("b", "ann", 1))
    first = pick_one(ledger)
    assert ledger.queue.pick(offer()) == []
    claim(ledger, first)
    ledger.work.lost(first.number, first.token, "died")
    assert pick_one(ledger).job_id == jobs[1].id
