"""What people ask of jobs that are there already: cancel with its clean-up, retry, the same submit again, pauses."""

from __future__ import annotations

from typing import Any

import pytest
from ledgers import (
    alter,
    claim,
    figures,
    holds,
    new_job,
    offer,
    pick_one,
    start,
    submit,
    together,
    waits,
)

from ncr_worker.errors import Busy, Conflict, NotFound, Rejected
from ncr_worker.history import History
from ncr_worker.job import Job, NewBatch, NewJob, Reason, State
from ncr_worker.ledger import Ledger
from ncr_worker.ledger.idempotency import Once, Stored
from ncr_worker.ledger.intake import Again
from ncr_worker.ledger.pauses import Pause, Pauses, Scope
from ncr_worker.memory.admission import Admission, Limits
from ncr_worker.memory.drain import Asked
from ncr_worker.pipeline import MIB

ONCE = Once("key-1", "f" * 64, "stored; no worker is up", 1_700_000_000.25)
CRUEL = "a\0b\ud800c \N{CHAIR}"
"""NUL, and half a character, as broken JSON has it."""
STORED = "a\N{REPLACEMENT CHARACTER}b?c \N{CHAIR}"


def interrupted(ledger: Ledger, **changes: Any) -> Job:
    """A job that has run before and waits to go on; it is due."""
    job = start(ledger, **changes)
    ledger.work.enter(job, "upload")
    ledger.work.give_back(job, reason=Reason.GIVEN_BACK)
    return ledger.reads.job(job.id)


# --- cancel of what has run before --------------------------------------------------------------------
@pytest.mark.parametrize("dispatched", [False, True])
def test_a_waiting_job_that_has_run_before_is_cleaned_up_before_it_is_cancelled(
    ledger: Ledger, dispatched: bool
) -> None:
    job = interrupted(ledger, exclusive_key="target", max_attempts=3)
    stale = pick_one(ledger) if dispatched else None
    assert ledger.intake.cancel(job.id, actor="ann") is State.QUEUED
    waiting = ledger.reads.job(job.id)
    assert (waiting.reason, waiting.error_code, waiting.need) == (Reason.WINDING_UP, "cancelled", 0)
    assert (waiting.reserved, waiting.token) == (0, None)
    assert holds(ledger) == {"target": job.number}, "nobody else goes to the target before it is clean"
    if stale:
        assert ledger.work.claim(job.id, stale.token, "1-stale", "plan") is None
    running = claim(ledger, pick_one(ledger))
    assert running.attempt > running.max_attempts, "the runner takes this for: only clean up"
    assert running.stage == "upload"
    ledger.work.finish(running, State.CANCELLED)
    assert holds(ledger) == {}


def test_a_clean_up_goes_on_with_no_memory_free(ledger: Ledger) -> None:
    job = interrupted(ledger, need=500 * MIB)
    ledger.intake.cancel(job.id, actor="ann")
    [picked] = ledger.queue.pick(offer(free=0))
    assert (picked.job_id, picked.reserved) == (job.id, 0)


def test_a_clean_up_that_dies_ends_the_job_all_the_same(ledger: Ledger) -> None:
    job = interrupted(ledger)
    ledger.intake.cancel(job.id, actor="ann")
    running = claim(ledger, pick_one(ledger))
    assert running.token is not None
    ledger.work.lost(job.number, running.token, "killed by signal 9")
    assert ledger.reads.job(job.id).state is State.CANCELLED


def test_a_job_whose_end_is_decided_is_not_cancelled_again(ledger: Ledger) -> None:
    job = interrupted(ledger)
    ledger.intake.cancel(job.id, actor="ann")
    before, trail = ledger.reads.job(job.id), ledger.reads.events(job.id)
    assert ledger.intake.cancel(job.id, actor="bob") is State.QUEUED
    pick_one(ledger)
    assert ledger.intake.cancel(job.id, actor="bob") is State.DISPATCHED
    assert before.error_code == ledger.reads.job(job.id).error_code == "cancelled"
    assert [event.actor for event in ledger.reads.events(job.id)[len(trail) :]] == ["feeder"]


