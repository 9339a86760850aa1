"""What is old enough goes with all that belongs to it, in chunks, and nothing else does; what is stuck is found."""

from __future__ import annotations

import pytest
from ledgers import (
    LEASE,
    alter,
    claim,
    execute,
    figures,
    new_job,
    offer,
    pick_one,
    start,
    submit,
)
from sqlalchemy import Table, func, select, update

from ncr_worker.history import History, Wanted
from ncr_worker.job import NewBatch, Reason, State
from ncr_worker.ledger import Ledger
from ncr_worker.ledger.idempotency import Once, once
from ncr_worker.ledger.intake import Again
from ncr_worker.ledger.observations import KEPT, Observations, Seen, note
from ncr_worker.ledger.pauses import Pauses, Scope
from ncr_worker.ledger.tables import batch, checkpoint, event, host, job
from ncr_worker.pipeline import MIB
from ncr_worker.retention import CHUNK, DAY, HOUR, Retention, Terms
from ncr_worker.stuck import MOST, Watch

TERMS = Terms(jobs=30 * DAY, receipts=365 * DAY, keys=24 * HOUR, with_receipt=["deliver"], brief=["report"])


@pytest.fixture
def retention(ledger: Ledger) -> Retention:
    return Retention(ledger.database)


def ended(ledger: Ledger, *, days: float, state: State = State.FAILED, kind: str = "deliver") -> str:
    """A job that ended so many days ago."""
    running = start(ledger, kind=kind)
    ledger.work.finish(running, state)
    age(ledger, running.id, days=days)
    return running.id


def age(ledger: Ledger, *job_ids: str, days: float) -> None:
    """Move the end of these jobs into the past."""
    execute(ledger, update(job).where(job.c.id.in_(job_ids)).values(finished_at=job.c.finished_at - days * DAY))


def left(ledger: Ledger) -> set[str]:
    return {line.id for line in History(ledger.database).jobs(Wanted(), limit=10_000)}


def rows(ledger: Ledger, table: Table) -> int:
    query = select(func.count()).select_from(table)
    return ledger.database.read(lambda connection: connection.execute(query).scalar_one())


# --- jobs ---------------------------------------------------------------------------------------------
def test_jobs_go_when_they_ended_long_ago_and_those_with_a_receipt_much_later(
    ledger: Ledger, retention: Retention
) -> None:
    gone = {
        ended(ledger, days=31),
        ended(ledger, days=31, state=State.CANCELLED),
        ended(ledger, days=366, state=State.SUCCEEDED),
        ended(ledger, days=31, state=State.SUCCEEDED, kind="csv"),
        ended(ledger, days=2, kind="report"),
    }
    kept = {
        ended(ledger, days=29),
        ended(ledger, days=364, state=State.SUCCEEDED),
        ended(ledger, days=29, state=State.SUCCEEDED, kind="csv"),
        ended(ledger, days=0.5, kind="report"),
    }
    assert retention.old_jobs(TERMS) == 5
    assert sum(retention.remove_jobs(TERMS)) == 5
    assert left(ledger) == kept
    assert not gone & left(ledger)
    assert retention.old_jobs(TERMS) == 0
    assert list(retention.remove_jobs(TERMS)) == []


def test_a_job_that_has_not_ended_stays_however_old_it_is(ledger: Ledger, retention: Retention) -> None:
    running = start(ledger)
    retried = ended(ledger, days=100)
    ledger.intake.retry(retried, Again(1, None), actor="ann")
    waiting = submit(ledger)
    for job_id in (running.id, retried, waiting):
        alter(ledger, job_id, created_at=0.0, next_run_at=0.0)
    assert list(retention.remove_jobs(TERMS)) == []
    assert left(ledger) == {running.id, retried, waiting}


def test_all_that_belongs_to_a_job_goes_with_it_and_nothing_of_others(ledger: Ledger, retention: Retention) -> None:
    old, new = ended(ledger, days=31), ended(ledger, days=1)
    numbers = {job_id: ledger.reads.job(job_id).number for job_id in (old, new)}
    points = [{"job_number": n, "position": 0, "stage": "plan", "parcel": "{}"} for n in numbers.values()]
    execute(ledger, checkpoint.insert(), points)
    trail = ledger.reads.events(new)
    assert sum(retention.remove_jobs(TERMS)) == 1
    assert ledger.reads.events(new) == trail
    assert (rows(ledger, event), rows(ledger, checkpoint)) == (len(trail), 1)


def test_many_go_in_chunks_the_oldest_first(ledger: Ledger, retention: Retention) -> None:
    jobs = [new_job(id=f"job-{number:05}") for number in range(2 * CHUNK + 7)]
    ledger.intake.submit(jobs)
    for new in jobs[3::400]:  # some of those between are kept
        ledger.intake.cancel(new.id, actor="ann")
    over = {"state": State.FAILED.value, "finished_at": 1000.0}
    execute(ledger, update(job).where(job.c.state == State.QUEUED).values(**over))
    kept = {new.id for new in jobs[3::400]}
    removal = retention.remove_jobs(TERMS)
    assert next(removal) == CHUNK
    assert min(left(ledger) - kept) > max({new.id for new in jobs} - left(ledger))
    assert list(removal) == [CHUNK, 7 - len(kept)]
    assert left(ledger) == kept
    assert rows(ledger, event) == 2 * len(kept)


