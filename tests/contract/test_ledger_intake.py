"""Submit, cancel, and what can be read: all or nothing, once only, and every key held by one job."""

from __future__ import annotations

import pytest
from ledgers import alter, claim, holds, new_job, offer, pick_one, start, submit, together

from ncr_worker.errors import Cancelled, Conflict, NotFound
from ncr_worker.history import History
from ncr_worker.job import NewBatch, Reason, State
from ncr_worker.ledger import Ledger
from ncr_worker.pipeline import MIB


# --- submit -------------------------------------------------------------------------------------------
def test_a_submitted_job_reads_back_as_it_was_given(ledger: Ledger) -> None:
    args = {"job_id": "Ä 🪑", "row_id": 7, "nested": {"b": [1, None]}}
    new = new_job(args=args, ref="Ä 🪑", priority=3, input_bytes=5 * 2**40, exclusive_key="k", max_attempts=2)
    ledger.intake.submit([new])
    job = ledger.reads.job(new.id)
    assert (job.args, job.ref, job.priority, job.input_bytes) == (args, "Ä 🪑", 3, 5 * 2**40)
    assert (job.state, job.reason, job.attempt, job.max_attempts) == (State.QUEUED, Reason.NEW, 0, 2)
    assert job.next_run_at == pytest.approx(job.created_at, abs=1)
    assert holds(ledger) == {"k": job.number}


def test_a_large_batch_is_stored_whole_in_the_order_given(ledger: Ledger) -> None:
    jobs = [new_job(batch_id="b", ref=f"A-{n}", exclusive_key=f"k{n}") for n in range(1200)]
    ledger.intake.submit(jobs, NewBatch("b", "ann", 5))
    assert [job.id for job in History(ledger.database).lines_of("b")] == [job.id for job in jobs]
    batch = History(ledger.database).batch("b")
    assert (batch.total, batch.size, batch.counts) == (1200, 5, {State.QUEUED: 1200})
    assert len(ledger.reads.jobs([job.id for job in jobs])) == 1200
    assert len(holds(ledger)) == 1200


def test_a_conflict_names_the_holder_and_stores_nothing(ledger: Ledger) -> None:
    holder = submit(ledger, ref="A-7", exclusive_key="target")
    jobs = [new_job(batch_id="b"), new_job(batch_id="b", exclusive_key="target")]
    with pytest.raises(Conflict, match=rf"'A-7' .* job {holder}") as conflict:
        ledger.intake.submit(jobs, NewBatch("b", "ann", 5))
    assert conflict.value.code == "already_active"
    assert ledger.reads.jobs([job.id for job in jobs]) == []
    with pytest.raises(NotFound):
        History(ledger.database).batch("b")


def test_one_key_twice_in_a_batch_is_a_conflict_of_its_own(ledger: Ledger) -> None:
    jobs = [new_job(exclusive_key="target"), new_job(exclusive_key="target")]
    with pytest.raises(Conflict, match="'target'") as conflict:
        ledger.intake.submit(jobs)
    assert conflict.value.code == "duplicate_target"
    assert ledger.reads.jobs([job.id for job in jobs]) == []


def test_the_same_submit_again_changes_nothing(ledger: Ledger) -> None:
    jobs = [new_job(batch_id="b", exclusive_key="k1"), new_job(batch_id="b")]
    ledger.intake.submit(jobs, NewBatch("b", "ann", 5))
    ledger.intake.submit(jobs, NewBatch("b", "ann", 5))
    assert len(History(ledger.database).lines_of("b")) == 2
    assert len(ledger.reads.events(jobs[0].id)) == 1


def test_one_of_many_submits_for_one_key_wins_and_the_others_learn_of_it(ledger: Ledger) -> None:
    def one(_number: int) -> str:
        new = new_job(exclusive_key="target")
        try:
            ledger.intake.submit([new])
        except Conflict as conflict:
            return conflict.code
        return new.id

    answers = together(one, range(6))
    [winner] = set(answers) - {"already_active"}
    assert answers.count("already_active") == 5
    assert holds(ledger) == {"target": ledger.reads.job(winner).number}


def test_one_job_submitted_by_many_at_once_is_one_job(ledger: Ledger) -> None:
    new = new_job(exclusive_key="tick")
    together(lambda _number: ledger.intake.submit([new]), range(6))
    assert [event.state for event in ledger.reads.events(new.id)] == ["queued"]


# --- cancel -------------------------------------------------------------------------------------------
def test_a_waiting_job_is_cancelled_at_once_and_its_key_is_free(ledger: Ledger) -> None:
    job_id = submit(ledger, exclusive_key="target")
    assert ledger.intake.cancel(job_id, actor="ann") is State.CANCELLED
    assert holds(ledger) == {}
    assert ledger.queue.pick(offer()) == []
    submit(ledger, exclusive_key="target")


