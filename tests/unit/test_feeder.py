"""The feeder on a real ledger and real slots; its pool is a fork for each message, or nobody at all."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import Children, Tally, WorkerHost, pipeline, step, worker_host
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledgers import emptied, figures, new_job
from sqlalchemy import update

from ncr_worker.job import Reason, State
from ncr_worker.ledger import Picked
from ncr_worker.ledger.tables import host as host_table
from ncr_worker.memory.domain import Domain
from ncr_worker.memory.slots import JobSlot, Phase
from ncr_worker.pipeline import GIB, MIB, Pipeline
from ncr_worker.sql import Database, DatabaseAway
from ncr_worker.worker import feeder as feeder_module
from ncr_worker.worker.feeder import Feeder

HEARTBEAT = 0.2


@pytest.fixture
def host(tmp_path: Path) -> Iterator[WorkerHost]:
    with worker_host(tmp_path, host_heartbeat=HEARTBEAT, host_lease=5.0) as host:
        host.ledger.database.survive_forks()
        yield host


@pytest.fixture
def children() -> Iterator[Children]:
    children = Children()
    yield children
    children.close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder_module, "RESEND", 0.15)
    monkeypatch.setattr(feeder_module, "ORDER_GRACE", 0.5)


class Pool:
    """Runs each message in a fork of its own; `lose`: so many messages never arrive."""

    def __init__(self, host: WorkerHost, children: Children, kind: Pipeline[Any], *, lose: int = 0) -> None:
        self.host = host
        self.children = children
        self.kind = kind
        self.lose = lose
        self.sent: list[tuple[str, int, int]] = []
        self.pids: list[int] = []

    def send(self, job: Picked, slot: int) -> None:
        self.sent.append((job.job_id, job.token, slot))
        if self.lose:
            self.lose -= 1
            return
        self.pids.append(self.children.start(lambda: self._work(job, slot)))

    def _work(self, job: Picked, slot: int) -> None:
        child = WorkerHost(self.host.settings, Database(self.host.settings.ledger_url))
        child.slots = self.host.slots
        child.runner(self.kind).run(job.kind, job.job_id, job.token, slot)


def nobody(_job: Picked, _slot: int) -> None:
    """A pool that takes no message."""


def started(host: WorkerHost, send: Callable[[Picked, int], object]) -> Feeder:
    """A registered feeder on a host of 1000 MiB, of which jobs may use 800."""
    feeder = Feeder(host.settings, host.ledger, host.slots, send)
    folder = host.settings.work_folder / "kernel"
    (folder / "proc").mkdir(parents=True, exist_ok=True)
    (folder / "proc/meminfo").write_text(f"MemTotal: {1000 * 1024} kB\nAnonPages: 0 kB\nShmem: 0 kB\n")
    feeder.budget.domain = Domain(root=folder)
    feeder.start()
    return feeder


def until(feeder: Feeder, condition: Callable[[], bool], seconds: float = 10) -> None:
    """Rounds of the feeder until `condition`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        feeder.round()
        time.sleep(0.005)


def state(host: WorkerHost, job_id: str) -> State:
    return host.ledger.reads.job(job_id).state


def is_idle(feeder: Feeder) -> bool:
    """It holds nothing, and nothing is reserved."""
    slots = [feeder.slots.read(index) for index in range(feeder.slots.count)]
    return not feeder.held and all(slot.phase is Phase.FREE and slot.reserved == 0 for slot in slots)


def waiting(gate: Path) -> Callable[[Any, Tally], None]:
    """A stage that goes on until `gate` exists, and obeys orders."""

    def work(run: Any, _parcel: Tally) -> None:
        while not gate.exists():
            run.advance(files=0)
            time.sleep(0.01)

    return work


def deaf(_run: Any, _parcel: Tally) -> None:
    time.sleep(600)


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
    assert len(pool.sent) == 3
    assert len(set(pool.sent)) == 1
    assert host.ledger.reads.job(job_id).attempt == 1


