"""Fair turns between tenants, what is read ahead of the picks, and jobs that outgrow what they have reserved."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ledgers import (
    LEASE,
    OVERTAKE_LIMIT,
    alter,
    claim,
    new_job,
    offer,
    start,
    submit,
    waits,
)
from sqlalchemy import select

from ncr_worker.job import Job, NewBatch, Reason, State
from ncr_worker.ledger import Checkpoint, Ledger, Offer
from ncr_worker.ledger import queue as queue_module
from ncr_worker.ledger.pauses import Pauses, Scope
from ncr_worker.ledger.queue import WINDOW
from ncr_worker.ledger.tables import job as job_table
from ncr_worker.ledger.tables import share
from ncr_worker.picking import CREDIT
from ncr_worker.pipeline import MIB
from ncr_worker.sql import Database

pytestmark = pytest.mark.usefixtures("with_hosts")


def other_process(ledger: Ledger) -> Ledger:
    return Ledger(ledger.database, lease=LEASE, batch_timeout=300, overtake_limit=OVERTAKE_LIMIT)


def queued(ledger: Ledger, tenant: str, count: int, need: int = 10, kind: str = "deliver") -> list[str]:
    jobs = [new_job(kind=kind, tenant=tenant, need=need * MIB) for _ in range(count)]
    ledger.intake.submit(jobs)
    return [job.id for job in jobs]


def picked(ledger: Ledger, what: Offer | None = None, *, fresh: bool = True) -> list[str]:
    return [job.job_id for job in ledger.queue.pick(what or offer(), fresh=fresh)]


def stored(ledger: Ledger) -> dict[str, float]:
    """tenant -> byte-seconds."""
    return {row.tenant: row.used for row in ledger.database.read(lambda c: c.execute(select(share)).all())}


def one() -> Offer:
    return offer(slots=1)


# --- fair turns ---------------------------------------------------------------------------------------
def test_tenants_take_turns_whoever_came_first(ledger: Ledger) -> None:
    ann, bob = queued(ledger, "ann", 4), queued(ledger, "bob", 4)
    assert picked(ledger) == [ann[0], bob[0], ann[1], bob[1]]


def test_who_has_used_less_goes_first(ledger: Ledger) -> None:
    ann, bob = queued(ledger, "ann", 2), queued(ledger, "bob", 2)
    ledger.queue.charge("ann", 100.0 * MIB)
    assert picked(ledger) == [*bob, *ann]


def test_what_was_used_is_stored_for_all_processes(ledger: Ledger) -> None:
    ledger.queue.charge("ann", 60.0 * MIB)
    ledger.queue.charge("ann", 40.0 * MIB)
    assert picked(ledger) == []
    assert stored(ledger) == {"ann": 100.0 * MIB}
    ann, bob = queued(ledger, "ann", 1), queued(ledger, "bob", 1)
    assert picked(other_process(ledger)) == [*bob, *ann]
    ledger.queue.charge("ann", 1.0)
    ledger.queue.pick(offer())
    assert stored(ledger) == {"ann": 100.0 * MIB + 1}, "each run is counted once"


def test_what_runs_now_counts_too(ledger: Ledger) -> None:
    ann, bob = queued(ledger, "ann", 1), queued(ledger, "bob", 1)
    running = {"ann": 30.0 * MIB, "gone": 1.0}
    assert picked(ledger, replace(offer(), running=running)) == [*bob, *ann]
    assert stored(ledger) == {}


def test_between_two_looks_what_ends_counts_at_once(ledger: Ledger) -> None:
    ann, bob = queued(ledger, "ann", 3), queued(ledger, "bob", 3)
    assert picked(ledger, one()) == ann[:1]
    ledger.queue.charge("bob", 500.0 * MIB)
    assert picked(ledger, one(), fresh=False) == ann[1:2]
    ledger.queue.charge("ann", 900.0 * MIB)
    assert picked(ledger, one(), fresh=False) == bob[:1]
    assert stored(ledger) == {}
    ledger.queue.pick(one())
    assert stored(ledger) == {"ann": 900.0 * MIB, "bob": 500.0 * MIB}


def test_a_long_past_is_forgiven_up_to_the_credit(ledger: Ledger) -> None:
    ann, bob = queued(ledger, "ann", 1), queued(ledger, "bob", 1)
    past, credit = 1e18, CREDIT * 1000 * MIB
    ledger.queue.charge("ann", past)
    ledger.queue.pick(offer(slots=0))
    ledger.queue.charge("bob", credit / 2)
    ledger.queue.pick(offer(slots=0))
    assert stored(ledger) == {"ann": past, "bob": past - credit / 2}
    ledger.queue.charge("bob", credit)
    assert picked(ledger) == [*ann, *bob]


def test_a_window_is_shared_between_the_tenants(ledger: Ledger) -> None:
    ann, bob = queued(ledger, "ann", 2 * WINDOW), queued(ledger, "bob", 3)
    ledger.queue.charge("bob", 1.0)
    found = picked(ledger, offer(slots=6))
    assert found == [ann[0], bob[0], ann[1], bob[1], ann[2], bob[2]]


def test_among_more_tenants_than_a_window_those_who_used_least_are_seen(ledger: Ledger) -> None:
    names = [f"t{number:03}" for number in range(WINDOW + 20)]
    ledger.intake.submit([new_job(tenant=name, need=MIB) for name in names])
    for name in names[:-2]:
        ledger.queue.charge(name, 50.0 * MIB)
    tenants = [ledger.reads.job(job_id).tenant for job_id in picked(ledger, offer(slots=2))]
    assert tenants == names[-2:]


def test_of_every_tenant_what_fits_is_found_behind_any_number_that_do_not(ledger: Ledger) -> None:
    fits = []
    for tenant in ("ann", "bob"):
        queued(ledger, tenant, WINDOW + 20, need=900)
        fits += queued(ledger, tenant, 1)
    assert sorted(picked(ledger, offer(free=100))) == sorted(fits)


def test_what_fits_is_found_look_by_look_behind_what_has_turned_out_too_large(ledger: Ledger) -> None:
    ledger.queue.foresee = lambda kind, _version, _size, _declared: 900 * MIB if kind == "deliver" else 10 * MIB
    queued(ledger, "ann", 3 * WINDOW, need=50)
    [fits] = queued(ledger, "ann", 1, kind="sort")
    assert [picked(ledger, offer(free=100)) for _ in range(4)] == [[], [], [fits], []]
    [after] = queued(ledger, "ann", 1, kind="sort")
    assert [after] in [picked(ledger, offer(free=100)) for _ in range(4)]


# --- read ahead ---------------------------------------------------------------------------------------
def test_later_picks_take_what_the_first_has_read(ledger: Ledger) -> None:
    assert ledger.queue.dry
    jobs = queued(ledger, "ann", 3)
    assert picked(ledger, one()) == jobs[:1]
    assert not ledger.queue.dry
    urgent = submit(ledger, need=MIB, priority=-5)
    assert picked(ledger, one(), fresh=False) == jobs[1:2]
    assert picked(ledger, one(), fresh=True) == [urgent]
    assert picked(ledger, one(), fresh=False) == jobs[2:]
    assert ledger.queue.dry


def test_what_has_changed_since_it_was_read_is_left_alone(ledger: Ledger) -> None:
    first, cancelled, grown, later, taken, good = queued(ledger, "ann", 6)
    assert picked(ledger, one()) == [first]
    ledger.intake.cancel(cancelled, actor="ann")
    alter(ledger, grown, need=20 * MIB)
    alter(ledger, later, next_run_at=ledger.reads.job(later).created_at + 600)
    alter(ledger, taken, state=State.DISPATCHED, token=17)
    assert picked(ledger, offer(slots=5), fresh=False) == [good]
    assert [ledger.reads.job(job_id).state for job_id in (grown, later)] == [State.QUEUED] * 2
    assert ledger.reads.job(taken).token == 17


def test_what_another_host_holds_at_this_moment_is_not_waited_for(ledger: Ledger, database: Database) -> None:
    if database.dialect == "sqlite":
        pytest.skip("SQLite serves one host")
    first, held, free = queued(ledger, "ann", 3)
    assert picked(ledger, one()) == [first]
    with database.engine.connect() as connection, connection.begin():
        connection.execute(select(job_table.c.number).where(job_table.c.id == held).with_for_update())
        assert picked(ledger, offer(slots=2), fresh=False) == [free]
    assert ledger.reads.job(held).state is State.QUEUED


def test_paused_work_is_not_started_from_what_was_read_before(ledger: Ledger) -> None:
    jobs = queued(ledger, "ann", 2)
    assert picked(ledger, one()) == jobs[:1]
    Pauses(ledger.database).pause(Scope.WORK, actor="ann")
    assert picked(ledger, one(), fresh=False) == []
    assert ledger.reads.job(jobs[1]).state is State.QUEUED


def test_a_batch_is_no_larger_for_what_was_read_before(ledger: Ledger) -> None:
    jobs = [new_job(batch_id="b", need=MIB) for _ in range(4)]
    ledger.intake.submit(jobs, NewBatch("b", "ann", 2))
    assert picked(ledger, one()) == [jobs[0].id]
    assert picked(ledger, offer(), fresh=False) == [jobs[1].id]
    assert picked(ledger, offer(), fresh=False) == []


def test_passes_are_counted_from_what_was_read_before(ledger: Ledger) -> None:
    [big], small = queued(ledger, "ann", 1, need=500), queued(ledger, "ann", 5)
    for expected in small[:OVERTAKE_LIMIT]:
        assert picked(ledger, offer(slots=1, free=300), fresh=expected == small[0]) == [expected]
    assert picked(ledger, offer(slots=1, free=300), fresh=False) == []
    assert picked(ledger, offer(slots=1, free=500), fresh=False) == [big]
    assert ledger.reads.job(big).state is State.DISPATCHED


def test_a_job_that_starts_forgets_what_it_waited_for(ledger: Ledger) -> None:
    [big], _small = queued(ledger, "ann", 1, need=500), queued(ledger, "ann", 3)
    assert len(picked(ledger, offer(free=300))) == OVERTAKE_LIMIT
    assert ledger.reads.job(big).reason == Reason.NO_MEMORY
    [found] = ledger.queue.pick(offer(slots=1, free=500))
    assert (found.job_id, ledger.reads.job(big).reason) == (big, None)
    ledger.work.recall(found.number, found.token, "again")
    assert len(picked(ledger, offer(free=300))) == 1, "it is passed as often as any other once more"


def test_a_fitting_job_behind_what_was_read_is_found_at_the_next_look(ledger: Ledger) -> None:
    first = queued(ledger, "ann", 1, need=50)
    queued(ledger, "ann", 2 * WINDOW, need=900)
    assert picked(ledger, one()) == first
    [fits] = queued(ledger, "ann", 1)
    assert picked(ledger, offer(slots=1, free=100), fresh=False) == []
    assert not ledger.queue.dry, "it is kept"
    assert picked(ledger, offer(slots=1, free=100)) == [fits]


def test_a_pick_that_fails_does_not_lose_what_it_had_read(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = queued(ledger, "ann", 3)
    assert picked(ledger, one()) == jobs[:1]

    def away(_work: object) -> None:
        raise OSError("the database is away")

    with monkeypatch.context() as outage:
        outage.setattr(ledger.database, "transact", away)
        outage.setattr(ledger.database, "transact_unflushed", away)
        with pytest.raises(OSError, match="away"):
            ledger.queue.pick(one(), fresh=False)
    assert ledger.queue.dry, "the next one looks again"
    assert picked(ledger, one()) == jobs[1:2]


# --- more memory --------------------------------------------------------------------------------------
def outgrown(ledger: Ledger, job: Job, *, used: int, limit: int = 1000) -> Job:
    """Sizes in MiB."""
    assert job.token is not None
    ledger.work.outgrown(job.number, job.token, used=used * MIB, limit=limit * MIB, actor="feeder")
    return ledger.reads.job(job.id)


def again(ledger: Ledger, job: Job) -> Job:
    """Its next run, on a host that holds anything."""
    alter(ledger, job.id, next_run_at=0.0)
    [found] = ledger.queue.pick(offer(slots=1, idle=True, free=4000, limit=4000))
    return claim(ledger, found)


@pytest.mark.parametrize(
    ("reserved", "used", "need"),
    [
        (100, 50, 200),
        (100, 150, 200),
        (100, 400, 500),
        (600, 700, 1000),
        (500, 900, 1000),
        (1000, 990, 2000),
    ],
    ids=["it said so itself", "twice", "a quarter more than seen", "no more than the host", "alone", "a larger host"],
)
def test_a_job_out_of_memory_comes_back_with_more(ledger: Ledger, reserved: int, used: int, need: int) -> None:
    job = outgrown(ledger, start(ledger, need=reserved * MIB), used=used)
    assert (job.state, job.reason, job.attempt) == (State.QUEUED, Reason.OUT_OF_MEMORY, 1)
    assert (job.need, job.reserved, job.token) == (need * MIB, 0, None)
    assert 0 < waits(ledger, job.id) <= 0.3
    assert ledger.reads.events(job.id)[-1].reason == f"out of memory: used {used} MiB, {reserved:,} MiB were reserved"
    assert ledger.reads.events(job.id)[-1].actor == "feeder"


def test_its_history_is_told_and_grows(ledger: Ledger) -> None:
    job = outgrown(ledger, start(ledger, need=100 * MIB), used=150)
    assert (job.error_code, job.error) == ("out_of_memory", "out of memory: used 150 MiB, 100 MiB were reserved")
    job = outgrown(ledger, again(ledger, job), used=260)
    job = outgrown(ledger, again(ledger, job), used=1200, limit=4000)
    assert job.error == "out of memory: used 150 MiB, 100 MiB were reserved; then 260 of 200 MiB; then 1,200 of 400 MiB"
    assert (job.attempt, job.need) == (3, 1500 * MIB)


def test_an_earlier_error_of_another_kind_is_no_part_of_its_history(ledger: Ledger) -> None:
    job = start(ledger, need=100 * MIB)
    ledger.work.give_back(job, reason=Reason.RETRY, counted=True, error_code="s3_unavailable", error="S3 is away")
    job = outgrown(ledger, again(ledger, job), used=150)
    assert (job.error_code, job.error) == ("out_of_memory", "out of memory: used 150 MiB, 100 MiB were reserved")


def test_after_its_last_attempt_one_more_run_cleans_up_and_needs_no_memory(ledger: Ledger) -> None:
    job = start(ledger, need=100 * MIB, max_attempts=2)
    job = outgrown(ledger, again(ledger, outgrown(ledger, job, used=150)), used=300)
    assert (job.state, job.need) == (State.QUEUED, 0)
    last = again(ledger, job)
    assert (last.attempt, last.error_code) == (3, "out_of_memory")
    assert last.error == "out of memory: used 150 MiB, 100 MiB were reserved; then 300 of 200 MiB"
    job = outgrown(ledger, last, used=400)
    assert (job.state, job.error_code) == (State.FAILED, "out_of_memory"), "a clean-up that outgrows is the end"


def test_one_that_has_outgrown_every_host_fails_with_its_history(ledger: Ledger) -> None:
    job = outgrown(ledger, start(ledger, need=1000 * MIB), used=990)
    assert job.need == 2000 * MIB
    alter(ledger, job.id, next_run_at=0.0)
    assert picked(ledger, offer(idle=True)) == []
    job = ledger.reads.job(job.id)
    assert (job.reason, job.error_code, job.need) == (Reason.WINDING_UP, "out_of_memory", 0)
    history = "out of memory: used 990 MiB, 1,000 MiB were reserved"
    assert str(job.error).startswith(f"{history}; the largest worker host has {1000 * MIB:,} bytes")


def test_a_run_that_was_replaced_changes_nothing(ledger: Ledger) -> None:
    job = start(ledger, need=100 * MIB)
    before = ledger.reads.job(job.id)
    assert job.token is not None
    outgrown(ledger, job.evolve(token=job.token + 1), used=150)
    ledger.work.granted(job.evolve(token=job.token + 1), 300 * MIB)
    assert ledger.reads.job(job.id) == before


def test_a_cancelled_job_that_outgrows_is_not_tried_again(ledger: Ledger) -> None:
    job = start(ledger, need=100 * MIB)
    ledger.work.enter(job, "fetch", done=Checkpoint(0, "plan", None, "{}"))
    ledger.intake.cancel(job.id, actor="ann")
    outgrown(ledger, job, used=150)
    last = ledger.reads.job(job.id)
    assert (last.state, last.reason, last.error_code, last.need) == (State.QUEUED, Reason.WINDING_UP, "cancelled", 0)


def test_what_a_host_grants_is_reserved_and_remembered(ledger: Ledger) -> None:
    job = start(ledger, need=100 * MIB)
    assert ledger.reads.job(job.id).granted == 100 * MIB
    ledger.work.granted(job, 300 * MIB)
    granted = ledger.reads.job(job.id)
    assert (granted.reserved, granted.granted, granted.need) == (300 * MIB, 300 * MIB, 100 * MIB)
    ledger.work.finish(job, State.SUCCEEDED)
    assert (ledger.reads.job(job.id).reserved, ledger.reads.job(job.id).granted) == (0, 300 * MIB)


# --- what is known when a job is picked ---------------------------------------------------------------
def test_a_job_that_waited_is_picked_with_what_is_known_then(ledger: Ledger) -> None:
    [first, _second] = queued(ledger, "ann", 2, need=500)
    ledger.queue.foresee = lambda _kind, _version, _size, _declared: 90 * MIB
    [found] = ledger.queue.pick(offer(slots=1, free=100))
    job = ledger.reads.job(first)
    assert (found.job_id, found.reserved, job.reserved, job.need, job.predicted) == (first, *[90 * MIB] * 4)


def test_one_job_of_a_kind_that_nobody_knows_goes_ahead_of_its_line(ledger: Ledger) -> None:
    ledger.queue.foresee = lambda kind, _version, _size, _declared: 90 * MIB if kind == "deliver" else None
    known = queued(ledger, "ann", 2, need=90)
    first, second = queued(ledger, "ann", 2, need=90, kind="sort")
    assert [picked(ledger, offer(slots=1))[0] for _ in range(4)] == [first, *known, second]


def test_what_was_read_ahead_follows_what_is_learned(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "SERVES", 0.0)
    queued(ledger, "ann", 3, need=500)
    ledger.queue.foresee = lambda _kind, _version, _size, _declared: 90 * MIB
    [_first] = ledger.queue.pick(offer(slots=1, free=100))
    ledger.queue.foresee = lambda _kind, _version, _size, _declared: 40 * MIB
    assert [each.reserved for each in ledger.queue.pick(offer(slots=2, free=100), fresh=False)] == [40 * MIB] * 2


def test_what_a_job_has_asked_for_itself_is_not_foretold_away(ledger: Ledger) -> None:
    running = start(ledger, need=100 * MIB)
    ledger.work.give_back(running, reason=Reason.YIELDED, need=300 * MIB)
    ledger.queue.foresee = lambda _kind, _version, _size, _declared: 90 * MIB
    assert ledger.queue.pick(offer(slots=1, free=200)) == []
    [found] = ledger.queue.pick(offer(slots=1, free=300))
    assert found.reserved == 300 * MIB


def test_as_long_as_nothing_is_known_the_need_of_the_submit_counts(ledger: Ledger) -> None:
    [first] = queued(ledger, "ann", 1, need=500)
    ledger.queue.foresee = lambda _kind, _version, _size, _declared: None
    assert ledger.queue.pick(offer(slots=1, free=100)) == []
    assert picked(ledger, offer(slots=1, free=500)) == [first]
