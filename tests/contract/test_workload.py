"""What waits and runs, by kind and user, on every database: counted, and sampled where it is long."""

from __future__ import annotations

import pytest
from ledgers import claim, figures, new_job, pick_one, submit
from sqlalchemy import event

from ncr_worker.ledger import Ledger
from ncr_worker.ledger.observations import Seen, note
from ncr_worker.ledger.pauses import Pauses
from ncr_worker.memory import workload
from ncr_worker.memory.admission import Admission, Limits
from ncr_worker.memory.drain import Asked, Work
from ncr_worker.memory.workload import NEWEST, Workload
from ncr_worker.pipeline import MIB


def saw(ledger: Ledger, *seconds: float, kind: str = "deliver", stage: str | None = None) -> None:
    seen = [Seen(kind, 1, stage, None, None, MIB, each) for each in seconds]
    ledger.database.transact(lambda connection: note(connection, seen))


def many(ledger: Ledger, count: int, **changes: object) -> None:
    ledger.intake.submit([new_job(**changes) for _ in range(count)])


def test_what_waits_and_runs_is_counted_by_kind_and_user(ledger: Ledger) -> None:
    assert Workload(ledger.database).now() == []
    many(ledger, 2, need=100 * MIB)
    claim(ledger, pick_one(ledger))
    many(ledger, 3, kind="other", tenant="bob", need=10 * MIB)
    assert sorted(Workload(ledger.database).now(), key=str) == [
        Work("deliver", "ann", False, 1, 100 * MIB),
        Work("deliver", "ann", True, 1, 100 * MIB),
        Work("other", "bob", True, 3, 30 * MIB),
    ]


def test_of_a_long_backlog_a_sample_tells_kinds_and_sizes(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "SAMPLE", 100)
    for _ in range(300):  # in turns, as many clients send them
        many(ledger, 1, need=10 * MIB)
        many(ledger, 1, kind="other", need=50 * MIB)
        many(ledger, 1, tenant="bob", need=20 * MIB)
    many(ledger, 1, tenant="eve", kind="other", need=50 * MIB)
    found = Workload(ledger.database).now()
    users = {work.tenant: sum(each.jobs for each in found if each.tenant == work.tenant) for work in found}
    assert users.keys() == {"ann", "bob", "eve"}
    assert users["ann"] == pytest.approx(600, abs=1)
    assert users["bob"] == 300, "jobs are counted, not estimated"
    mine = {work.kind: work for work in found if work.tenant == "ann"}
    assert mine["deliver"].jobs == pytest.approx(300, rel=0.3)
    assert mine["deliver"].need == mine["deliver"].jobs * 10 * MIB
    assert mine["other"].need == mine["other"].jobs * 50 * MIB


def test_durations_are_those_of_the_newest_whole_runs(ledger: Ledger) -> None:
    saw(ledger, *[100.0] * 10)
    saw(ledger, *[1.0, 3.0] * (NEWEST // 2))
    saw(ledger, 50.0, stage="pack")
    saw(ledger, 7.0, kind="other")
    assert Workload(ledger.database).seconds(["deliver", "other", "unknown"]) == {"deliver": 2.0, "other": 7.0}


def test_what_comes_before_a_job_is_what_its_user_sent_earlier_or_with_a_smaller_priority(ledger: Ledger) -> None:
    many(ledger, 3, need=10 * MIB)
    many(ledger, 4, tenant="bob")
    job = ledger.reads.job(submit(ledger, priority=1))
    many(ledger, 5, priority=1)
    many(ledger, 2, kind="other", need=30 * MIB)
    ahead = Workload(ledger.database).ahead(job)
    assert sorted(ahead, key=str) == [
        Work("deliver", "ann", True, 3, 30 * MIB),
        Work("other", "ann", True, 2, 60 * MIB),
    ]


def test_admission_counts_what_the_hosts_can_drain(ledger: Ledger) -> None:
    ledger.hosts.register("h1", "life", figures(slots=2, budget=800 * MIB))
    saw(ledger, 10.0)
    many(ledger, 20, need=100 * MIB)
    found = Admission(ledger, Pauses(ledger.database), Limits(1000, wait=60)).explain(Asked("deliver", MIB, "ann"))
    assert (found.accepting, found.code, found.wait, found.retry_in) == (False, "overloaded", 100, 52)


def test_many_submits_within_a_moment_read_the_ledger_once(ledger: Ledger) -> None:
    ledger.hosts.register("h1", "life", figures())
    admission, statements = Admission(ledger, Pauses(ledger.database), Limits(1000)), []

    @event.listens_for(ledger.database.engine, "before_cursor_execute")
    def count(*_: object) -> None:
        statements.append(1)

    admission.judge([Asked("deliver", MIB, "ann")])
    first = len(statements)
    for _ in range(50):
        admission.judge([Asked("deliver", MIB, "ann")])
    event.remove(ledger.database.engine, "before_cursor_execute", count)
    assert first > 0
    assert len(statements) <= 2 * first, "once more at most, if this machine was slow"