def test_while_the_broker_is_away_the_heart_beats_and_nothing_more_is_taken(host: WorkerHost) -> None:
    tries: list[float] = []

    def away(_job: Picked, _slot: int) -> None:
        tries.append(time.monotonic())
        raise OSError("connection refused")

    first = [host.submit(need=MIB) for _ in range(2)]
    feeder = started(host, away)
    until(feeder, lambda: len(tries) == 1)
    host.submit(need=MIB)
    beats = set()
    while len(tries) < 6:
        feeder.wake()
        feeder.round()
        beats.add(host.ledger.hosts.live()[0].seconds_since_seen < HEARTBEAT + 0.1)
        time.sleep(0.005)
    assert beats == {True}
    assert len(feeder.held) == 2
    assert {held.job.job_id for held in feeder.held.values()} == set(first)
    assert all(b - a > 0.1 for a, b in itertools.pairwise(tries))


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
        mine = JobSlot(host.slots, slot)
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
        JobSlot(host.slots, 0).begin(0)
        host.ledger.work.finish(claimed.job, State.SUCCEEDED)
        return ask(number, token)

    monkeypatch.setattr(host.ledger.work, "claimant", claimant)
    until(feeder, lambda: state(host, job_id) is State.SUCCEEDED)
    assert feeder.held[0].job.job_id == job_id
    JobSlot(host.slots, 0).leave(clean=True)
    until(feeder, lambda: is_idle(feeder))


# --- orders -------------------------------------------------------------------------------------------
def test_a_job_cancelled_before_a_child_took_it_frees_its_slot(host: WorkerHost) -> None:
    job_id = host.submit(need=MIB)
    feeder = started(host, nobody)
    until(feeder, lambda: state(host, job_id) is State.DISPATCHED)
    host.ledger.intake.cancel(job_id, actor="ann")
    until(feeder, lambda: is_idle(feeder))
    assert state(host, job_id) is State.CANCELLED


def test_a_cancelled_run_is_told_and_ends(host: WorkerHost, children: Children, tmp_path: Path) -> None:
    pool = Pool(host, children, pipeline(step("fetch", waiting(tmp_path / "gate")), memory=MIB))
    job_id = host.submit(need=MIB)
    feeder = started(host, pool.send)
    until(feeder, lambda: state(host, job_id) is State.RUNNING)
    host.ledger.intake.cancel(job_id, actor="ann")
    until(feeder, lambda: state(host, job_id) is State.CANCELLED and is_idle(feeder))
    assert children.wait(pool.pids[0]) == 0


def test_a_run_that_does_not_obey_is_ended(host: WorkerHost, children: Children) -> None:
    pool = Pool(host, children, pipeline(step("fetch", deaf), memory=MIB))
    job_id = host.submit(need=MIB)
    feeder = started(host, pool.send)
    until(feeder, lambda: state(host, job_id) is State.RUNNING)
    host.ledger.intake.cancel(job_id, actor="ann")
    until(feeder, lambda: state(host, job_id) is State.CANCELLED and is_idle(feeder))
    assert children.wait(pool.pids[0]) == -9


# --- ledger and slots agree ---------------------------------------------------------------------------
def test_a_job_that_the_ledger_counts_here_and_nobody_holds_is_released(host: WorkerHost) -> None:
    feeder = started(host, nobody)
    job_id = host.submit(need=2000 * MIB)  # too big to be picked again
    host.pick()
    host.slots.free(0)
    until(feeder, lambda: state(host, job_id) is not State.DISPATCHED)


def test_a_run_that_the_ledger_has_given_away_is_stopped(host: WorkerHost, children: Children, tmp_path: Path) -> None:
    pool = Pool(host, children, pipeline(step("fetch", waiting(tmp_path / "gate")), memory=MIB))
    job_id = host.submit(need=MIB)
    feeder = started(host, pool.send)
    until(feeder, lambda: host.slots.read(0).phase is Phase.RUNNING)
    job = host.ledger.reads.job(job_id)
    assert job.token is not None
    feeder.draining = True  # it takes nothing again
    host.ledger.work.lost(job.number, job.token, "no heartbeat")
    until(feeder, lambda: is_idle(feeder))
    assert children.wait(pool.pids[0]) == 0
    assert state(host, job_id) is State.QUEUED