def test_a_job_that_fits_no_host_any_more_is_cleaned_up_before_it_fails(ledger: Ledger) -> None:
    ledger.hosts.register("h1", "first", figures())
    job = start(ledger)
    ledger.work.give_back(job, reason=Reason.YIELDED, need=5000 * MIB)
    assert ledger.queue.pick(offer()) == []
    waiting = ledger.reads.job(job.id)
    assert (waiting.state, waiting.reason, waiting.error_code) == (State.QUEUED, Reason.WINDING_UP, "never_fits")
    assert ledger.intake.cancel(job.id, actor="ann") is State.QUEUED
    running = claim(ledger, pick_one(ledger))
    assert (running.error_code, running.attempt > running.max_attempts) == ("never_fits", True)
    assert "5,242,880,000 bytes" in (running.error or "")


def test_a_batch_job_refused_for_too_long_is_cleaned_up_before_it_fails(ledger: Ledger) -> None:
    ledger.hosts.register("h1", "first", figures())
    ledger.intake.submit([new_job(batch_id="b")], NewBatch("b", "ann", 5))
    job = claim(ledger, pick_one(ledger))
    ledger.work.give_back(job, reason=Reason.YIELDED, need=900 * MIB)
    assert ledger.queue.pick(offer(free=10)) == []
    since = ledger.reads.job(job.id).created_at - 400
    alter(ledger, job.id, refused_since=since)
    assert ledger.queue.pick(offer(free=10)) == []
    waiting = ledger.reads.job(job.id)
    assert (waiting.reason, waiting.error_code) == (Reason.WINDING_UP, "memory_timeout")


# --- retry --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("end", [State.FAILED, State.CANCELLED])
def test_a_retry_is_a_new_round_with_nothing_of_the_old_one(ledger: Ledger, end: State) -> None:
    first = start(ledger, need=10 * MIB, exclusive_key="target", max_attempts=2)
    ledger.work.enter(first, "upload")
    ledger.work.finish(first, end, error_code="sftp_cut", error="cut", result={"verdict": None}, peak=7)
    ledger.intake.retry(first.id, Again(30 * MIB, "target"), actor="ann")
    job = ledger.reads.job(first.id)
    assert (job.state, job.reason, job.round, job.attempt, job.need) == (State.QUEUED, Reason.NEW, 2, 0, 30 * MIB)
    assert waits(ledger, job.id) < 5
    for forgotten in ("stage", "host", "token", "peak", "started_at", "finished_at", "error_code", "error", "result"):
        assert getattr(job, forgotten) is None, forgotten
    kept = ("number", "id", "kind", "ref", "tenant", "args", "created_at", "max_attempts", "batch_id", "priority")
    assert [getattr(job, name) for name in kept] == [getattr(first, name) for name in kept]
    assert holds(ledger) == {"target": job.number}
    [*_, last] = ledger.reads.events(job.id)
    assert (last.state, last.actor, last.reason) == (State.QUEUED, "ann", "retry")
    again = claim(ledger, pick_one(ledger))
    assert (again.attempt, again.stage) == (1, "plan")
    ledger.work.finish(again, State.SUCCEEDED)


def test_only_what_ended_without_success_can_be_retried(ledger: Ledger) -> None:
    job = start(ledger)
    for state in (State.RUNNING, State.SUCCEEDED):
        with pytest.raises(Conflict, match=f"is {state}") as conflict:
            ledger.intake.retry(job.id, Again(1, None), actor="ann")
        assert conflict.value.code == "not_retryable"
        if state is State.RUNNING:
            ledger.work.finish(job, State.SUCCEEDED)
    with pytest.raises(NotFound):
        ledger.intake.retry("nobody", Again(1, None), actor="ann")


def test_a_retry_must_not_take_the_key_of_another_job(ledger: Ledger) -> None:
    failed = start(ledger, exclusive_key="target")
    ledger.work.finish(failed, State.FAILED, error_code="rejected")
    holder = submit(ledger, exclusive_key="target")
    before = ledger.reads.job(failed.id)
    with pytest.raises(Conflict, match=holder) as conflict:
        ledger.intake.retry(failed.id, Again(1, "target"), actor="ann")
    assert conflict.value.code == "already_active"
    assert ledger.reads.job(failed.id) == before, "all or nothing"


