"""Which waiting jobs start: fair turns between tenants, what fits, and nobody passed for ever."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncr_worker.picking import CREDIT, STEADY, STEPS, TYPICAL, Releases, Room, Round, Turns, Waiting, level

K = 2
_numbers = itertools.count(1)


def job(need: int = 10, tenant: str = "ann", **changes: Any) -> Waiting:
    """The next job in the backlog."""
    number = next(_numbers)
    return Waiting(number, f"id-{number}", "deliver", need, tenant, **changes)


def considered(round_: Round, jobs: Iterable[Waiting]) -> Round:
    for one in jobs:
        if round_.done:
            break
        round_.consider(one)
    return round_


def turns(jobs: Iterable[Waiting], used: dict[str, float], credit: float = 1e9) -> list[Waiting]:
    """All jobs start."""
    order, found = Turns(jobs, used, credit), []
    for one in order:
        found.append(one)
        order.charge(one)
    return found


# --- what fits ----------------------------------------------------------------------------------------
def test_jobs_start_until_the_slots_are_taken() -> None:
    jobs = [job() for _ in range(4)]
    round_ = considered(Round(Room(slots=3, free=100, limit=100), K), jobs)
    assert (round_.taken, round_.free, round_.done) == (jobs[:3], 70, True)


def test_a_job_may_take_all_that_is_free_and_not_a_byte_more() -> None:
    assert Round(Room(slots=1, free=10, limit=100), K).consider(job(10))
    round_ = Round(Room(slots=1, free=10, limit=100), K)
    big = job(11)
    assert not round_.consider(big)
    assert (round_.taken, round_.free, round_.refused) == ([], 10, {big.number: big})


def test_what_earlier_jobs_took_is_no_longer_there() -> None:
    first, second, third = job(60), job(60), job(40)
    round_ = considered(Round(Room(slots=9, free=100, limit=100), K), [first, second, third])
    assert (round_.taken, round_.refused) == ([first, third], {second.number: second})


def test_a_job_without_need_starts_on_a_full_host() -> None:
    assert Round(Room(slots=1, free=0, limit=100), K).consider(job(0))


@pytest.mark.parametrize(("need", "starts"), [(100, True), (101, False)])
def test_on_an_idle_host_the_first_may_have_the_whole_limit(need: int, starts: bool) -> None:
    big, small = job(need), job(1)
    round_ = considered(Round(Room(slots=9, free=20, limit=100, idle=True), K), [big, small])
    assert round_.taken == ([big] if starts else [small])


def test_on_an_idle_host_the_second_has_what_is_left_of_the_budget() -> None:
    first, second, third = job(15), job(50), job(5)
    round_ = considered(Round(Room(slots=9, free=20, limit=100, idle=True), K), [first, second, third])
    assert round_.taken == [first, third]


def test_a_job_for_a_larger_host_waits_and_is_in_nobodys_way() -> None:
    huge = job(101, passed=99)
    round_ = considered(Round(Room(9, 50, 100), 0), [huge, job(), job()])
    assert (len(round_.taken), round_.too_big, round_.refused) == (2, {huge.number: huge}, {})
    assert not round_.barrier
    assert not round_.passed


@given(
    room=st.builds(Room, st.integers(1, 8), st.integers(0, 100), st.integers(50, 120), st.booleans()),
    needs=st.lists(st.integers(0, 130), max_size=30),
)
def test_never_more_than_is_free_except_by_one_alone_on_an_idle_host(room: Room, needs: list[int]) -> None:
    round_ = considered(Round(room, K), [job(need) for need in needs])
    sizes = [one.need for one in round_.taken]
    assert sum(sizes) <= room.free or (len(sizes) == 1 and room.idle and sizes[0] <= room.limit)
    assert len(sizes) <= room.slots
    told = {*round_.refused, *round_.too_big}
    assert told.isdisjoint(one.number for one in round_.taken)
    assert all(round_.refused[number].need <= room.limit for number in round_.refused)
    assert all(count <= K for count in round_.passed.values())
    if room.idle and any(need <= room.limit for need in needs):
        assert sizes, "an idle host always starts something"


# --- nobody is passed for ever ------------------------------------------------------------------------
def test_a_job_that_waits_is_passed_only_so_often_in_one_round() -> None:
    big, *small = job(60), *[job() for _ in range(5)]
    round_ = considered(Round(Room(9, 50, 100), K), [big, *small])
    assert round_.taken == small[:K]
    assert round_.passed == {big.number: K}
    assert round_.barrier


def test_passes_of_earlier_rounds_count() -> None:
    big, *small = job(60, passed=K - 1), *[job() for _ in range(5)]
    round_ = considered(Round(Room(9, 50, 100), K), [big, *small])
    assert (round_.taken, round_.passed) == (small[:1], {big.number: 1})


@pytest.mark.parametrize("passed", [K, K + 1])
def test_a_job_that_was_passed_often_enough_lets_nobody_by(passed: int) -> None:
    round_ = considered(Round(Room(9, 50, 100), K), [job(60, passed=passed), job()])
    assert (round_.taken, round_.barrier) == ([], True)


def test_what_starts_before_it_is_considered_does_not_pass_it() -> None:
    first, big = job(), job(60)
    round_ = considered(Round(Room(9, 50, 100), K), [first, big])
    assert (round_.taken, round_.passed, round_.barrier) == ([first], {}, False)


def test_the_job_passed_most_closes_the_barrier_for_all() -> None:
    fresh, tired = job(60), job(70, passed=K - 1)
    round_ = considered(Round(Room(9, 50, 100), K), [fresh, tired, job(), job()])
    assert len(round_.taken) == 1
    assert round_.passed == {fresh.number: 1, tired.number: 1}


def test_once_it_fits_it_starts_whatever_was_before() -> None:
    big = job(60, passed=K + 5)
    round_ = considered(Round(Room(9, 70, 100), K), [big, job()])
    assert len(round_.taken) == 2


# --- who delays nobody --------------------------------------------------------------------------------
def test_a_job_that_leaves_enough_for_one_that_waits_may_always_pass_it() -> None:
    big, beside, too_much = job(60, passed=K), job(38), job(10)
    round_ = considered(Round(Room(9, 50, 100, held=[50]), K), [big, beside, too_much])
    assert round_.taken == [beside], "62 are left once the job of 50 has ended, and 52 beside both"
    assert not round_.passed


def test_what_is_left_for_one_that_waits_may_change_a_little() -> None:
    big, just_enough = job(60, passed=K), job(40)
    assert considered(Round(Room(9, 50, 100, held=[50]), K), [big, just_enough]).taken == []


def test_who_has_to_wait_for_one_that_waits_is_not_passed_for_ever_either() -> None:
    big, behind, *small = job(80, passed=K), job(55), *[job(4) for _ in range(5)]
    round_ = considered(Round(Room(9, 60, 100, held=[40]), K), [big, behind, *small])
    assert (round_.taken, round_.passed) == (small[: K + 1], {behind.number: K}), "beside the first of them it fits"


@pytest.mark.parametrize("passed_at_its_cost", [True, False])
def test_what_has_started_in_the_same_round_may_end_first_too(passed_at_its_cost: bool) -> None:
    """The big one may start when that of 45 and that of 50 have ended, but not beside one of 5."""
    big, other, small = job(108, passed=K - 1), job(45), job(5)
    line = [big, other, small] if passed_at_its_cost else [other, big._replace(passed=K), small]
    assert considered(Round(Room(9, 60, 200, held=[50, 90]), K), line).taken == [other]


def test_what_lacks_more_than_all_jobs_hold_is_passed_at_its_cost() -> None:
    """It waits for other processes to leave, and nobody knows when."""
    big, *small = job(90), *[job(5) for _ in range(4)]
    round_ = considered(Round(Room(9, 30, 100, held=[20]), K), [big, *small])
    assert round_.taken == small[:K]


sizes = st.lists(st.integers(0, 40), max_size=6)


@given(held=sizes, needs=sizes, big=st.integers(1, 90), at_first=st.integers(0, 90))
def test_who_passes_a_job_that_was_passed_enough_never_delays_it(
    held: list[int], needs: list[int], big: int, at_first: int
) -> None:
    """Whichever jobs end: if it could then have started without those that passed it, it can beside them."""
    waiting = job(big, passed=K)
    round_ = considered(Round(Room(9, at_first, 100, held=held), K), [waiting, *map(job, needs)])
    if waiting in round_.taken:
        return
    took = sum(one.need for one in round_.taken)
    for count in range(len(held) + 1):
        for left in itertools.combinations(held, count):
            assert (big <= at_first + sum(left)) == (big <= at_first + sum(left) - took)


@given(held=sizes, big=st.integers(1, 90), small=st.integers(1, 40), at_first=st.integers(0, 90))
def test_who_is_not_let_by_could_delay_it(held: list[int], big: int, small: int, at_first: int) -> None:
    waiting, other = job(big, passed=K), job(small)
    round_ = considered(Round(Room(9, at_first, 100, held=held), K), [waiting, other])
    if waiting in round_.taken or other in round_.taken or small > at_first or big > at_first + sum(held):
        return
    ends = [sum(left) for count in range(len(held) + 1) for left in itertools.combinations(held, count)]
    slack = int(100 * STEADY)
    assert any(-slack <= at_first + end - big < small + slack for end in ends)


@given(data=st.data(), limit=st.integers(10**9, 10**12), shares=st.lists(st.floats(0, 0.3), max_size=12))
def test_what_may_come_free_is_never_told_too_low(data: st.DataObject, limit: int, shares: list[float]) -> None:
    """On a real host bytes are counted in steps."""
    held = [int(share * limit) for share in shares]
    some = data.draw(st.lists(st.sampled_from(range(len(held))), unique=True)) if held else []
    end = sum(held[index] for index in some)
    assert Releases(held, limit).any(end, end + 1)
    assert not Releases(held, limit).any(sum(held) + limit // STEPS, limit * 10), "but for a step"


@given(st.data())
def test_a_job_waits_for_no_more_than_what_ran_and_those_that_passed_it_at_its_cost(data: st.DataObject) -> None:
    """While small ones come for ever, and end in any order."""
    limit, small = 1000, st.integers(1, 400)
    line = [job(data.draw(small)) for _ in range(6)]
    held = {one.number: one.need for one in considered(Round(Room(8, limit, limit), K), line).taken}
    big = job(data.draw(st.integers(500, limit)))
    awaited, waits = set(held), True
    while waits:
        line = [job(data.draw(small)) for _ in range(6)]
        round_ = considered(Round(Room(8, limit - sum(held.values()), limit, held=[*held.values()]), K), [big, *line])
        started = {one.number: one.need for one in round_.taken}
        waits = big.number not in started
        if times := round_.passed[big.number]:
            big = big._replace(passed=big.passed + times)
            awaited |= started.keys()
        held |= started
        assert not waits or awaited & held.keys()
        del held[data.draw(st.sampled_from(sorted(held)))]


# --- turns --------------------------------------------------------------------------------------------
def test_within_a_tenant_the_smallest_priority_first_then_the_oldest() -> None:
    first, low, urgent, second = job(), job(priority=1), job(priority=-5), job()
    assert turns([second, low, urgent, first], {}) == [urgent, first, second, low]


def test_who_has_used_less_goes_first_whatever_the_priority() -> None:
    ann, bob = job(tenant="ann"), job(tenant="bob", priority=9)
    assert turns([ann, bob], {"ann": 2.0, "bob": 1.0}) == [bob, ann]
    assert turns([ann, bob], {"ann": 1.0}) == [bob, ann], "a newcomer has used nothing"


def test_urgent_jobs_go_before_every_turn() -> None:
    ann, bob, service = job(tenant="ann"), job(tenant="bob"), job(tenant="", priority=-10)
    assert turns([ann, bob, service], {"ann": 1.0, "": 9.0}) == [service, bob, ann]


def test_who_has_used_the_same_goes_by_priority_and_age() -> None:
    ann, bob, urgent = job(tenant="ann"), job(tenant="bob"), job(tenant="eve", priority=-1)
    assert turns([bob, urgent, ann], {}) == [urgent, ann, bob]


def test_tenants_take_turns_by_what_their_jobs_are_taken_to_cost() -> None:
    ann, bob = [job(40, "ann") for _ in range(2)], [job(10, "bob") for _ in range(6)]
    found = [one.tenant for one in turns([*ann, *bob], {})]
    assert found == ["ann", "bob", "bob", "bob", "bob", "ann", "bob", "bob"]


def test_what_starts_is_charged_at_once_and_what_does_not_start_costs_nothing() -> None:
    order = Turns([job(10, "ann"), job(10, "ann"), job(10, "bob")], {"bob": 5 * TYPICAL}, 1e9)
    found = [one.tenant for one in order]
    assert found == ["ann", "ann", "bob"]
    order = Turns([job(10, "ann"), job(10, "ann"), job(10, "bob")], {"bob": 5 * TYPICAL}, 1e9)
    iterator = iter(order)
    order.charge(next(iterator))
    assert [one.tenant for one in iterator] == ["bob", "ann"]


def test_without_candidates_there_are_no_turns() -> None:
    assert turns([], {"ann": 1.0}) == []


@given(
    needs=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.integers(-2, 2)), max_size=30),
    used=st.dictionaries(st.sampled_from("abc"), st.floats(0, 1000)),
)
def test_everybody_gets_a_turn_and_the_own_jobs_keep_their_order(
    needs: list[tuple[str, int, int]], used: dict[str, float]
) -> None:
    jobs = [job(need, tenant, priority=priority) for tenant, need, priority in needs]
    found = turns(reversed(jobs), used, 100.0)
    assert sorted(one.number for one in found) == [one.number for one in jobs]
    for tenant in "abc":
        own = [(one.priority, one.number) for one in found if one.tenant == tenant]
        assert own == sorted(own)


# --- credit -------------------------------------------------------------------------------------------
def test_nobody_is_further_behind_the_first_than_the_credit() -> None:
    assert level({"ann": 1000.0, "bob": 10.0, "gone": 5000.0}, ["ann", "bob", "new"], 100.0) == {
        "ann": 1000.0,
        "bob": 900.0,
        "new": 900.0,
    }
    assert level({"ann": 50.0}, ["ann", "new"], 100.0) == {"ann": 50.0, "new": 0.0}
    assert level({}, [], 100.0) == {}


@given(used=st.dictionaries(st.text(max_size=2), st.floats(0, 1e12)), credit=st.floats(0, 1e12))
def test_levelling_takes_nothing_away_and_keeps_the_order(used: dict[str, float], credit: float) -> None:
    found = level(used, used, credit)
    assert all(found[name] >= amount for name, amount in used.items())
    ranked = sorted(used, key=lambda name: (used[name], found[name]))
    assert [found[name] for name in ranked] == sorted(found.values())
    assert level(found, found, credit) == pytest.approx(found)


@given(past=st.floats(0, 1e15), need=st.integers(1, 50))
def test_a_tenant_with_a_long_past_waits_for_no_more_than_the_credit(past: float, need: int) -> None:
    credit = 1000.0
    heavy, light = [job(need, "heavy")], [job(need, "light") for _ in range(2 + int(credit / need / TYPICAL))]
    found = turns([*heavy, *light], {"heavy": past}, credit)
    bytes_before = sum(one.need for one in found[: found.index(heavy[0])])
    assert bytes_before * TYPICAL <= credit + need * TYPICAL


# --- fair share ---------------------------------------------------------------------------------------
class Host:
    """One host that starts jobs by the policy as slots come free. Each job lasts `lasts` seconds and needs 100."""

    def __init__(self, slots: int, lasts: float) -> None:
        self.slots = slots
        self.lasts = lasts
        self.used: defaultdict[str, float] = defaultdict(float)
        self.lines: dict[str, list[Waiting]] = {}
        self.running: list[tuple[float, int, Waiting]] = []  # end, number
        self.now = 0.0
        self.started: dict[int, float] = {}

    def submit(self, tenant: str, count: int) -> list[Waiting]:
        self.lines[tenant] = [job(100, tenant) for _ in range(count)]
        return list(self.lines[tenant])

    def feed(self) -> None:
        limit = 100 * self.slots
        room = Room(self.slots - len(self.running), limit - 100 * len(self.running), limit, not self.running)
        round_, used = Round(room, K), self.used.copy()
        for end, _number, one in self.running:
            used[one.tenant] += one.need * max(self.now - (end - self.lasts), TYPICAL)
        order = Turns([one for line in self.lines.values() for one in line[:100]], used, CREDIT * limit)
        for one in order:
            if round_.done:
                break
            if round_.consider(one):
                order.charge(one)
        for one in round_.taken:
            self.lines[one.tenant].remove(one)
            self.started[one.number] = self.now
            heapq.heappush(self.running, (self.now + self.lasts, one.number, one))

    def go_on(self) -> None:
        """Until the next job ends, and its place is taken."""
        self.now, _number, one = heapq.heappop(self.running)
        self.used[one.tenant] += one.need * max(self.lasts, TYPICAL)
        self.feed()


@pytest.mark.parametrize("lasts", [0.2, 5.0])
@pytest.mark.parametrize("slots", [1, 4])
def test_ten_thousand_jobs_delay_ten_of_another_by_one_jobs_time_at_most(slots: int, lasts: float) -> None:
    host = Host(slots, lasts)
    host.submit("early", 10_000)
    host.feed()
    for _ in range(10 + slots):
        host.go_on()
    come, late = host.now, host.submit("late", 10)
    while host.lines["late"]:
        host.go_on()
    on_a_host_of_their_own = [come + index // slots * lasts for index in range(10)]
    delays = [host.started[one.number] - at for one, at in zip(late, on_a_host_of_their_own, strict=True)]
    assert max(delays) <= lasts + 1e-9


@pytest.mark.parametrize("slots", [1, 4])
def test_who_comes_at_the_same_time_gets_the_same(slots: int) -> None:
    host = Host(slots, 5.0)
    host.submit("ann", 10_000)
    bobs = host.submit("bob", 10)
    host.feed()
    while host.lines["bob"]:
        host.go_on()
    starts = sorted(host.started[one.number] for one in bobs)
    assert starts[-1] <= -(-20 // slots) * host.lasts
    assert 9 <= len(host.started) - 10 <= 11 + slots


# --- what nobody knows --------------------------------------------------------------------------------
def of_kind(kind: str, **changes: Any) -> Waiting:
    return job(**changes)._replace(kind=kind)


def test_the_first_of_each_unknown_kind_goes_ahead_of_its_line() -> None:
    known, sort, again, index = of_kind("known"), *(of_kind(kind, unknown=True) for kind in ("sort", "sort", "index"))
    assert turns([known, sort, again, index], {}) == [sort, index, known, again]


def test_of_unknown_kinds_the_one_that_asks_for_least_goes_first() -> None:
    large, small, same = (of_kind(kind, unknown=True, need=need) for kind, need in (("a", 30), ("b", 10), ("c", 10)))
    assert turns([large, small, same], {}) == [small, same, large]


def test_a_kind_is_probed_once() -> None:
    jobs = [of_kind("known"), of_kind("sort", unknown=True)]
    assert list(Turns(jobs, {}, probed={"sort"})) == jobs


def test_no_probe_passes_a_better_priority_or_another_tenants_turn() -> None:
    urgent, waiting = of_kind("known", priority=-1), of_kind("known", tenant="bob")
    probe = of_kind("sort", unknown=True)
    assert turns([waiting, probe, urgent], {"ann": 5.0}) == [urgent, waiting, probe]