def test_a_host_that_was_taken_for_dead_registers_again_and_stops_its_runs(
    host: WorkerHost, children: Children, tmp_path: Path
) -> None:
    pool = Pool(host, children, pipeline(step("fetch", waiting(tmp_path / "gate")), memory=MIB))
    job_id = host.submit(need=MIB)
    feeder = started(host, pool.send)
    until(feeder, lambda: host.slots.read(0).phase is Phase.RUNNING)
    feeder.draining = True
    silence(host, "h1")
    assert host.ledger.hosts.reap("h9") == ["h1"]
    until(feeder, lambda: is_idle(feeder) and [found.id for found in host.ledger.hosts.live()] == ["h1"])
    assert (state(host, job_id), host.ledger.reads.job(job_id).reason) == (State.QUEUED, Reason.HOST_LOST)


def silence(host: WorkerHost, host_id: str) -> None:
    statement = update(host_table).where(host_table.c.id == host_id).values(seen_at=0.0)
    host.ledger.database.transact(lambda c: c.execute(statement))


# --- reaping ------------------------------------------------------------------------------------------
def dead_host(host: WorkerHost) -> None:
    """Another host that was alive once. SQLite lets it in while ours sleeps."""
    silence(host, "h1")
    host.ledger.hosts.register("h2", "first", figures())
    silence(host, "h2")


def test_dead_hosts_are_reaped_only_after_two_periods_in_touch(host: WorkerHost) -> None:
    dead_host(host)
    feeder = started(host, nobody)
    begin = time.monotonic()
    until(feeder, lambda: not known(host, "h2"))
    assert time.monotonic() - begin >= 2 * HEARTBEAT


