"""The feeder on a real ledger and real slots; its pool is a fork for each message, or nobody at all."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import pytest
from engine import (
    Children,
    Pool,
    WorkerHost,
    deaf,
    is_idle,
    nobody,
    pipeline,
    started,
    state,
    step,
    until,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledgers import emptied, new_job

from ncr_worker.job import Reason, State
from ncr_worker.ledger import Picked
from ncr_worker.memory.slots import JobSlot, Slots
from ncr_worker.pipeline import GIB, MIB
from ncr_worker.worker import holding

pytestmark = pytest.mark.usefixtures("short_waits")


# --- jobs that go well --------------------------------------------------------------------------------
def test_jobs_run_and_the_host_is_empty_afterwards(host: WorkerHost, children: Children) -> None:
    pool = Pool(host, children, pipeline(step("plan"), step("fetch"), memory=MIB))
    jobs = [host.submit(need=MIB) for _ in range(6)]
    feeder = started(host, pool.send)
    until(feeder, lambda: all(state(host, job_id) is State.SUCCEEDED for job_id in jobs) and is_idle(feeder))
    assert {children.wait(pid) for pid in pool.pids} == {0}
    assert host.ledger.hosts.tokens("h1") == {}


def test_a_message_that_was_lost_is_sent_again_under_the_same_token(host: WorkerHost, children: Children) -> None:
    pool = Pool(host, children, pipeline(step("plan"), memory=MIB), lose=2)
    job_id = host.submit(need=MIB)
    feeder = started(host, pool.send)
    until(feeder, lambda: state(host, job_id) is State.SUCCEEDED and is_idle(feeder))
    assert len(pool.sent) >= 3  # a slow fork may be asked for once more: a doubled message does no harm
    assert len(set(pool.sent)) == 1
    assert host.ledger.reads.job(job_id).attempt == 1


def test_while_the_broker_is_away_the_heart_beats(host: WorkerHost) -> None:
    tries: list[float] = []

    def away(_job: Picked, _slot: int) -> None:
        tries.append(time.monotonic())
        raise OSError("connection refused")

    for _ in range(4):
        host.submit(need=MIB)
    feeder = started(host, away)
    silences = []
    while len(tries) < 12:
        feeder.wake()
        feeder.round()
        silences.append(host.ledger.hosts.live()[0].seconds_since_seen)
    assert max(silences) < (tries[-1] - tries[0]) / 2
    assert all(b - a > 0.1 for a, b in itertools.pairwise(tries)), "each try may block: there are few"


def test_while_the_broker_is_away_nothing_more_is_taken(host: WorkerHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_job: Picked, _slot: int) -> None:
        raise OSError("connection refused")

    monkeypatch.setattr(holding, "RESEND", 60.0)
    first = host.submit(need=MIB)
    feeder = started(host, away)
    feeder.round()
    second = host.submit(need=MIB)
    feeder.wake()
    feeder.round()
    assert (state(host, first), state(host, second)) == (State.DISPATCHED, State.QUEUED)


def test_what_was_not_sent_is_sent_when_the_broker_is_back(host: WorkerHost, children: Children) -> None:
    pool = Pool(host, children, pipeline(step("plan"), memory=MIB))
    outage = [OSError("away")] * 3

    def flaky(job: Picked, slot: int) -> None:
        if outage:
            raise outage.pop()
        pool.send(job, slot)

    jobs = [host.submit(need=MIB) for _ in range(3)]
    feeder = started(host, flaky)
    until(feeder, lambda: all(state(host, job_id) is State.SUCCEEDED for job_id in jobs))
    assert {host.ledger.reads.job(job_id).attempt for job_id in jobs} == {1}


# --- children that die --------------------------------------------------------------------------------
def test_a_dead_child_is_seen_at_once_and_its_job_is_tried_again(host: WorkerHost, children: Children) -> None:
    pool = Pool(host, children, pipeline(step("plan"), step("fetch", deaf), memory=MIB))
    job_id = host.submit(need=MIB)
    feeder = started(host, pool.send)
    until(feeder, lambda: host.ledger.reads.job(job_id).stage == "fetch" and feeder.held[0].pidfd is not None)
    children.kill(pool.pids[0])
    begin = time.monotonic()
    until(feeder, lambda: state(host, job_id) is State.QUEUED)
    assert time.monotonic() - begin < 1
    job = host.ledger.reads.job(job_id)
    assert (job.reason, job.attempt) == (Reason.WORKER_LOST, 1)
    assert is_idle(feeder)


def test_a_child_that_died_between_its_claim_and_its_slot_is_found(host: WorkerHost, children: Children) -> None:
    dead = children.start(lambda: None)
    children.wait(dead)
    job_id = host.submit(need=MIB)
    feeder = started(host, lambda job, _slot: host.ledger.work.claim(job.job_id, job.token, f"{dead}-x", "plan"))
    until(feeder, lambda: host.ledger.reads.job(job_id).reason == Reason.WORKER_LOST)
    job = host.ledger.reads.job(job_id)
    assert (job.state, job.attempt) == (State.QUEUED, 1)
    assert is_idle(feeder)


def test_a_child_that_has_claimed_but_is_slow_to_begin_is_left_alone(host: WorkerHost) -> None:
    job_id = host.submit(need=MIB)
    claimant = f"{os.getpid()}-x"
    feeder = started(host, lambda job, _slot: host.ledger.work.claim(job.job_id, job.token, claimant, "plan"))
    feeder.round()
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        feeder.round()
    assert state(host, job_id) is State.RUNNING
    assert feeder.held[0].job.job_id == job_id


def test_a_child_that_could_not_tell_the_ledger_leaves_its_job_to_a_retry(host: WorkerHost) -> None:
    def dirty(job: Picked, slot: int) -> None:
        host.ledger.work.claim(job.job_id, job.token, "1-x", "plan")
        mine = JobSlot(host.slots, slot, job.token)
        mine.begin(0)
        mine.leave(clean=False)

    job_id = host.submit(need=MIB)
    feeder = started(host, dirty)
    until(feeder, lambda: host.ledger.reads.job(job_id).reason == Reason.WORKER_LOST)
    assert is_idle(feeder)


def test_a_slot_that_is_taken_while_the_feeder_asks_the_ledger_stays_its_childs(
    host: WorkerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child did its whole job between the feeder's look at the slot and the ledger's answer."""
    job_id = host.submit(need=MIB)
    feeder = started(host, nobody)
    feeder.round()
    ask = host.ledger.work.claimant

    def claimant(number: int, token: int) -> tuple[State, str | None] | None:
        claimed = host.ledger.work.claim(job_id, token, f"{os.getpid()}-x", "plan")
        assert claimed is not None
        JobSlot(host.slots, 0, token).begin(0)
        host.ledger.work.finish(claimed.job, State.SUCCEEDED)
        return ask(number, token)

    monkeypatch.setattr(host.ledger.work, "claimant", claimant)
    until(feeder, lambda: state(host, job_id) is State.SUCCEEDED)
    assert feeder.held[0].job.job_id == job_id
    JobSlot(host.slots, 0, host.slots.read(0).token).leave(clean=True)
    until(feeder, lambda: is_idle(feeder))