def test_of_many_retries_at_once_one_is_the_new_round(ledger: Ledger) -> None:
    job = start(ledger, exclusive_key="target")
    ledger.work.finish(job, State.FAILED)

    def one(_index: int) -> str:
        try:
            ledger.intake.retry(job.id, Again(1, "target"), actor="ann")
        except Conflict as conflict:
            return conflict.code
        return "retried"

    assert sorted(together(one, range(6))) == ["not_retryable"] * 5 + ["retried"]
    assert ledger.reads.job(job.id).round == 2


# --- the same submit again ----------------------------------------------------------------------------
def test_a_submit_with_a_known_key_gets_the_first_answer_and_stores_nothing(ledger: Ledger) -> None:
    first = new_job(exclusive_key="target")
    assert ledger.intake.submit([first], once=ONCE) is None
    later = Once(ONCE.key, ONCE.fingerprint, "stored; 3 worker host(s) up", 1.0)
    second = ledger.intake.submit([new_job(exclusive_key="target")], once=later)
    assert second == Stored((first.id,), None, ONCE.message, ONCE.answered_at, again=True)
    assert ledger.intake.stored(ONCE.key, ONCE.fingerprint) == second
    assert ledger.intake.stored("key-2", ONCE.fingerprint) is None
    assert History(ledger.database).queued() == 1


def test_a_key_used_for_another_request_is_refused(ledger: Ledger) -> None:
    ledger.intake.submit([new_job()], once=ONCE)
    with pytest.raises(Rejected) as rejected:
        ledger.intake.submit([new_job()], once=Once(ONCE.key, "0" * 64, "", 0.0))
    assert rejected.value.code == "idempotency_key_reused"
    assert "another request" in str(rejected.value)
    with pytest.raises(Rejected):
        ledger.intake.stored(ONCE.key, "0" * 64)
    assert History(ledger.database).queued() == 1


def test_keys_differ_by_case(ledger: Ledger) -> None:
    for key in ("Key", "key"):
        ledger.intake.submit([new_job()], once=Once(key, ONCE.fingerprint, "", 0.0))
    assert History(ledger.database).queued() == 2


def test_a_batch_with_a_known_key_gets_its_jobs_in_their_order(ledger: Ledger) -> None:
    def jobs(batch_id: str) -> list[NewJob]:
        return [new_job(batch_id=batch_id, ref=f"A-{n}") for n in range(700)]

    first = jobs("b1")
    assert ledger.intake.submit(first, NewBatch("b1", "ann", 5), once=ONCE) is None
    second = ledger.intake.submit(jobs("b2"), NewBatch("b2", "ann", 5), once=ONCE)
    assert second is not None
    assert (second.batch_id, second.job_ids, second.again) == ("b1", tuple(job.id for job in first), True)
    with pytest.raises(NotFound):
        History(ledger.database).batch("b2")


def test_a_submit_that_is_refused_leaves_its_key_free(ledger: Ledger) -> None:
    holder = submit(ledger, exclusive_key="target")
    with pytest.raises(Conflict):
        ledger.intake.submit([new_job(exclusive_key="target")], once=ONCE)
    ledger.intake.cancel(holder, actor="ann")
    assert ledger.intake.submit([new_job(exclusive_key="target")], once=ONCE) is None


@pytest.mark.parametrize("exclusive_key", [None, "target"])
def test_one_key_from_many_at_once_is_one_job_and_one_answer(ledger: Ledger, exclusive_key: str | None) -> None:
    new = [new_job(exclusive_key=exclusive_key) for _ in range(6)]
    answers = together(lambda job: ledger.intake.submit([job], once=ONCE), new)
    [stored] = [job for job, answer in zip(new, answers, strict=True) if answer is None]
    assert [answer.job_ids for answer in answers if answer is not None] == [(stored.id,)] * 5
    assert History(ledger.database).queued() == 1


