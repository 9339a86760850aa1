"""Whether jobs are taken in, and how long they wait: the pure part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncr_worker.ledger import Host, HostFigures
from ncr_worker.ledger.pauses import Pause, Scope
from ncr_worker.memory.admission import AGAIN, LOW, Limits, Refused, Scene, Verdict, assess
from ncr_worker.memory.drain import Asked, Drain, Work, about
from ncr_worker.pipeline import GIB, MIB

SECONDS = {"small": 2.0, "large": 10.0}
NEED = {"small": 100 * MIB, "large": 900 * MIB}
AMPLE = Limits(1000)
ROUGHLY = [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (9000, "2 h")]


def host(limit: int = GIB, *, budget: int | None = None, slots: int = 4, running: int = 0, state: str = "up") -> Host:
    free = limit if budget is None else budget
    figures = HostFigures(limit, "cgroup v2", free, limit - free, 0, slots, running)
    return Host(f"h{limit // MIB}", "life", state, figures, 1.0)


def waiting(jobs: int, kind: str = "small", tenant: str = "ann", *, waits: bool = True) -> Work:
    return Work(kind, tenant, waits, jobs, jobs * NEED[kind])


def drain(*works: Work, hosts: Sequence[Host] = (host(),), seconds: Mapping[str, float] = SECONDS) -> Drain:
    return Drain.of(works, hosts, seconds)


def scene(*works: Work, hosts: Sequence[Host] = (host(),), at: float = 100.0, **more: Any) -> Scene:
    queued = sum(work.jobs for work in works if work.waits)
    return Scene(tuple(hosts), more.get("pauses", ()), queued, drain(*works, hosts=hosts), at, 0.0)


def asked(kind: str = "small", tenant: str | None = "ann") -> Asked:
    return Asked(kind, NEED[kind], tenant)


def verdict(at: Scene, *jobs: Asked, limits: Limits = AMPLE, refused: Refused | None = None) -> Verdict:
    return assess(at, jobs or [asked()], limits, refused or Refused())


# --- how long it takes ---------------------------------------------------------------------------------
def test_what_is_short_decides_slots_or_memory() -> None:
    assert drain(waiting(40)).whole == pytest.approx(40 * 2 / 4), "four slots, memory for ten"
    assert drain(waiting(40), hosts=[host(slots=20)]).whole == pytest.approx(40 * 2 / 10), "memory for ten"
    assert drain(waiting(3, "large")).whole == pytest.approx(30), "one at a time"


def test_hosts_of_different_sizes_count_for_what_they_can_hold() -> None:
    many_small, few_large = host(512 * MIB, slots=16), host(4 * GIB, slots=2)
    both = drain(hosts=[many_small, few_large])
    assert both.places(100 * MIB) == 5 + 2
    assert both.places(900 * MIB) == 2, "the small host never holds it"
    assert both.places(8 * GIB) == 0


def test_a_host_takes_one_that_is_larger_than_its_budget_when_it_is_idle() -> None:
    assert drain(hosts=[host(budget=500 * MIB)]).places(900 * MIB) == 1


def test_what_runs_is_half_done() -> None:
    assert drain(waiting(4, waits=False)).whole == pytest.approx(1.0)


def test_kinds_that_nobody_knows_and_hosts_that_stop_count_for_nothing() -> None:
    assert drain(waiting(10), seconds={}).whole == 0
    leaving = drain(waiting(10), hosts=[host(), host(state="draining")])
    assert leaving.whole == pytest.approx(5)


def test_a_user_does_not_wait_for_what_another_has_beyond_his_own() -> None:
    both = drain(waiting(10_000), waiting(8, tenant="bob"))
    assert both.wait("bob") == pytest.approx(4 + 4)
    assert both.wait("ann") == pytest.approx(5000 + 4)
    assert both.wait("eve") == 0
    assert both.wait(None) == both.whole
    assert both.plus([asked(tenant="eve")]).wait("eve") == pytest.approx(0.5 * 3)


users = st.sampled_from("abc")
work = st.builds(waiting, st.integers(1, 50), st.sampled_from(sorted(NEED)), users, waits=st.booleans())


@given(st.lists(work), work)
def test_more_work_never_makes_a_wait_shorter(works: list[Work], more: Work) -> None:
    for tenant in (*"abc", None):
        assert drain(*works).wait(tenant) <= drain(*works, more).wait(tenant) + 1e-9
        assert drain(*works).wait(tenant) <= drain(*works).whole + 1e-9


@given(st.lists(work, min_size=1))
def test_another_host_never_makes_it_longer(works: list[Work]) -> None:
    assert drain(*works, hosts=[host(), host(2 * GIB)]).whole <= drain(*works).whole


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (9000, "2 h")]
)
def test_a_time_is_told_roughly(seconds: float, text: str) -> None:
    assert about(seconds) == text


# --- the verdict ---------------------------------------------------------------------------------------
def test_jobs_are_welcome_where_they_fit() -> None:
    found = verdict(scene(hosts=[host(), host(2 * GIB)]))
    assert (found.accepting, found.reason, found.wait) == (True, "2 worker host(s) up", 0)


def test_who_waits_is_told_how_long() -> None:
    found = verdict(scene(waiting(400)))
    assert (found.accepting, found.reason) == (True, "1 worker host(s) up; starts in about 3 min")
    assert found.wait == pytest.approx(200)


@pytest.mark.parametrize(("hosts", "word"), [((), "no worker is up"), ((host(state="draining"),), "are stopping")])
def test_without_a_worker_jobs_are_taken_in_and_told_so(hosts: Sequence[Host], word: str) -> None:
    found = verdict(scene(waiting(10_000), hosts=hosts), limits=Limits(20_000, 1))
    assert found.accepting
    assert word in found.reason


def test_what_no_host_can_hold_names_need_and_largest_host() -> None:
    found = verdict(scene(hosts=[host(), host(512 * MIB)]), asked(), Asked("large", 2 * GIB))
    assert (found.accepting, found.code) == (False, "never_fits")
    assert found.reason == "needs 2,147,483,648 bytes, the largest worker host (h1024) has 1,073,741,824"


def test_memory_that_others_use_is_no_reason_for_never() -> None:
    found = verdict(scene(hosts=[host(budget=50 * MIB)]))
    assert (found.code, found.retry_in) == ("memory_short", AGAIN)
    assert "other programs leave 52,428,800 bytes" in found.reason
    assert "this needs 104,857,600" in found.reason


def test_a_batch_is_short_of_memory_only_when_its_smallest_job_is() -> None:
    tight = scene(hosts=[host(budget=500 * MIB)])
    assert verdict(tight, asked("large"), asked()).accepting
    assert verdict(tight, asked("large")).code == "memory_short"


def test_our_own_reservations_are_no_pressure() -> None:
    figures = HostFigures(GIB, "host", 800 * MIB, 0, 800 * MIB, 4, 4, observed=900 * MIB)
    full = [Host("h", "life", "up", figures, 0.0)]
    assert verdict(scene(waiting(4, waits=False), hosts=full)).accepting


def test_once_short_of_memory_a_little_is_not_enough_for_a_while() -> None:
    refused = Refused(short={"small": 100.0})
    hardly, clearly = [host(budget=110 * MIB)], [host(budget=126 * MIB)]
    again = verdict(scene(hosts=hardly, at=105), refused=refused)
    assert (again.code, again.retry_in) == ("memory_short", AGAIN - 5)
    assert "less a moment ago" in again.reason
    assert verdict(scene(hosts=clearly, at=105), refused=refused).accepting
    assert verdict(scene(hosts=hardly, at=100 + AGAIN), refused=refused).accepting
    assert verdict(scene(hosts=hardly, at=105), refused=Refused(short={"large": 100.0})).accepting


def test_a_full_backlog_tells_when_there_is_room() -> None:
    limits = Limits(100)
    assert verdict(scene(waiting(99)), limits=limits).accepting
    found = verdict(scene(waiting(100)), asked(), asked(), limits=limits)
    assert found.code == "backlog_full"
    assert found.retry_in == pytest.approx(50 * 2 / 100), "two of a hundred have to go"
    unknown = Scene((), (), 100, drain(), 0.0, 0.0)
    assert verdict(unknown, limits=limits).retry_in == 30


def test_a_person_who_paused_the_intake_is_named() -> None:
    pauses = [Pause(Scope.WORK, "bob", "", 0.0), Pause(Scope.INTAKE, "ann", "stocktaking", 0.0)]
    found = verdict(scene(pauses=tuple(pauses)), Asked("large", 8 * GIB))
    assert (found.code, found.reason) == ("intake_paused", "the intake of jobs was paused by ann: stocktaking")


def test_too_long_a_wait_is_refused_until_it_is_clearly_shorter() -> None:
    limits, refused = Limits(10_000, wait=100), Refused(waiting={"ann"})
    assert verdict(scene(waiting(199)), limits=limits).accepting
    found = verdict(scene(waiting(200)), limits=limits)
    assert (found.code, found.wait) == ("overloaded", 100)
    assert found.retry_in == pytest.approx(100 - LOW * 100)
    assert found.reason.startswith("the jobs that ann has waiting take about 2 min, 2 min may be (ADMISSION_MAX_WAIT)")
    assert verdict(scene(waiting(170)), limits=limits).accepting
    assert verdict(scene(waiting(170)), limits=limits, refused=refused).retry_in == pytest.approx(5)
    assert verdict(scene(waiting(160)), limits=limits, refused=refused).accepting


def test_a_long_backlog_of_one_user_is_no_reason_against_another() -> None:
    limits, long = Limits(10_000, wait=100), scene(waiting(4000))
    assert verdict(long, asked(), limits=limits).code == "overloaded"
    assert verdict(long, asked(tenant="bob"), limits=limits).accepting
    assert verdict(long, asked(tenant=None), limits=limits).reason.startswith("the jobs that wait take about 33 min")


def test_without_a_limit_they_may_wait_for_ever() -> None:
    assert verdict(scene(waiting(9_000)), limits=Limits(10_000)).accepting


def test_a_batch_that_takes_long_by_itself_is_taken_in_when_little_waits() -> None:
    limits, batch = Limits(10_000, wait=100), [asked()] * 300
    assert verdict(scene(waiting(160)), *batch, limits=limits).accepting
    refused = verdict(scene(waiting(170)), *batch, limits=limits)
    assert refused.code == "overloaded"
    assert refused.retry_in == pytest.approx(5)
