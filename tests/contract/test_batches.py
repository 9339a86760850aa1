"""Cancel and retry of many jobs: in chunks, each of them as if it had been asked for alone."""

from __future__ import annotations

import pytest
from ledgers import emptied, holds, start, submit

from ncr_worker import batches
from ncr_worker.batches import Batches
from ncr_worker.errors import Conflict
from ncr_worker.job import Job, Reason, State
from ncr_worker.ledger import Ledger
from ncr_worker.ledger.intake import Again
from ncr_worker.sql import Database


@pytest.fixture
def ledger(database: Database, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setattr(batches, "CHUNK", 2)
    return emptied(database)


def failed(ledger: Ledger, key: str) -> Job:
    job = start(ledger, exclusive_key=key)
    ledger.work.finish(job, State.FAILED, error_code="source_missing", error="because")
    return job


def test_all_that_have_not_ended_are_asked_to_stop(ledger: Ledger) -> None:
    done, running = failed(ledger, "a"), start(ledger)
    cleaned = start(ledger)
    ledger.work.enter(cleaned, "upload")
    ledger.work.give_back(cleaned, reason=Reason.GIVEN_BACK)
    ids = [done.id, running.id, cleaned.id, *(submit(ledger) for _ in range(3))]
    assert Batches(ledger).cancel(ids, actor="ann") == ids[1:]
    states = [ledger.reads.job(job_id).state for job_id in ids]
    assert states == [State.FAILED, State.CANCELLING, State.QUEUED, *[State.CANCELLED] * 3]
    assert ledger.reads.job(cleaned.id).reason == Reason.WINDING_UP
    assert Batches(ledger).cancel(ids[3:], actor="ann") == []
    assert Batches(ledger).cancel([], actor="ann") == []


def test_one_that_cannot_run_again_does_not_stop_the_others(ledger: Ledger) -> None:
    keys = {failed(ledger, key).id: key for key in "abcde"}
    ids = list(keys)
    newer = submit(ledger, exclusive_key="b")
    ledger.intake.retry(ids[3], Again(1, "d"), actor="bob")

    def again(job: Job) -> Again:
        if job.id == ids[4]:
            raise Conflict("not this one")
        return Again(7, keys[job.id])

    found = Batches(ledger).retry(ids, again, actor="ann")
    assert found.job_ids == [ids[0], ids[2]]
    assert found.refused.keys() == {ids[1], ids[3], ids[4]}
    assert newer in found.refused[ids[1]]
    assert holds(ledger).keys() == {"a", "b", "c", "d"}
    after = [ledger.reads.job(job_id) for job_id in ids]
    assert [(job.round, job.need) for job in after if job.state is State.QUEUED] == [(2, 7), (2, 7), (2, 1)]
    assert [job.id for job in after if job.state is State.FAILED] == [ids[1], ids[4]]
