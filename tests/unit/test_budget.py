"""What a host may spend, how much of that its jobs hold, and who has to go."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncr_worker.memory.budget import (
    AT_EASE,
    FASTEST,
    HEADROOM,
    LEAST_HEADROOM,
    MOST_SLACK,
    REACTION,
    SLACK,
    SOONEST,
    Charge,
    Load,
    doomed,
    fill_rate,
    next_look,
    victims,
)
from ncr_worker.pipeline import GIB, MIB

NOW = 1000.0


def charge(token: int, reserved: int, observed: int = 0, **changes: Any) -> Charge:
    """A running job; sizes in MiB. It has run for one second."""
    usual: dict[str, Any] = {"pid": 100 + token, "since": NOW - 1} | changes
    return Charge(token, token, reserved * MIB, observed * MIB, **usual)


def load(*charges: Charge, limit: int = 1000, share: float = 0.8, others: int = 0) -> Load:
    """A host of `limit` MiB on which other programs use `others` MiB."""
    return Load(limit * MIB, "host", others * MIB + sum(one.observed for one in charges), share, charges)


def tokens(charges: list[Charge]) -> list[int]:
    return [one.token for one in charges]


# --- the budget ---------------------------------------------------------------------------------------
def test_the_budget_is_the_allowed_share_less_what_others_use() -> None:
    host = Load(8 * GIB, "host", GIB, 0.75)
    assert (host.budget, host.others, host.charged, host.free) == (5 * GIB, GIB, 0, 5 * GIB - host.slack)


def test_a_host_full_of_others_has_no_budget_rather_than_a_negative_one() -> None:
    assert Load(8 * GIB, "host", 7 * GIB, 0.5).budget == 0


def test_jobs_hold_what_they_reserved_be_they_begun_or_not() -> None:
    host = load(charge(1, 300), charge(2, 250, pid=0))
    assert (host.charged, host.free, host.observed) == (550 * MIB, 250 * MIB - host.slack, 0)


def test_a_job_that_uses_more_than_it_reserved_is_charged_what_it_uses() -> None:
    host = load(charge(1, 100, 300), charge(2, 100, 40), others=200)
    assert (host.observed, host.others, host.budget) == (340 * MIB, 200 * MIB, 600 * MIB)
    assert (host.charged, host.free) == (400 * MIB, 200 * MIB - host.slack)


def test_what_pool_children_will_need_for_themselves_is_kept_free() -> None:
    host = Load(1000 * MIB, "host", 100 * MIB, 0.8, expected=150 * MIB)
    assert (host.others, host.budget, host.free) == (100 * MIB, 700 * MIB, 550 * MIB - host.slack)


def test_no_job_grows_into_what_pool_children_will_need_for_themselves() -> None:
    charges = (charge(1, 300), charge(2, 100))
    before = Load(1000 * MIB, "host", 100 * MIB, 0.8, charges)
    assert before.may_grow(charges[1], 400 * MIB - before.slack)
    assert not replace(before, expected=MIB).may_grow(charges[1], 400 * MIB - before.slack)


def test_the_slack_grows_with_the_host_up_to_what_its_own_processes_can_grow() -> None:
    assert load(limit=1000).slack == int(1000 * MIB * SLACK)
    assert load(limit=100_000).slack == MOST_SLACK


def test_what_is_only_expected_exceeds_nothing() -> None:
    charges = (charge(1, 400, 410), charge(2, 200))
    assert not Load(1000 * MIB, "host", 500 * MIB, 0.8, charges, expected=150 * MIB).exceeded


def test_what_two_jobs_share_is_counted_for_both_and_makes_others_no_less_than_nothing() -> None:
    assert Load(1000 * MIB, "host", 100 * MIB, 1.0, (charge(1, 50, 80), charge(2, 50, 80))).others == 0


def test_less_than_nothing_is_free_where_more_is_charged_than_may_be() -> None:
    host = load(charge(1, 100, 900))
    assert host.free == -100 * MIB - host.slack


def test_a_job_is_over_its_reservation_only_above_it() -> None:
    assert [charge(1, 100, used).over for used in (99, 100, 101)] == [False, False, True]


@pytest.mark.parametrize(
    ("charges", "exceeded"),
    [
        ([charge(1, 400), charge(2, 400)], False),
        ([charge(1, 400), charge(2, 400, 401)], True),
        ([charge(1, 100, 900)], False),
        ([charge(1, 400), charge(2, 500, ending=True)], False),
        ([charge(1, 400), charge(2, 401), charge(3, 1, ending=True)], True),
        ([], False),
    ],
    ids=["as much as may be", "more", "a job alone", "one leaves", "another leaves", "nobody"],
)
def test_the_budget_is_exceeded_by_two_that_stay_and_never_by_one_alone(charges: list[Charge], exceeded: bool) -> None:
    assert load(*charges).exceeded is exceeded


@given(
    limit=st.integers(1, 4000),
    share=st.floats(0.1, 1),
    others=st.integers(0, 5000),
    sizes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2000)), max_size=6),
)
def test_figures_add_up(limit: int, share: float, others: int, sizes: list[tuple[int, int]]) -> None:
    charges = [charge(token, *size) for token, size in enumerate(sizes, 1)]
    host = load(*charges, limit=limit, share=share, others=others)
    assert host.others == others * MIB
    assert host.free <= host.budget <= host.limit
    assert host.charged >= max(host.observed, sum(one.reserved for one in charges))
    assert host.free + host.charged + host.slack == host.budget >= 0


@pytest.mark.parametrize(("used", "in_danger"), [(920, False), (921, True)])
def test_a_host_that_is_nearly_full_is_in_danger_whoever_filled_it(used: int, in_danger: bool) -> None:
    assert load(others=used).in_danger is in_danger
    assert load(charge(1, 900, used - 10), others=10).in_danger is in_danger


@pytest.mark.parametrize(
    ("limit", "share", "left"),
    [
        (8 * GIB, 0.8, 8 * GIB * HEADROOM),
        (GIB, 0.8, LEAST_HEADROOM),
        (100 * MIB, 0.8, 10 * MIB),
        (100 * MIB, 1.0, 5 * MIB),
    ],
    ids=["a-share", "what-can-be-touched-meanwhile", "half-of-what-is-not-given-out", "all-is-given-out"],
)
def test_the_danger_line_leaves_time_to_end_somebody(limit: int, share: float, left: float) -> None:
    assert limit - Load(limit, "host", 0, share).danger == pytest.approx(left, abs=1)


@given(limit=st.integers(0, 1 << 45), share=st.floats(0.1, 1.0))
def test_nobody_who_keeps_to_what_may_be_given_out_is_beyond_the_danger_line(limit: int, share: float) -> None:
    host = Load(limit, "host", 0, share)
    assert min(host.budget, int(limit * (1 - HEADROOM))) - 1 <= host.danger <= limit


# --- how fast memory fills -----------------------------------------------------------------------------
def test_growth_that_goes_on_is_seen_within_two_reactions() -> None:
    rate = 0.0
    for _ in range(20):
        rate = fill_rate(rate, 10 * MIB, REACTION / 10)
    assert rate == pytest.approx(100 * MIB / REACTION, rel=0.15)


def test_what_came_within_a_moment_says_little_of_what_comes() -> None:
    assert fill_rate(0.0, 60 * MIB, 1e-6) == pytest.approx(60 * MIB / REACTION)


def test_the_first_sample_shows_no_growth() -> None:
    assert fill_rate(0.0, 60 * MIB, math.inf) == 0


@given(before=st.floats(0, 1e12), grown=st.integers(0, 1 << 40), elapsed=st.floats(1e-6, 10))
def test_a_rate_is_between_what_it_was_and_what_it_has_become(before: float, grown: int, elapsed: float) -> None:
    low, high = sorted((before, grown / elapsed))
    assert low * (1 - 1e-9) <= fill_rate(before, grown, elapsed) <= high * (1 + 1e-9)


@given(before=st.floats(0, 1e12), shrunk=st.integers(0, 1 << 40), elapsed=st.floats(0, 10))
def test_what_was_given_back_is_no_less_than_no_growth(before: float, shrunk: int, elapsed: float) -> None:
    assert 0 <= fill_rate(before, -shrunk, elapsed) <= before


# --- a wish for more ----------------------------------------------------------------------------------
@pytest.mark.parametrize(("need", "granted"), [(470, True), (471, False)])
def test_a_job_may_grow_into_what_is_free(need: int, granted: bool) -> None:
    mine = charge(1, 200)
    assert load(mine, charge(2, 300)).may_grow(mine, need * MIB) is granted


def test_what_the_job_uses_already_is_not_asked_for_twice() -> None:
    mine = charge(1, 200, 350)
    assert load(mine, charge(2, 400)).may_grow(mine, 370 * MIB)
    assert not load(mine, charge(2, 400)).may_grow(mine, 371 * MIB)


@pytest.mark.parametrize(("need", "granted"), [(1000, True), (1001, False)])
def test_a_job_alone_may_have_the_whole_host(need: int, granted: bool) -> None:
    mine = charge(1, 200)
    assert load(mine, others=300).may_grow(mine, need * MIB) is granted


def test_a_job_is_not_alone_while_another_is_on_its_way_or_leaves() -> None:
    mine = charge(1, 200)
    assert not load(mine, charge(2, 1, pid=0)).may_grow(mine, 900 * MIB)
    assert not load(mine, charge(2, 1, ending=True)).may_grow(mine, 900 * MIB)


# --- who has to leave ---------------------------------------------------------------------------------
def test_nobody_leaves_while_the_host_can_bear_it() -> None:
    assert victims(load(charge(1, 100, 400), charge(2, 100, 400)), NOW) == []


def test_who_uses_more_than_reserved_leaves_when_the_host_is_short() -> None:
    assert tokens(victims(load(charge(1, 100, 401), charge(2, 400, 400)), NOW)) == [1]


def test_who_keeps_to_its_word_never_leaves_for_others() -> None:
    assert victims(load(charge(1, 500, 400), charge(2, 400, 300), others=500), NOW) == []


def test_the_cheapest_loss_goes_first_and_only_as_many_as_needed() -> None:
    long_run = charge(1, 100, 400, since=NOW - 60)
    large = charge(2, 200, 300, since=NOW - 9)
    young = charge(3, 100, 200, since=NOW - 2)
    assert tokens(victims(load(long_run, large, young), NOW)) == [3]
    assert tokens(victims(load(long_run, large, young, others=200), NOW)) == [3, 2]


def test_one_always_stays() -> None:
    assert tokens(victims(load(charge(1, 100, 500), charge(2, 100, 600, since=NOW - 2), others=400), NOW)) == [1]
    assert victims(load(charge(1, 100, 900)), NOW) == []


def test_one_whose_child_has_not_begun_cannot_be_told_but_counts() -> None:
    assert tokens(victims(load(charge(1, 100, 700), charge(2, 200, pid=0)), NOW)) == [1]


def test_who_leaves_already_counts_no_more_and_is_not_chosen_again() -> None:
    leaving = charge(1, 100, 500, ending=True)
    assert victims(load(leaving, charge(2, 100, 300), charge(3, 100, 300)), NOW) == []
    assert tokens(victims(load(leaving, charge(2, 100, 700), charge(3, 200, 200)), NOW)) == [2]


@given(
    sizes=st.lists(st.tuples(st.integers(1, 500), st.integers(0, 900), st.floats(0, 99), st.booleans()), max_size=6),
    others=st.integers(0, 900),
)
def test_leaving_is_enough_or_all_that_can_be_asked(sizes: list[tuple[int, int, float, bool]], others: int) -> None:
    charges = [
        charge(token, reserved, observed, since=NOW - ago, ending=ending)
        for token, (reserved, observed, ago, ending) in enumerate(sizes, 1)
    ]
    host = load(*charges, others=others)
    chosen = victims(host, NOW)
    assert all(one.over and not one.ending for one in chosen)
    staying = [one for one in charges if not one.ending and one not in chosen]
    asked_all = not any(one.over for one in staying)
    assert sum(one.bytes for one in staying) <= host.budget or len(staying) == 1 or asked_all
    if chosen:
        assert sum(one.bytes for one in [*staying, chosen[-1]]) > host.budget


# --- who has to end at once ---------------------------------------------------------------------------
def test_nobody_is_ended_below_the_danger_line() -> None:
    assert doomed(load(charge(1, 100, 420), charge(2, 100, 500)), NOW) == []


def test_above_it_a_job_alone_is_ended_too() -> None:
    assert tokens(doomed(load(charge(1, 1000, 921)), NOW)) == [1]
    assert doomed(load(charge(1, 1000, 920)), NOW) == []


def test_those_over_their_reservation_are_ended_first_and_of_them_those_told_to_leave() -> None:
    honest = charge(1, 400, 300, since=NOW)
    liar = charge(2, 100, 320, since=NOW)
    told = charge(3, 100, 340, since=NOW - 99, ending=True)
    assert tokens(doomed(load(honest, liar, told), NOW)) == [3]
    assert tokens(doomed(load(honest, liar, told, others=400), NOW)) == [3, 2]
    assert tokens(doomed(load(honest, liar, told, others=900), NOW)) == [3, 2, 1]


def test_when_only_others_have_grown_the_cheapest_job_ends_for_them() -> None:
    cheap, dear = charge(1, 100, 90), charge(2, 100, 90, since=NOW - 50)
    assert tokens(doomed(load(dear, cheap, others=780), NOW)) == [1]


def test_who_uses_nothing_is_not_ended_it_would_free_nothing() -> None:
    assert tokens(doomed(load(charge(1, 1, 0), charge(2, 100, 50), others=940), NOW)) == [2]


@pytest.mark.parametrize(("rising", "ended"), [(0, []), (95, []), (105, [1]), (-900, [])])
def test_where_memory_fills_fast_who_uses_more_than_reserved_is_ended_earlier(rising: int, ended: list[int]) -> None:
    """`rising`: MiB in the time of a reaction."""
    host = replace(load(charge(1, 100, 500), charge(2, 400, 400)), rising=rising * MIB / REACTION)
    assert tokens(doomed(host, NOW)) == ended


def test_who_keeps_to_its_word_is_not_ended_earlier_however_fast_memory_fills() -> None:
    assert doomed(replace(load(charge(1, 500, 500), charge(2, 400, 400)), rising=500 * MIB / REACTION), NOW) == []


@pytest.mark.parametrize(("others", "ended"), [(20, []), (21, [1])])
def test_unless_there_is_no_room_for_what_it_has_reserved(others: int, ended: list[int]) -> None:
    host = load(charge(1, 900, 500), others=others)
    assert tokens(doomed(replace(host, rising=490 * MIB / REACTION), NOW)) == ended
    assert doomed(replace(host, rising=470 * MIB / REACTION), NOW) == []


# --- the next look ------------------------------------------------------------------------------------
def test_at_ease_looks_are_rare_and_near_the_limit_they_are_frequent() -> None:
    assert next_look(load(charge(1, 1), limit=100_000), 1) == AT_EASE
    assert next_look(load(charge(1, 1, 949)), 1) == SOONEST
    assert next_look(load(charge(1, 1, 999)), 1) == SOONEST


def test_until_the_next_look_jobs_can_touch_half_of_what_is_left() -> None:
    host = Load(GIB, "host", GIB // 2, 0.8, (charge(1, 1),))
    left = host.danger - GIB / 2
    assert next_look(host, 1) == pytest.approx(left / 2 / FASTEST)
    assert next_look(host, 4) == pytest.approx(left / 2 / (4 * FASTEST)), "one job may keep all cores busy"


@given(anonymous=st.integers(0, 10 * GIB), cores=st.integers(1, 128), jobs=st.integers(0, 9))
def test_looks_are_neither_too_rare_nor_a_burden(anonymous: int, cores: int, jobs: int) -> None:
    host = Load(8 * GIB, "host", anonymous, 0.8, tuple(charge(token, 1) for token in range(jobs)))
    pause = next_look(host, cores)
    assert SOONEST <= pause <= AT_EASE
    if pause > SOONEST:
        assert anonymous + pause * FASTEST * cores < host.danger
