"""Lists of jobs and batches: filters, pages, and every public status word finds exactly its jobs."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledgers import alter, emptied, execute, new_job, pick_one, start, submit
from sqlalchemy import insert

from ncr_worker.errors import NotFound
from ncr_worker.history import History, Line, Wanted
from ncr_worker.job import NewBatch, Reason, State
from ncr_worker.ledger import Ledger
from ncr_worker.ledger.tables import batch, job
from ncr_worker.pipeline import Args, Parcel, Pipeline, stage
from ncr_worker.pipelines import load_pipelines
from ncr_worker.sql import Database
from ncr_worker.views.job import shapes, word


class Nothing(Parcel):
    args: Args


@stage()
def weigh(_run: Any, parcel: Nothing) -> Nothing:
    return parcel


@stage()
def ship(_run: Any, parcel: Nothing) -> Nothing:
    return parcel


ODD = Pipeline(
    "odd",
    Args,
    Nothing,
    (weigh, ship),
    words={"weigh": "pending", "ship": "completed", "running": "waiting", "cancelled": "validation_failed"},
)
"""Its words are those of other states."""
PIPELINES = load_pipelines() | {"odd": ODD}
WORDS = sorted(
    {"waiting", "validation_failed", "pending", "processing", "completed", "failed", "cancelled"}
    | {said for pipeline in PIPELINES.values() for said in pipeline.words.values()}
)


@pytest.fixture
def history(ledger: Ledger) -> History:
    return History(ledger.database)


def ids(lines: list[Line]) -> list[str]:
    return [line.id for line in lines]


# --- status words -------------------------------------------------------------------------------------
STAGES = sorted({stage.name for pipeline in PIPELINES.values() for stage in pipeline.stages} | {"of_old"})
ROWS = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(sorted(PIPELINES)),
        "state": st.sampled_from([state.value for state in State]),
        "reason": st.none() | st.sampled_from([reason.value for reason in Reason]),
        "stage": st.none() | st.sampled_from(STAGES),
        "error_code": st.none() | st.sampled_from(["validation_failed", "sftp_cut"]),
    }
)


def insert_rows(ledger: Ledger, rows: list[dict[str, Any]]) -> None:
    usual = {"version": 1, "ref": "A", "tenant": "ann", "args": {}, "priority": 0, "attempt": 0, "max_attempts": 5}
    usual |= {"round": 1, "need": 1, "reserved": 0, "passed": 0, "created_at": 0.0, "next_run_at": 0.0}
    values = [{**usual, "id": str(uuid.uuid4()), **row} for row in rows]
    execute(ledger, insert(job), values)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS, min_size=1, max_size=30))
def test_each_word_finds_exactly_the_jobs_that_are_shown_with_it(
    database: Database, rows: list[dict[str, Any]]
) -> None:
    ledger = emptied(database)
    insert_rows(ledger, rows)
    history = History(database)
    shown = {line.id: word(line, PIPELINES[line.kind]) for line in history.jobs(Wanted())}
    assert len(shown) == len(rows)
    assert set(shown.values()) <= set(WORDS)
    for said in WORDS:
        found = ids(history.jobs(Wanted(shapes=shapes(said, PIPELINES))))
        assert sorted(found) == sorted(job_id for job_id, one in shown.items() if one == said), said


def test_a_word_that_nobody_says_finds_nothing(ledger: Ledger, history: History) -> None:
    submit(ledger)
    assert shapes("done and dusted", PIPELINES) == []
    assert history.jobs(Wanted(shapes=[])) == []


# --- jobs ---------------------------------------------------------------------------------------------
def test_filters_leave_what_has_all_that_is_wanted(ledger: Ledger, history: History) -> None:
    ledger.intake.submit([new_job(id="in-batch", batch_id="b", ref="A-1", tenant="ann")], NewBatch("b", "ann", 5))
    submit(ledger, id="bobs", ref="A-1", tenant="bob")
    submit(ledger, id="other-kind", kind="odd", ref="A-2", tenant="ann")
    submit(ledger, id="old", ref="A-3", tenant="ann")
    alter(ledger, "old", created_at=1000.0)
    expected = {
        Wanted(): ["old", "other-kind", "bobs", "in-batch"],
        Wanted(kind="odd"): ["other-kind"],
        Wanted(batch_id="b"): ["in-batch"],
        Wanted(tenant="ann"): ["old", "other-kind", "in-batch"],
        Wanted(tenant="Ann"): [],
        Wanted(ref="A-1"): ["bobs", "in-batch"],
        Wanted(ref="A-1", tenant="bob"): ["bobs"],
        Wanted(since=1000.5): ["other-kind", "bobs", "in-batch"],
        Wanted(since=1000.0, until=1000.5): ["old"],
        Wanted(until=1000.0): [],
    }
    for wanted, found in expected.items():
        assert ids(history.jobs(wanted)) == found, wanted


def test_pages_have_every_job_once_while_new_ones_arrive_and_old_ones_go(ledger: Ledger, history: History) -> None:
    there = [submit(ledger, id=f"job-{number:02}") for number in range(10)]
    seen: list[str] = []
    before = None
    while page := history.jobs(Wanted(), before=before, limit=3):
        seen += ids(page)
        before = page[-1].number
        submit(ledger)
        execute(ledger, job.delete().where(job.c.id == seen[-1]))
    assert seen == there[::-1]


def test_a_line_tells_what_the_record_tells(ledger: Ledger, history: History) -> None:
    started = start(ledger, host="h1")
    ledger.work.finish(started, State.FAILED, error_code="sftp_cut", error="cut", peak=5)
    record = ledger.reads.job(started.id)
    [line] = history.jobs(Wanted())
    assert line.terminal
    for name in Line.__dataclass_fields__:
        assert getattr(line, name) == getattr(record, name), name


def test_counts_are_by_kind_and_state(ledger: Ledger, history: History) -> None:
    submit(ledger)
    pick_one(ledger)
    submit(ledger)
    submit(ledger, kind="odd")
    one = {("deliver", State.DISPATCHED): 1, ("deliver", State.QUEUED): 1, ("odd", State.QUEUED): 1}
    assert history.counts() == one
    assert history.queued() == 2


# --- batches ------------------------------------------------------------------------------------------
def add_batch(ledger: Ledger, batch_id: str, *, tenant: str = "ann", jobs: int = 1) -> None:
    new = [new_job(batch_id=batch_id, tenant=tenant) for _ in range(jobs)]
    ledger.intake.submit(new, NewBatch(batch_id, tenant, 5))


def test_pages_of_batches_have_each_once_also_those_of_one_moment(ledger: Ledger, history: History) -> None:
    for number in range(7):
        add_batch(ledger, f"b{number}", jobs=number + 1)
    same = history.batch("b0").created_at
    execute(ledger, batch.update().values(created_at=same))
    seen: list[tuple[str, int]] = []
    before = None
    while page := history.batches(before=before, limit=3):
        seen += [(one.id, one.counts[State.QUEUED]) for one in page]
        before = page[-1].id
        add_batch(ledger, f"new-{len(seen)}")
    assert seen == [(f"b{number}", number + 1) for number in reversed(range(7))]


def test_batches_of_one_user_the_newest_first(ledger: Ledger, history: History) -> None:
    for batch_id, tenant in (("b1", "ann"), ("b2", "bob"), ("b3", "ann")):
        add_batch(ledger, batch_id, tenant=tenant)
    assert [one.id for one in history.batches(tenant="ann")] == ["b3", "b1"]
    assert history.batches(tenant="nobody") == []
    with pytest.raises(NotFound, match="b9"):
        history.batches(before="b9")
