"""Orders, leases and stops in the feeder: ledger and slots agree, and a stopped host holds nothing."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from engine import (
    HEARTBEAT,
    Children,
    Pool,
    Tally,
    WorkerHost,
    deaf,
    eventually,
    is_idle,
    nobody,
    pipeline,
    started,
    state,
    step,
    until,
    waiting,
)
from ledgers import execute, figures
from sqlalchemy import update

from ncr_worker.job import Reason, State
from ncr_worker.ledger.tables import host as host_table
from ncr_worker.memory.slots import Phase
from ncr_worker.pipeline import MIB
from ncr_worker.sql import DatabaseAway
from ncr_worker.worker import holding

pytestmark = pytest.mark.usefixtures("short_waits")


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
    execute(host.ledger, statement)


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
        thread = threading.Thread(target=feeder.run, daemon=True)
        feeder.wake()
        thread.start()
        assert eventually(lambda: feeder._in_touch_since is None)
        feeder.drain(0)
        thread.join()
    feeder.draining = False
    assert known(host, "h2")
    begin = time.monotonic()
    until(feeder, lambda: not known(host, "h2"))
    assert time.monotonic() - begin >= 2 * HEARTBEAT


def _away(*_arguments: object, **_options: object) -> None:
    raise DatabaseAway("the database does not answer")


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
    thread = threading.Thread(target=feeder.run, daemon=True)
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


def test_who_does_not_give_its_job_back_while_the_worker_stops_is_soon_ended(
    host: WorkerHost, children: Children, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A container's patience is short: shorter than for other orders."""

    def work(run: Any, parcel: Tally) -> None:
        (tmp_path / "begun").touch()
        deaf(run, parcel)

    monkeypatch.setattr(holding, "ORDER_GRACE", 600.0)
    monkeypatch.setattr(holding, "STOP_GRACE", 0.3)
    pool = Pool(host, children, pipeline(step("fetch", work), memory=MIB))
    job_id = host.submit(need=MIB)
    feeder = started(host, pool.send)
    until(feeder, (tmp_path / "begun").exists)
    thread = threading.Thread(target=feeder.run, daemon=True)
    thread.start()
    feeder.drain(0)
    thread.join()
    job = host.ledger.reads.job(job_id)
    assert (job.state, job.reason, job.attempt) == (State.QUEUED, Reason.GIVEN_BACK, 0)
    assert children.wait(pool.pids[0]) == -9


def test_stopping_takes_messages_back_that_no_child_has_taken(host: WorkerHost) -> None:
    job_id = host.submit(need=MIB)
    feeder = started(host, nobody)
    until(feeder, lambda: state(host, job_id) is State.DISPATCHED)
    thread = threading.Thread(target=feeder.run, daemon=True)
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
    thread = threading.Thread(target=feeder.run, daemon=True)
    thread.start()
    stopper = threading.Thread(target=feeder.drain, args=(5,))
    stopper.start()
    assert eventually(lambda: host.ledger.hosts.live()[0].state == "draining")
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
