"""Group commit: jobs that come together share a transaction, and each caller hears of its own job only."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from ledgers import emptied, new_job, opened

from ncr_worker.errors import Conflict
from ncr_worker.group_commit import GroupCommit
from ncr_worker.job import NewJob
from ncr_worker.ledger import Ledger
from ncr_worker.sql import DatabaseAway

JOBS = 20


@pytest.fixture
def ledger(tmp_path: Any) -> Any:
    with opened(f"sqlite:///{tmp_path / 'ncr.sqlite3'}") as database:
        yield emptied(database)


class Recorder:
    """Stands before the ledger's own submit: notes the groups, and lets the first one in only when all have come."""

    def __init__(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: list[list[str]] = []
        self.open = threading.Event()
        self.begun = threading.Event()
        self.fail: Callable[[Sequence[NewJob]], None] = lambda _jobs: None
        real = ledger.intake.submit

        def submit(jobs: Sequence[NewJob], *, actor: str) -> Any:
            self.groups.append([job.id for job in jobs])
            self.begun.set()
            assert self.open.wait(60)
            self.fail(jobs)
            return real(jobs, actor=actor)

        monkeypatch.setattr(ledger.intake, "submit", submit)


def all_at_once(ledger: Ledger, recorder: Recorder, jobs: Sequence[NewJob]) -> list[Exception | None]:
    """Submit the first job; while it is being stored, all others. What each caller got."""
    group = GroupCommit(ledger)

    def one(job: NewJob) -> Exception | None:
        try:
            group.submit(job, actor="api")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            return error
        return None

    with ThreadPoolExecutor(len(jobs)) as callers:
        first = callers.submit(one, jobs[0])
        assert recorder.begun.wait(60)
        others = [callers.submit(one, job) for job in jobs[1:]]
        while sum(map(len, group.waiting.values())) < len(others):
            pass
        recorder.open.set()
        return [first.result(), *(other.result() for other in others)]


def test_those_who_come_meanwhile_share_one_transaction(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, jobs = Recorder(ledger, monkeypatch), [new_job() for _ in range(JOBS)]
    answers = all_at_once(ledger, recorder, jobs)
    assert [len(group) for group in recorder.groups] == [1, JOBS - 1]
    assert len(ledger.reads.jobs([job.id for job in jobs])) == JOBS
    assert answers == [None] * JOBS


def test_one_that_is_refused_does_not_harm_the_others(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.intake.submit([new_job(exclusive_key="held")])
    recorder = Recorder(ledger, monkeypatch)
    jobs = [new_job(exclusive_key="held" if number == 7 else None) for number in range(JOBS)]
    answers = all_at_once(ledger, recorder, jobs)
    refused = [number for number, answer in enumerate(answers) if isinstance(answer, Conflict)]
    assert refused == [7]
    assert len(ledger.reads.jobs([job.id for job in jobs])) == JOBS - 1


def test_of_two_for_one_key_in_a_group_one_is_stored(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [new_job(exclusive_key="target" if number in (3, 4) else None) for number in range(JOBS)]
    answers = all_at_once(ledger, Recorder(ledger, monkeypatch), jobs)
    assert sum(isinstance(answer, Conflict) for answer in answers) == 1
    assert len(ledger.reads.jobs([job.id for job in jobs])) == JOBS - 1


@pytest.mark.parametrize("error", [DatabaseAway("away"), RuntimeError("a bug")])
def test_when_nothing_was_stored_everybody_hears_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    recorder, jobs = Recorder(ledger, monkeypatch), [new_job() for _ in range(JOBS)]

    def fail(group: Sequence[NewJob]) -> None:
        if len(group) > 1:
            raise error

    recorder.fail = fail
    answers = all_at_once(ledger, recorder, jobs)
    assert answers == [None, *[error] * (JOBS - 1)]
    assert [len(group) for group in recorder.groups] == [1, JOBS - 1]  # a database that is away is not asked again
    assert len(ledger.reads.jobs([job.id for job in jobs])) == 1