def test_a_job_that_is_retried_meanwhile_stays(
    ledger: Ledger, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    rescued, gone = ended(ledger, days=31), ended(ledger, days=31)
    find = retention._old_jobs

    def found_then_retried(terms: Terms, after: int) -> object:
        numbers = find(terms, after)
        if numbers:
            ledger.intake.retry(rescued, Again(1, None), actor="ann")
        return numbers

    monkeypatch.setattr(retention, "_old_jobs", found_then_retried)
    assert list(retention.remove_jobs(TERMS)) == [1]
    assert left(ledger) == {rescued}
    assert gone not in left(ledger)
    assert ledger.reads.events(rescued)


# --- batches and keys ---------------------------------------------------------------------------------
def test_only_batches_without_any_job_go(ledger: Ledger, retention: Retention) -> None:
    for batch_id in ("b1", "b2"):
        ledger.intake.submit(
            [new_job(id=f"{batch_id}-{n}", batch_id=batch_id) for n in "12"], NewBatch(batch_id, "", 5)
        )
    assert list(retention.remove_batches()) == []
    for job_id in ("b1-1", "b1-2", "b2-1"):
        ledger.intake.cancel(job_id, actor="ann")
        age(ledger, job_id, days=31)
    sum(retention.remove_jobs(TERMS))
    assert sum(retention.remove_batches()) == 1
    assert [one.id for one in History(ledger.database).batches()] == ["b2"]


def test_many_empty_batches_go_in_chunks(ledger: Ledger, retention: Retention) -> None:
    many = [{"id": f"b{n}", "tenant": "", "total": 1, "size": 5, "created_at": 1.0} for n in range(CHUNK + 1)]
    execute(ledger, batch.insert(), many)
    assert list(retention.remove_batches()) == [CHUNK, 1]


def test_keys_go_after_their_hours(ledger: Ledger, retention: Retention) -> None:
    for key in ("old", "new"):
        ledger.intake.submit([new_job()], once=Once(key, "f", "", 0.0))
    execute(ledger, update(once).where(once.c.key == "old").values(created_at=once.c.created_at - 25 * HOUR))
    assert list(retention.remove_keys(TERMS)) == [1]
    assert ledger.intake.stored("old", "f") is None
    assert ledger.intake.stored("new", "f") is not None


# --- stuck --------------------------------------------------------------------------------------------
def watch(ledger: Ledger) -> Watch:
    return Watch(ledger.database, lease=LEASE)


def silence(ledger: Ledger, seconds: float) -> None:
    execute(ledger, update(host).values(seen_at=host.c.seen_at - seconds))


def test_jobs_of_a_silent_and_of_an_unknown_host_are_found(ledger: Ledger) -> None:
    ledger.hosts.register("h1", "first", figures())
    running = start(ledger, "h1")
    submit(ledger)
    dispatched = pick_one(ledger, "h1")
    assert watch(ledger).look(3600).lost == ()
    silence(ledger, LEASE + 10)
    ghost = start(ledger, "ghost")
    scene = watch(ledger).look(3600)
    found = {one.job_id: (one.host, one.state) for one in scene.lost}
    assert found == {
        running.id: ("h1", State.RUNNING),
        dispatched.job_id: ("h1", State.DISPATCHED),
        ghost.id: ("ghost", State.RUNNING),
    }
    times = {one.job_id: one.seconds for one in scene.lost}
    assert times[running.id] == pytest.approx(LEASE + 10, abs=30)
    assert times[ghost.id] is None
    assert (scene.total_lost, scene.hosts) == (3, ())


def test_jobs_that_are_due_for_long_are_found_with_their_reason(ledger: Ledger) -> None:
    ledger.hosts.register("h1", "first", figures())
    late, not_yet, small = submit(ledger, need=900 * MIB), submit(ledger), submit(ledger)
    assert [one.job_id for one in ledger.queue.pick(offer(free=200, slots=2))] == [not_yet, small]
    alter(ledger, late, next_run_at=ledger.reads.job(late).next_run_at - 4000)
    retried = start(ledger, "h1", priority=-1)
    ledger.work.give_back(retried, reason=Reason.RETRY, retry_in=60, counted=True)
    Pauses(ledger.database).pause(Scope.WORK, actor="ann")
    scene = watch(ledger).look(3600)
    assert (scene.lost, scene.total_overdue) == ((), 1)
    [stuck] = scene.overdue
    assert (stuck.job_id, stuck.reason, stuck.need) == (late, Reason.NO_MEMORY, 900 * MIB)
    assert stuck.seconds == pytest.approx(4000, abs=30)
    assert [one.id for one in scene.hosts] == ["h1"]
    assert [pause.scope for pause in scene.pauses] == [Scope.WORK]


def test_of_very_many_the_oldest_are_named_and_all_are_counted(ledger: Ledger) -> None:
    jobs = [new_job() for _ in range(MOST + 5)]
    ledger.intake.submit(jobs)
    execute(ledger, update(job).values(next_run_at=job.c.next_run_at - 4000))
    scene = watch(ledger).look(3600)
    assert [one.job_id for one in scene.overdue] == [new.id for new in jobs[:MOST]]
    assert scene.total_overdue == MOST + 5
    claim(ledger, pick_one(ledger))
    assert watch(ledger).look(3600).total_overdue == MOST + 4


def test_of_what_was_seen_the_newest_of_each_kind_and_stage_stay(ledger: Ledger, retention: Retention) -> None:
    observations = Observations(ledger.database)

    def seen(kind: str, stage: str | None, count: int) -> list[Seen]:
        return [Seen(kind, 1, stage, None, None, peak, 1.0) for peak in range(count)]

    many = [*seen("deliver", None, KEPT + 7), *seen("deliver", "pack", KEPT), *seen("import", None, 3)]
    ledger.database.transact(lambda connection: note(connection, many))
    assert list(retention.remove_observations()) == [7]
    assert [one.peak for one in observations.newest("deliver", None)] == list(range(7, KEPT + 7))
    assert len(observations.newest("deliver", "pack")) == KEPT
    assert len(observations.newest("import", None)) == 3
    assert list(retention.remove_observations()) == [0]
