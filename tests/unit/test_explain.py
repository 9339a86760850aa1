"""Why a job waits, and what would have to end before it starts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import a_job

from ncr_worker.history import Batch
from ncr_worker.job import Job, Reason, State
from ncr_worker.ledger import Host, HostFigures
from ncr_worker.ledger.pauses import Pause, Scope
from ncr_worker.memory.admission import Scene
from ncr_worker.memory.drain import Drain, Work
from ncr_worker.memory.needs import Basis
from ncr_worker.memory.predictor import Fit, Observation
from ncr_worker.pipeline import MIB
from ncr_worker.views.explain import JobExplanation, Present, Situation, explanation, places
from ncr_worker.views.prediction import explained as of_need

NOW = 1_000_000.0
AT = datetime(2026, 11, 22, tzinfo=UTC)
SECONDS = {"deliver": 60.0}
numbers = itertools.count(1)


def host(name: str = "h1", *, limit: int = 1000, budget: int = 800, slots: int = 4, state: str = "up") -> Host:
    """Sizes in MiB."""
    return Host(name, "life", state, HostFigures(limit * MIB, "host", budget * MIB, 0, 0, slots, 0), 1.0)


def running(reserved: int, *, since: float = 0.0, on: str = "h1", **more: Any) -> Job:
    """`reserved`: MiB; it began `since` seconds ago."""
    usual = {"id": f"r{next(numbers)}", "state": State.RUNNING, "stage": "pack", "host": on}
    return a_job(**usual | {"reserved": reserved * MIB, "started_at": NOW - since} | more)


def queued(need: int = 100, **more: Any) -> Job:
    return a_job(**{"state": State.QUEUED, "reason": Reason.NEW, "need": need * MIB, "next_run_at": NOW} | more)


def present(
    *jobs: Job,
    hosts: Sequence[Host] = (host(),),
    pauses: Sequence[Pause] = (),
    works: Sequence[Work] = (),
    bytes_now: Mapping[str, int] | None = None,
) -> Present:
    scene = Scene(tuple(hosts), tuple(pauses), 0, Drain.of(works, hosts, SECONDS), 0.0, 0.0)
    return Present(scene, jobs, bytes_now or {}, NOW)


def explained(job: Job, at: Present | None = None, peaks: Sequence[int] = (), **more: Any) -> JobExplanation:
    """`peaks`: of earlier jobs of its kind."""
    fit = Fit([Observation(None, peak, 1.0) for peak in peaks])
    prediction = of_need(Basis(fit.predict(None, job.need), fit, None, None), job.version, {})
    return explanation(Situation(job, at or present(), prediction, **more), AT)


def codes(found: JobExplanation) -> list[str]:
    return [reason.code for reason in found.reasons]


def test_a_job_that_fits_is_about_to_start() -> None:
    found = explained(queued())
    assert (codes(found), found.starts_in_seconds, found.waits) == (["next"], 0.0, True)
    assert [(place.fits, place.must_end, place.free_bytes) for place in found.hosts] == [("now", [], 800 * MIB)]


def test_what_has_to_end_first_is_named_in_the_order_of_its_end() -> None:
    early, late, last = running(200, since=50), running(300, since=20), running(250, since=5)
    found = explained(queued(500), present(late, last, early))
    assert codes(found) == ["no_memory"]
    assert found.reasons[0].text == "needs 524,288,000 bytes; h1 has 52,428,800 free, and no other has more"
    [place] = found.hosts
    assert (place.fits, place.fits_in_seconds, place.free_slots) == ("later", 40, 1)
    assert [(one.task_id, one.ends_in_seconds) for one in place.must_end] == [(early.id, 10), (late.id, 40)]
    assert found.starts_in_seconds == 40


def test_the_host_where_it_fits_soonest_stands_first() -> None:
    hosts = [host(), host("h2"), host("h0", limit=9)]
    at = present(running(800, since=10), running(800, since=40, on="h2"), hosts=hosts)
    assert [(place.host, place.fits) for place in explained(queued(), at).hosts] == [
        ("h2", "later"),
        ("h1", "later"),
        ("h0", "never"),
    ]


def test_what_a_job_is_charged_now_counts_not_what_it_reserved_once() -> None:
    one = running(700)
    assert explained(queued(500), present(one, bytes_now={one.id: 100 * MIB})).hosts[0].fits == "now"


def test_a_job_larger_than_the_budget_starts_when_it_is_alone() -> None:
    one, two = running(10, since=10), running(10, since=20)
    [place] = explained(queued(900), present(one, two)).hosts
    assert [each.task_id for each in place.must_end] == [two.id, one.id]


def test_slots_are_what_it_waits_for_where_memory_is_enough() -> None:
    found = explained(queued(), present(running(10, since=59), running(10), hosts=[host(slots=2)]))
    assert (codes(found), found.starts_in_seconds) == (["no_slot"], 1.0)


def test_a_job_that_fits_nowhere_says_so() -> None:
    found = explained(queued(2000), present(hosts=[host(), host("h2", limit=1500)]))
    assert (codes(found), found.starts_in_seconds) == (["never_fits"], None)
    assert "the largest worker host (h2) has" in found.reasons[0].text


def test_nobody_knows_when_kinds_without_history_end() -> None:
    found = explained(queued(), present(running(800, kind="other")))
    assert found.hosts[0].must_end[0].ends_in_seconds is None
    assert found.starts_in_seconds is None


def test_who_takes_longer_than_usual_is_expected_to_take_as_long_again() -> None:
    [place] = explained(queued(), present(running(800, since=90))).hosts
    assert place.fits_in_seconds == 90


@pytest.mark.parametrize(("hosts", "text"), [([], "no worker is up"), ([host(state="draining")], "are stopping")])
def test_without_a_worker(hosts: Sequence[Host], text: str) -> None:
    found = explained(queued(), present(hosts=hosts))
    assert (codes(found), found.starts_in_seconds) == (["no_worker"], None)
    assert text in found.reasons[0].text


def test_a_pause_is_named_first() -> None:
    pauses = [Pause(Scope.INTAKE, "bob", "", 0.0), Pause(Scope.WORK, "ann", "night", 0.0)]
    found = explained(queued(2000), present(pauses=pauses))
    assert (codes(found), found.starts_in_seconds) == (["paused", "never_fits"], None)
    assert found.reasons[0].text == "nothing is started now: paused by ann (night)"


def test_a_retry_tells_when_it_is_due_and_why() -> None:
    found = explained(queued(reason=Reason.RETRY, next_run_at=NOW + 30), noted="SFTP: cut")
    assert [(one.code, one.text) for one in found.reasons] == [("retry", "will be tried again; due in 30 s: SFTP: cut")]
    assert found.starts_in_seconds == 30
    down = explained(queued(reason=Reason.SERVICE_DOWN, next_run_at=NOW + 5, error="validator: 503"))
    assert down.reasons[0].text.endswith("due in 5 s: validator: 503")


def test_a_full_batch_is_named() -> None:
    batch = Batch("b", "ann", 10, 2, 0.0, {State.RUNNING: 1, State.DISPATCHED: 1, State.QUEUED: 8})
    assert codes(explained(queued(), batch=batch)) == ["batch_full", "next"]
    assert codes(explained(queued(), batch=Batch("b", "ann", 10, 3, 0.0, batch.counts))) == ["next"]


def test_its_turn_comes_after_what_its_user_has_before_it() -> None:
    ahead = [Work("deliver", "ann", True, 40, 40 * 100 * MIB)]
    works = [Work("deliver", "ann", True, 100, 100 * 100 * MIB), Work("deliver", "bob", True, 4, 4 * 100 * MIB)]
    found = explained(queued(tenant="ann"), present(works=works), ahead=ahead)
    assert (codes(found), found.ahead) == (["turn"], 40)
    assert found.reasons[0].text == "40 jobs of ann come first, in turns with 1 other user(s)"
    assert found.starts_in_seconds == 40 * 60 / 4 + 60, "four at a time, and all that bob has"


def test_a_job_that_was_passed_too_often_holds_the_others_up() -> None:
    assert "held_up" in codes(explained(queued(), held_by="big"))


def test_who_does_not_wait_is_told_where_it_is() -> None:
    found = explained(running(100))
    assert (found.waits, found.hosts, found.starts_in_seconds) == (False, [], None)
    assert [(one.code, one.text) for one in found.reasons] == [("running", "it is on h1, step pack")]
    ended = explained(a_job(state=State.FAILED, error="no file"))
    assert ended.reasons[0].text == "it has ended: no file"


def test_its_memory_is_beside_that_of_its_kind() -> None:
    memory = explained(queued(300, predicted=200, granted=250, peak=270), peaks=[3, 1, 2]).memory
    assert (memory.predicted_bytes, memory.need_bytes, memory.reserved_bytes) == (200, 300 * MIB, 250)
    assert (memory.peak_bytes, memory.runs, memory.usual_peak_bytes, memory.largest_peak_bytes) == (270, 3, 2, 3)


loads = st.builds(running, st.integers(0, 900), since=st.floats(0, 200), on=st.sampled_from(["h1", "h2"]))
machines = st.lists(st.builds(host, st.sampled_from(["h1", "h2"])), unique_by=lambda each: each.id)


@given(st.lists(loads, max_size=8), machines, st.integers(0, 1200))
def test_it_fits_once_all_of_these_have_ended_and_not_before(on: list[Job], up: list[Host], need: int) -> None:
    for place in places(need * MIB, present(*on, hosts=up)):
        there = [job for job in on if job.host == place.host]
        gone = {one.task_id for one in place.must_end}
        left = [job for job in there if job.id not in gone]
        if place.fits == "never":
            assert need > 1000
            continue
        assert _fits(left, need)
        assert not place.must_end or not _fits([job for job in there if job.id not in gone - {last(place)}], need)


def last(place: Any) -> str:
    return str(place.must_end[-1].task_id)


def _fits(there: Sequence[Job], need: int) -> bool:
    alone = not there and need <= 1000
    return len(there) < 4 and (alone or need * MIB <= max(800 * MIB - sum(job.reserved for job in there), 0))
