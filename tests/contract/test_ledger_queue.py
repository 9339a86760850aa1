"""Which jobs a host is given: in order, what is due, what fits, never more of a batch than its size."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ledgers import (
    OVERTAKE_LIMIT,
    alter,
    claim,
    figures,
    new_job,
    offer,
    pick_one,
    start,
    submit,
    together,
)

from ncr_worker.history import History
from ncr_worker.job import OUT, NewBatch, Reason, State
from ncr_worker.ledger import Ledger, Offer
from ncr_worker.ledger.queue import WINDOW
from ncr_worker.pipeline import MIB
from ncr_worker.sql import Database

pytestmark = pytest.mark.usefixtures("with_hosts")


def queued(ledger: Ledger, *sizes: int, **changes: object) -> list[str]:
    """Jobs of so many MiB; their ids."""
    return [submit(ledger, need=size * MIB, **changes) for size in sizes]


def picked(ledger: Ledger, what: Offer) -> list[str]:
    return [job.job_id for job in ledger.queue.pick(what)]


# --- order --------------------------------------------------------------------------------------------
def test_the_smallest_priority_first_then_the_oldest(ledger: Ledger) -> None:
    first, urgent, second = submit(ledger), submit(ledger, priority=-5), submit(ledger)
    low = submit(ledger, priority=1)
    assert picked(ledger, offer()) == [urgent, first, second, low]


def test_a_job_is_dispatched_to_the_host_with_a_token_and_its_bytes(ledger: Ledger) -> None:
    submit(ledger, need=70 * MIB)
    [found] = ledger.queue.pick(offer())
    job = ledger.reads.job(found.job_id)
    assert (job.state, job.host, job.token, job.reserved) == (State.DISPATCHED, "h1", found.token, 70 * MIB)
    assert (found.number, found.kind, found.reserved, job.attempt) == (job.number, "deliver", 70 * MIB, 0)
    assert ledger.queue.pick(offer()) == []


def test_every_dispatch_has_its_own_token(ledger: Ledger) -> None:
    submit(ledger)
    tokens = set()
    for _ in range(5):
        found = pick_one(ledger)
        tokens.add(found.token)
        ledger.work.recall(found.number, found.token, "again")
    assert len(tokens) == 5


def test_a_job_is_not_picked_before_its_time(ledger: Ledger) -> None:
    job = start(ledger)
    ledger.work.give_back(job, reason=Reason.RETRY, retry_in=60)
    assert ledger.queue.pick(offer()) == []
    alter(ledger, job.id, next_run_at=ledger.reads.job(job.id).next_run_at - 61)
    assert picked(ledger, offer()) == [job.id]


def test_no_more_than_the_free_slots(ledger: Ledger) -> None:
    jobs = queued(ledger, 1, 1, 1)
    assert picked(ledger, offer(slots=2)) == jobs[:2]


def test_all_of_a_long_queue_is_looked_at(ledger: Ledger) -> None:
    ledger.intake.submit([new_job(need=900 * MIB) for _ in range(250)])
    [small] = queued(ledger, 10)
    assert picked(ledger, offer(free=100)) == [small]


# --- memory -------------------------------------------------------------------------------------------
def test_what_does_not_fit_waits_and_says_so(ledger: Ledger) -> None:
    big, small = queued(ledger, 500, 100)
    assert picked(ledger, offer(free=300)) == [small]
    assert ledger.reads.job(big).reason == Reason.NO_MEMORY
    assert picked(ledger, offer(free=500)) == [big]


def test_the_bytes_of_one_pick_are_added_up(ledger: Ledger) -> None:
    first, _second, third = queued(ledger, 200, 200, 100)
    assert picked(ledger, offer(free=300)) == [first, third]


def test_a_job_that_waits_for_memory_is_passed_only_so_often(ledger: Ledger) -> None:
    big, *small = queued(ledger, 500, 10, 10, 10)
    assert picked(ledger, offer(free=300)) == small[:OVERTAKE_LIMIT]
    assert picked(ledger, offer(free=300)) == []
    assert picked(ledger, offer(free=500)) == [big]
    assert picked(ledger, offer(free=300)) == small[OVERTAKE_LIMIT:]


def test_a_job_that_waits_for_memory_is_always_passed_by_what_does_not_delay_it(ledger: Ledger) -> None:
    """When that of 500 MiB has ended, all of them fit."""
    big, *small = queued(ledger, 500, 10, 10, 10)
    assert picked(ledger, offer(free=300, held=[500])) == small
    assert ledger.reads.job(big).state is State.QUEUED


def test_passes_are_counted_over_several_picks(ledger: Ledger) -> None:
    big, *small = queued(ledger, 500, 10, 10, 10)
    assert picked(ledger, offer(free=300, slots=1)) == small[:1]
    assert picked(ledger, offer(free=300, slots=1)) == small[1:2]
    assert picked(ledger, offer(free=300, slots=1)) == []
    assert ledger.reads.job(big).state is State.QUEUED


def test_a_job_above_the_free_bytes_runs_alone_on_an_idle_host(ledger: Ledger) -> None:
    big, _small = queued(ledger, 900, 10)
    assert picked(ledger, offer(free=800)) != [big]
    assert picked(ledger, offer(free=800, idle=True)) == [big]


def test_nothing_joins_a_job_that_was_given_the_host_alone(ledger: Ledger) -> None:
    big, _small = queued(ledger, 900, 10)
    assert picked(ledger, offer(free=800, idle=True)) == [big]


def test_a_job_larger_than_every_host_fails_and_names_the_sizes(ledger: Ledger) -> None:
    huge, small = queued(ledger, 1001, 10)
    assert picked(ledger, offer(idle=True)) == [small]
    job = ledger.reads.job(huge)
    assert (job.state, job.error_code) == (State.FAILED, "never_fits")
    assert f"{1001 * MIB:,}" in (job.error or "")
    assert f"{1000 * MIB:,}" in (job.error or "")


def test_a_job_for_a_larger_host_never_stands_in_the_way_of_this_one(ledger: Ledger) -> None:
    if ledger.database.dialect == "sqlite":
        pytest.skip("SQLite serves one host")
    ledger.hosts.register("h2", "second", figures(limit_bytes=4000 * MIB))
    big, *small = queued(ledger, 3000, 10, 10, 10, 10)
    assert picked(ledger, offer("h1")) == small
    assert ledger.reads.job(big).state is State.QUEUED
    assert picked(ledger, offer("h2", free=3200, limit=4000)) == [big]


def test_a_batch_job_refused_for_memory_too_long_fails_and_one_without_a_batch_waits_on(ledger: Ledger) -> None:
    in_batch, alone = new_job(batch_id="b", need=500 * MIB), new_job(need=500 * MIB)
    ledger.intake.submit([in_batch], NewBatch("b", "ann", 5))
    ledger.intake.submit([alone])
    assert picked(ledger, offer(free=300)) == []
    for job_id in (in_batch.id, alone.id):
        alter(ledger, job_id, refused_since=ledger.reads.job(job_id).created_at - 301)
    assert picked(ledger, offer(free=300)) == []
    failed = ledger.reads.job(in_batch.id)
    assert (failed.state, failed.error_code) == (State.FAILED, "memory_timeout")
    assert "BATCH_TIMEOUT" in (failed.error or "")
    assert ledger.reads.job(alone.id).state is State.QUEUED


# --- batches ------------------------------------------------------------------------------------------
def batch_of(ledger: Ledger, count: int, size: int, batch_id: str = "b") -> list[str]:
    jobs = [new_job(batch_id=batch_id, need=MIB) for _ in range(count)]
    ledger.intake.submit(jobs, NewBatch(batch_id, "ann", size))
    return [job.id for job in jobs]


def test_of_one_batch_only_its_size_is_out_and_others_pass_it(ledger: Ledger) -> None:
    jobs = batch_of(ledger, 4, 2)
    [other] = queued(ledger, 1)
    assert picked(ledger, offer(slots=10)) == [*jobs[:2], other]
    assert picked(ledger, offer("h2", slots=10)) == []


def test_a_full_batch_goes_on_when_one_of_its_jobs_leaves_its_host(ledger: Ledger) -> None:
    jobs = batch_of(ledger, 3, 1)
    running = claim(ledger, pick_one(ledger))
    assert picked(ledger, offer()) == []
    ledger.work.finish(running, State.FAILED)
    assert picked(ledger, offer()) == [jobs[1]]


def test_a_batch_that_is_full_already_hides_no_job_without_a_batch(ledger: Ledger) -> None:
    batch_of(ledger, 2, 1)
    pick_one(ledger)
    [other] = queued(ledger, 1)
    assert picked(ledger, offer()) == [other]


def test_a_full_batch_is_no_reason_to_stop_looking(ledger: Ledger) -> None:
    batch_of(ledger, 150, 1, "b1")
    [first, *_] = batch_of(ledger, 150, 1, "b2")
    pick_one(ledger)
    assert picked(ledger, offer()) == [first]


@pytest.mark.parametrize("size", [1, 3])
def test_two_hosts_picking_at_once_never_have_more_of_a_batch_out_than_its_size(ledger: Ledger, size: int) -> None:
    jobs = batch_of(ledger, 14, size)

    def feed(host: str) -> list[int]:
        out = []
        while any(job.state is State.QUEUED for job in History(ledger.database).lines_of("b")):
            found = ledger.queue.pick(offer(host, slots=10))
            out.append(sum(job.state in OUT for job in History(ledger.database).lines_of("b")))
            for one in found:
                ledger.work.finish(claim(ledger, one), State.SUCCEEDED)
        return out

    most = max(out for seen in together(feed, ["h1", "h2"]) for out in seen)
    assert 1 <= most <= size
    assert History(ledger.database).batch("b").counts == {State.SUCCEEDED: len(jobs)}
    starts = [event for job_id in jobs for event in ledger.reads.events(job_id) if event.state == "dispatched"]
    assert len(starts) == len(jobs)


def test_two_hosts_picking_at_once_never_get_the_same_job(ledger: Ledger) -> None:
    jobs = queued(ledger, *[1] * 20)

    def feed(host: str) -> list[str]:
        taken: list[str] = []
        while any(job.state is State.QUEUED for job in ledger.reads.jobs(jobs)):
            taken += picked(ledger, offer(host, slots=3))
        return taken

    one, two = together(feed, ["h1", "h2"])
    assert sorted(one + two) == sorted(jobs)


# --- long queues --------------------------------------------------------------------------------------
def test_a_job_that_fits_is_found_behind_any_number_that_do_not(ledger: Ledger) -> None:
    ledger.intake.submit([new_job(need=900 * MIB) for _ in range(3 * WINDOW)])
    fits = submit(ledger, need=10 * MIB)
    assert picked(ledger, offer(free=100)) == [fits]


def test_only_what_this_worker_can_run(ledger: Ledger) -> None:
    submit(ledger, kind="new_kind")
    known = submit(ledger)
    assert picked(ledger, replace(offer(), kinds=("deliver",))) == [known]


def test_while_one_host_picks_another_one_picks_the_next(ledger: Ledger, database: Database) -> None:
    if database.dialect == "sqlite":
        pytest.skip("SQLite serves one host")
    jobs = [new_job() for _ in range(3 * WINDOW)]
    ledger.intake.submit(jobs)
    with database.engine.connect() as connection, connection.begin():
        ledger.queue._pick(connection, offer("h1"))  # not committed yet
        assert len(picked(ledger, offer("h2"))) == 4


def test_a_batch_that_another_host_picks_from_is_passed_over(ledger: Ledger, database: Database) -> None:
    if database.dialect == "sqlite":
        pytest.skip("SQLite serves one host")
    ledger.intake.submit([new_job(batch_id="b") for _ in range(8)], NewBatch("b", "ann", 4))
    with database.engine.connect() as connection, connection.begin():
        ledger.queue._pick(connection, offer("h1", slots=2))
        single = submit(ledger)
        assert picked(ledger, offer("h2")) == [single]


def test_time_spent_waiting_for_the_batch_is_not_held_against_a_job(ledger: Ledger) -> None:
    ledger.intake.submit([new_job(batch_id="b", need=need * MIB) for need in (900, 100)], NewBatch("b", "ann", 1))
    big = History(ledger.database).lines_of("b")[0]
    assert len(picked(ledger, offer(free=0))) == 0
    assert ledger.reads.job(big.id).reason == Reason.NO_MEMORY
    alter(ledger, big.id, refused_since=1.0)
    assert len(picked(ledger, offer(free=200))) == 1  # the small one: now the batch is full
    assert picked(ledger, offer(free=0)) == []
    assert ledger.reads.job(big.id).state == State.QUEUED