def test_a_dispatched_job_is_cancelled_at_once_and_its_message_is_stale(ledger: Ledger) -> None:
    job_id = submit(ledger)
    picked = pick_one(ledger)
    assert ledger.intake.cancel(job_id, actor="ann") is State.CANCELLED
    assert ledger.work.claim(job_id, picked.token, "1-a", "plan") is None


def test_a_running_job_is_asked_to_stop_and_hears_of_it(ledger: Ledger) -> None:
    job = start(ledger, host="h1")
    assert ledger.intake.cancel(job.id, actor="ann") is State.CANCELLING
    assert ledger.intake.cancel(job.id, actor="ann") is State.CANCELLING
    assert ledger.intake.cancelling("h1") == {job.token}
    assert ledger.intake.cancelling("h2") == set()
    with pytest.raises(Cancelled):
        ledger.work.enter(job, "fetch")
    with pytest.raises(Cancelled):
        ledger.work.confirm(job)
    ledger.work.finish(job, State.CANCELLED)
    assert ledger.intake.cancelling("h1") == set()


@pytest.mark.parametrize("end", [State.SUCCEEDED, State.FAILED])
def test_a_job_may_end_before_it_hears_that_it_should_stop(ledger: Ledger, end: State) -> None:
    job = start(ledger)
    ledger.intake.cancel(job.id, actor="ann")
    ledger.work.finish(job, end)
    assert ledger.reads.job(job.id).state is end


def test_an_ended_job_cannot_be_cancelled_and_an_unknown_one_is_not_found(ledger: Ledger) -> None:
    job = start(ledger)
    ledger.work.finish(job, State.SUCCEEDED)
    with pytest.raises(Conflict, match="already ended: succeeded"):
        ledger.intake.cancel(job.id, actor="ann")
    with pytest.raises(NotFound):
        ledger.intake.cancel("nobody", actor="ann")


# --- reads --------------------------------------------------------------------------------------------
def test_unknown_ids_are_not_found(ledger: Ledger) -> None:
    for read in (ledger.reads.job, History(ledger.database).batch, ledger.reads.events):
        with pytest.raises(NotFound, match="nobody"):
            read("nobody")
    assert ledger.reads.jobs(["nobody"]) == []
    assert ledger.reads.jobs([]) == []


def test_ids_differ_by_case(ledger: Ledger) -> None:
    submit(ledger, id="abc")
    submit(ledger, id="ABC")
    assert ledger.reads.job("ABC").id == "ABC"


def test_active_jobs_are_those_on_a_host(ledger: Ledger) -> None:
    ended = start(ledger)
    ledger.work.finish(ended, State.SUCCEEDED)
    running, cancelling = start(ledger), start(ledger)
    ledger.intake.cancel(cancelling.id, actor="ann")
    submit(ledger)
    dispatched = pick_one(ledger)
    submit(ledger)
    assert [job.id for job in History(ledger.database).active()] == [running.id, cancelling.id, dispatched.job_id]


def test_the_backlog_tells_kinds_reasons_and_what_is_due_later(ledger: Ledger) -> None:
    job = start(ledger, need=30 * MIB)
    ledger.work.give_back(job, reason=Reason.RETRY, retry_in=60)
    submit(ledger, need=10 * MIB)
    submit(ledger, need=20 * MIB)
    submit(ledger, kind="csv", need=MIB)
    found = {
        (line.kind, line.reason): (line.jobs, line.scheduled, line.need // MIB)
        for line in History(ledger.database).backlog()
    }
    assert found == {("deliver", "retry"): (1, 1, 30), ("deliver", "new"): (2, 0, 30), ("csv", "new"): (1, 0, 1)}


def test_the_counts_of_a_batch_follow_its_jobs(ledger: Ledger) -> None:
    jobs = [new_job(batch_id="b") for _ in range(3)]
    ledger.intake.submit(jobs, NewBatch("b", "ann", 5))
    ledger.work.finish(claim(ledger, pick_one(ledger)), State.SUCCEEDED)
    pick_one(ledger)
    counts = {State.SUCCEEDED: 1, State.DISPATCHED: 1, State.QUEUED: 1}
    assert History(ledger.database).batch("b").counts == counts


def test_times_are_the_databases_own(ledger: Ledger) -> None:
    job_id = submit(ledger)
    created = ledger.reads.job(job_id).created_at
    alter(ledger, job_id, created_at=created - 3600)
    assert ledger.reads.events(job_id)[0].at == pytest.approx(created, abs=1)