def test_an_outage_of_the_database_starts_the_two_periods_anew(
    host: WorkerHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that only other calls than the heartbeat have noticed."""
    feeder = started(host, nobody)
    begin = time.monotonic()
    until(feeder, lambda: time.monotonic() - begin > 3 * HEARTBEAT)
    dead_host(host)
    with monkeypatch.context() as outage:
        outage.setattr(host.ledger.queue, "pick", _away)
        outage.setattr(feeder, "_next_beat", time.monotonic() + 60)
        thread = threading.Thread(target=feeder.run)
        feeder.wake()
        thread.start()
        assert until_true(lambda: feeder._in_touch_since is None)
        feeder.drain(0)
        thread.join()
    feeder.draining = False
    assert known(host, "h2")
    begin = time.monotonic()
    until(feeder, lambda: not known(host, "h2"))
    assert time.monotonic() - begin >= 2 * HEARTBEAT


def _away(*_arguments: object) -> None:
    raise DatabaseAway("the database does not answer")


def until_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def known(host: WorkerHost, host_id: str) -> bool:
    query = host_table.select().where(host_table.c.id == host_id)
    return host.ledger.database.read(lambda c: c.execute(query).one_or_none()) is not None


# --- stopping -----------------------------------------------------------------------------------------
def test_stopping_lets_jobs_end_within_the_grace_and_gives_the_rest_back(
    host: WorkerHost, children: Children, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"

    def work(run: Any, parcel: Tally) -> None:
        waiting(gate if parcel.args.text == "quick" else tmp_path / "never")(run, parcel)

    pool = Pool(host, children, pipeline(step("fetch", work), memory=MIB))
    quick, slow = host.submit(need=MIB, args={"text": "quick"}), host.submit(need=MIB, args={"text": "slow"})
    feeder = started(host, pool.send)
    thread = threading.Thread(target=feeder.run)
    until(feeder, lambda: {state(host, quick), state(host, slow)} == {State.RUNNING})
    thread.start()
    threading.Timer(0.2, gate.touch).start()
    feeder.drain(1.0)
    thread.join()
    assert state(host, quick) is State.SUCCEEDED
    back = host.ledger.reads.job(slow)
    assert (back.state, back.reason, back.attempt) == (State.QUEUED, Reason.GIVEN_BACK, 0)
    assert is_idle(feeder)
    feeder.leave()
    assert host.ledger.hosts.live() == []


def test_stopping_takes_messages_back_that_no_child_has_taken(host: WorkerHost) -> None:
    job_id = host.submit(need=MIB)
    feeder = started(host, nobody)
    until(feeder, lambda: state(host, job_id) is State.DISPATCHED)
    thread = threading.Thread(target=feeder.run)
    thread.start()
    begin = time.monotonic()
    feeder.drain(30)
    thread.join()
    assert time.monotonic() - begin < 5
    job = host.ledger.reads.job(job_id)
    assert (job.state, job.reason, job.attempt) == (State.QUEUED, Reason.GIVEN_BACK, 0)


def test_a_host_that_stops_says_so(host: WorkerHost, children: Children, tmp_path: Path) -> None:
    pool = Pool(host, children, pipeline(step("fetch", waiting(tmp_path / "gate")), memory=MIB))
    host.submit(need=MIB)
    feeder = started(host, pool.send)
    until(feeder, lambda: host.slots.read(0).phase is Phase.RUNNING)
    thread = threading.Thread(target=feeder.run)
    thread.start()
    stopper = threading.Thread(target=feeder.drain, args=(5,))
    stopper.start()
    assert until_true(lambda: host.ledger.hosts.live()[0].state == "draining")
    (tmp_path / "gate").touch()
    stopper.join()
    thread.join()


def test_a_restart_takes_up_the_jobs_of_the_life_before(host: WorkerHost) -> None:
    job_id = host.submit(need=MIB)
    before = started(host, nobody)
    until(before, lambda: state(host, job_id) is State.DISPATCHED)
    after = started(host, nobody)
    assert state(host, job_id) is State.QUEUED
    after.round()
    assert not host.ledger.hosts.beat("h1", before.incarnation, "up", figures())


# --- memory -------------------------------------------------------------------------------------------
def test_a_job_above_the_budget_runs_alone(host: WorkerHost) -> None:
    big, small = host.submit(need=900 * MIB), host.submit(need=MIB)
    feeder = started(host, nobody)
    feeder.round()
    assert (state(host, big), state(host, small)) == (State.DISPATCHED, State.QUEUED)


def test_a_lowered_reservation_makes_room_for_the_next_job(host: WorkerHost) -> None:
    first, second = host.submit(need=700 * MIB), host.submit(need=700 * MIB)
    feeder = started(host, nobody)
    feeder.round()
    assert (state(host, first), state(host, second)) == (State.DISPATCHED, State.QUEUED)
    JobSlot(host.slots, 0).lower(50 * MIB)
    feeder.wake()
    feeder.round()
    assert state(host, second) is State.DISPATCHED


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=9), ends=st.randoms(use_true_random=False))
def test_the_budget_is_never_exceeded_except_by_a_job_alone(host: WorkerHost, sizes: list[int], ends: Any) -> None:
    emptied(host.ledger.database)
    feeder = started(host, nobody)
    host.ledger.intake.submit([new_job(kind="tally", need=size * MIB) for size in sizes])
    done = 0
    while done < len(sizes):
        feeder.wake()
        feeder.round()
        reserved = [host.slots.read(index).reserved for index in feeder.held]
        assert reserved, "somebody must always be able to run"
        assert sum(reserved) <= 800 * MIB or len(reserved) == 1
        assert feeder.budget.figures(feeder.held).reserved == sum(reserved)
        index = ends.choice(sorted(feeder.held))
        picked = feeder.held[index].job
        claimed = host.ledger.work.claim(picked.job_id, picked.token, f"{os.getpid()}-{done}", "plan")
        assert claimed is not None
        mine = JobSlot(host.slots, index)
        mine.begin(1000 * GIB)
        host.ledger.work.finish(claimed.job, State.SUCCEEDED)
        mine.leave(clean=True)
        done += 1
    feeder.round()
    assert is_idle(feeder)