# --- pauses, backlog ----------------------------------------------------------------------------------
def test_paused_work_is_not_started_until_it_is_resumed(ledger: Ledger) -> None:
    pauses = Pauses(ledger.database)
    job_id = submit(ledger)
    pauses.pause(Scope.WORK, actor="ann", note="disk swap")
    assert ledger.queue.pick(offer()) == []
    [pause] = pauses.active()
    assert (pause.scope, pause.actor, pause.note) == (Scope.WORK, "ann", "disk swap")
    assert pause.since == pytest.approx(ledger.reads.job(job_id).created_at, abs=30)
    assert pauses.resume(Scope.WORK)
    assert not pauses.resume(Scope.WORK)
    assert [picked.job_id for picked in ledger.queue.pick(offer())] == [job_id]


def test_a_pause_of_the_intake_does_not_stop_the_work(ledger: Ledger) -> None:
    submit(ledger)
    Pauses(ledger.database).pause(Scope.INTAKE, actor="ann")
    assert len(ledger.queue.pick(offer())) == 1


def test_the_latest_pause_counts_and_many_at_once_are_one(ledger: Ledger) -> None:
    pauses = Pauses(ledger.database)
    together(lambda index: pauses.pause(Scope.INTAKE, actor=f"ann-{index}"), range(6))
    pauses.pause(Scope.INTAKE, actor="bob", note="later")
    assert [(pause.actor, pause.note) for pause in pauses.active()] == [("bob", "later")]


ASKED = Asked("deliver", MIB, "ann")


def admission(ledger: Ledger, *, max_backlog: int) -> Admission:
    return Admission(ledger, Pauses(ledger.database), Limits(max_backlog))


def test_a_full_backlog_takes_nothing_in_until_some_have_run(ledger: Ledger) -> None:
    entry = admission(ledger, max_backlog=2)
    submit(ledger)
    with pytest.raises(Busy, match=r"1 jobs wait already, 2 may \(MAX_BACKLOG\)") as busy:
        entry.judge([ASKED, ASKED])
    assert (busy.value.code, busy.value.retry_in) == ("backlog_full", 30)
    assert entry.judge([ASKED]).accepting
    submit(ledger)
    assert not entry.explain(ASKED).accepting
    claim(ledger, pick_one(ledger))
    assert entry.explain(ASKED).accepting


def test_a_burst_within_one_look_is_counted_too(ledger: Ledger) -> None:
    entry = admission(ledger, max_backlog=10)
    for _ in range(10):
        entry.judge([ASKED])
        submit(ledger)
    with pytest.raises(Busy, match="MAX_BACKLOG"):
        entry.judge([ASKED])


def test_a_paused_intake_says_by_whom_and_why(ledger: Ledger) -> None:
    entry = admission(ledger, max_backlog=10)
    entry.pauses.pause(Scope.INTAKE, actor="ann", note="stocktaking")
    with pytest.raises(Busy, match="paused by ann: stocktaking") as busy:
        entry.judge([ASKED])
    assert busy.value.code == "intake_paused"
    assert entry.explain(ASKED).reason.endswith("stocktaking")


# --- what other servers and people say ----------------------------------------------------------------
def test_text_that_no_database_takes_is_made_storable(ledger: Ledger) -> None:
    job = start(ledger)
    ledger.work.give_back(job, reason=Reason.RETRY, error_code="sftp_failed", error=CRUEL * 200)
    job = claim(ledger, pick_one(ledger))
    ledger.work.finish(job, State.FAILED, error_code="sftp_failed", error=CRUEL, result={CRUEL: [CRUEL]})
    ended = ledger.reads.job(job.id)
    assert (ended.error, ended.result) == (STORED, {"a\0b?c \N{CHAIR}": ["a\0b?c \N{CHAIR}"]})
    noted = [event.reason for event in ledger.reads.events(job.id) if event.reason]
    assert (STORED * 200)[:400] in noted
    Pauses(ledger.database).pause(Scope.INTAKE, actor=CRUEL * 100, note=CRUEL * 100)
    [pause] = Pauses(ledger.database).active()
    assert pause == Pause(Scope.INTAKE, (STORED * 100)[:120], (STORED * 100)[:400], pause.since)