# --- memory -------------------------------------------------------------------------------------------
def test_a_job_above_the_budget_runs_alone(host: WorkerHost) -> None:
    big, small = host.submit(need=900 * MIB), host.submit(need=MIB)
    feeder = started(host, nobody)
    feeder.round()
    assert (state(host, big), state(host, small)) == (State.DISPATCHED, State.QUEUED)


def test_small_jobs_start_beside_one_that_waits_as_long_as_they_do_not_delay_it(host: WorkerHost) -> None:
    host.submit(need=500 * MIB)
    feeder = started(host, nobody)
    feeder.round()
    big, *small = [host.submit(need=need * MIB) for need in (500, 50, 50, 50)]
    assert len(small) > host.ledger.queue.overtake_limit
    feeder.wake()
    until(feeder, lambda: all(state(host, each) is State.DISPATCHED for each in small))
    assert state(host, big) is State.QUEUED


def test_a_lowered_reservation_makes_room_for_the_next_job(host: WorkerHost) -> None:
    first, second = host.submit(need=700 * MIB), host.submit(need=700 * MIB)
    feeder = started(host, nobody)
    feeder.round()
    assert (state(host, first), state(host, second)) == (State.DISPATCHED, State.QUEUED)
    JobSlot(host.slots, 0, host.slots.read(0).token).lower(50 * MIB)
    until(feeder, lambda: state(host, second) is State.DISPATCHED)


def test_a_job_that_leaves_makes_room_at_once(host: WorkerHost) -> None:
    job_id = host.submit(need=MIB)
    feeder = started(host, nobody)
    feeder.round()
    token = host.slots.read(0).token
    assert host.ledger.work.claim(job_id, token, f"{os.getpid()}-x", "plan") is not None
    mine = JobSlot(host.slots, 0, token)
    mine.begin(0)
    feeder.holding.look_after_all(draining=False)
    assert not feeder.holding.room
    mine.leave(clean=True)
    feeder.holding.look_after_all(draining=False)
    assert feeder.holding.room, "else its room is given out at the next poll"


def test_a_job_that_begins_as_another_child_ends_is_not_taken_for_dead(host: WorkerHost, children: Children) -> None:
    """The pid descriptor of the first has just been closed: the second one's has the same number."""
    jobs = [host.submit(need=MIB) for _ in range(2)]
    feeder = started(host, nobody)
    feeder.round()
    first, second = (JobSlot(host.slots, index, host.slots.read(index).token) for index in range(2))

    def work() -> None:
        first.begin(0)
        os.read(gate[0], 1)
        first.leave(clean=True)

    gate = os.pipe()
    pid = children.start(work)
    until(feeder, lambda: feeder.held[0].pidfd is not None)
    os.write(gate[1], b"x")
    assert children.wait(pid) == 0
    second.begin(0)
    feeder.round()
    assert (state(host, jobs[1]), list(feeder.held)) == (State.DISPATCHED, [1])
    for descriptor in gate:
        os.close(descriptor)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=9), ends=st.randoms(use_true_random=False))
def test_the_budget_is_never_exceeded_except_by_a_job_alone(host: WorkerHost, sizes: list[int], ends: Any) -> None:
    emptied(host.ledger.database)
    host.slots = Slots(4)
    feeder = started(host, nobody)
    host.ledger.intake.submit([new_job(kind="tally", need=size * MIB) for size in sizes])
    done = 0
    while done < len(sizes):
        feeder.wake()
        feeder.round()
        reserved = [host.slots.read(index).reserved for index in feeder.held]
        assert reserved, "somebody must always be able to run"
        assert sum(reserved) <= 800 * MIB or len(reserved) == 1
        assert feeder.figures().reserved == sum(reserved)
        index = ends.choice(sorted(feeder.held))
        picked = feeder.held[index].job
        claimed = host.ledger.work.claim(picked.job_id, picked.token, f"{os.getpid()}-{done}", "plan")
        assert claimed is not None
        mine = JobSlot(host.slots, index, picked.token)
        mine.begin(1000 * GIB)
        host.ledger.work.finish(claimed.job, State.SUCCEEDED)
        mine.leave(clean=True)
        done += 1
    feeder.round()
    assert is_idle(feeder)
