"""Hosts: a heartbeat is the lease of all jobs of a host; the dead lose theirs, the living never."""

from __future__ import annotations

import pytest
from ledgers import LEASE, alter, claim, emptied, execute, figures, pick_one, start, submit
from sqlalchemy import update

from ncr_worker.errors import ConfigError
from ncr_worker.job import Job, Reason, State
from ncr_worker.ledger import Ledger
from ncr_worker.ledger.tables import host
from ncr_worker.sql import Database


@pytest.fixture
def ledger(database: Database) -> Ledger:
    ledger = emptied(database)
    ledger.hosts.register("h1", "first", figures())
    return ledger


def add_host(ledger: Ledger, host_id: str, *, silent_for: float = 0.0) -> None:
    """Another host, up or silent. On SQLite it has to be silent to be let in: it is added while the other sleeps."""
    if ledger.database.dialect == "sqlite":
        silence(ledger, "h1", LEASE + 10)
    ledger.hosts.register(host_id, "first", figures())
    if ledger.database.dialect == "sqlite":
        silence(ledger, "h1", -LEASE - 10)
    silence(ledger, host_id, silent_for)


def silence(ledger: Ledger, host_id: str, seconds: float) -> None:
    statement = update(host).where(host.c.id == host_id).values(seen_at=host.c.seen_at - seconds)
    execute(ledger, statement)


def jobs_in_every_state_on(ledger: Ledger, host_id: str) -> tuple[str, Job, Job]:
    """Dispatched (its id), running, cancelling."""
    running, cancelling = start(ledger, host_id), start(ledger, host_id)
    ledger.intake.cancel(cancelling.id, actor="ann")
    submit(ledger)
    return pick_one(ledger, host_id).job_id, running, cancelling


def states(ledger: Ledger, *job_ids: str) -> list[tuple[State, int]]:
    return [(job.state, job.attempt) for job in map(ledger.reads.job, job_ids)]


def test_a_registered_host_is_live_with_its_figures(ledger: Ledger) -> None:
    [found] = ledger.hosts.live()
    assert (found.id, found.incarnation, found.state, found.figures) == ("h1", "first", "up", figures())
    assert 0 <= found.seconds_since_seen < 30


def test_a_heartbeat_renews_the_lease_and_the_figures(ledger: Ledger) -> None:
    silence(ledger, "h1", LEASE + 1)
    assert ledger.hosts.live() == []
    assert ledger.hosts.beat("h1", "first", "draining", figures(running=3))
    [found] = ledger.hosts.live()
    assert (found.state, found.figures.running) == ("draining", 3)


def test_a_heartbeat_of_an_unknown_or_replaced_incarnation_is_refused(ledger: Ledger) -> None:
    assert not ledger.hosts.beat("h1", "older", "up", figures())
    assert not ledger.hosts.beat("h9", "first", "up", figures())
    assert [found.incarnation for found in ledger.hosts.live()] == ["first"]


def test_a_host_that_starts_again_releases_its_earlier_jobs_at_once(ledger: Ledger) -> None:
    dispatched, running, cancelling = jobs_in_every_state_on(ledger, "h1")
    assert ledger.hosts.register("h1", "second", figures()) == 3
    ids = (dispatched, running.id, cancelling.id)
    assert states(ledger, *ids) == [(State.QUEUED, 0), (State.QUEUED, 1), (State.QUEUED, cancelling.max_attempts)]
    assert ledger.reads.job(running.id).reason == Reason.HOST_LOST
    assert ledger.hosts.tokens("h1") == {}


def test_a_host_that_registers_the_same_incarnation_again_keeps_its_jobs(ledger: Ledger) -> None:
    job = start(ledger, "h1")
    assert ledger.hosts.register("h1", "first", figures()) == 0
    assert ledger.reads.job(job.id) == job


def test_only_a_silent_host_is_reaped_and_only_its_jobs(ledger: Ledger) -> None:
    add_host(ledger, "h2", silent_for=LEASE + 5)
    add_host(ledger, "h3", silent_for=LEASE - 5)
    mine, third = start(ledger, "h1"), start(ledger, "h3")
    dispatched, running, cancelling = jobs_in_every_state_on(ledger, "h2")
    assert ledger.hosts.reap("h1") == ["h2"]
    ids = (dispatched, running.id, cancelling.id)
    assert states(ledger, *ids) == [(State.QUEUED, 0), (State.QUEUED, 1), (State.QUEUED, cancelling.max_attempts)]
    assert ledger.reads.job(running.id).reason == Reason.HOST_LOST
    assert "no heartbeat of h2" in (ledger.reads.events(running.id)[-1].reason or "")
    assert (ledger.reads.job(mine.id), ledger.reads.job(third.id)) == (mine, third)
    assert ledger.hosts.reap("h1") == []


def test_a_reaper_never_takes_its_own_host_for_dead(ledger: Ledger) -> None:
    job = start(ledger, "h1")
    silence(ledger, "h1", LEASE + 5)
    assert ledger.hosts.reap("h1") == []
    assert ledger.reads.job(job.id) == job


def test_a_reaped_host_that_comes_back_has_to_register_again(ledger: Ledger) -> None:
    add_host(ledger, "h2", silent_for=LEASE + 5)
    ledger.hosts.reap("h1")
    assert not ledger.hosts.beat("h2", "first", "up", figures())


def test_a_job_on_a_host_that_nobody_knows_is_released_by_the_reaper(ledger: Ledger) -> None:
    """Its host was taken for dead, picked once more before it heard of it, and then really died."""
    job = start(ledger, "ghost")
    ledger.hosts.reap("h1")
    assert ledger.reads.job(job.id).state is State.QUEUED


def test_a_host_that_leaves_releases_what_it_still_had(ledger: Ledger) -> None:
    dispatched, running, cancelling = jobs_in_every_state_on(ledger, "h1")
    ledger.hosts.leave("h1", "older")
    assert ledger.reads.job(running.id) == running
    ledger.hosts.leave("h1", "first")
    assert ledger.hosts.live() == []
    ids = (dispatched, running.id, cancelling.id)
    assert states(ledger, *ids) == [(State.QUEUED, 0), (State.QUEUED, 0), (State.QUEUED, cancelling.max_attempts)]


def test_a_release_after_the_last_attempt_leaves_one_run_to_clean_up(ledger: Ledger) -> None:
    job = start(ledger, "h1", max_attempts=1)
    ledger.hosts.register("h1", "second", figures())
    alter(ledger, job.id, next_run_at=0.0)
    claim(ledger, pick_one(ledger, "h1"))
    ledger.hosts.register("h1", "third", figures())
    failed = ledger.reads.job(job.id)
    assert (failed.state, failed.error_code) == (State.FAILED, Reason.HOST_LOST)


def test_tokens_are_those_of_the_jobs_on_the_host(ledger: Ledger) -> None:
    running = start(ledger, "h1")
    elsewhere, ended = start(ledger, "h2"), start(ledger, "h1")
    ledger.work.finish(ended, State.SUCCEEDED)
    assert ledger.hosts.tokens("h1") == {running.token: running.number}
    assert ledger.hosts.tokens("h2") == {elsewhere.token: elsewhere.number}


def test_sqlite_serves_one_live_host_only(ledger: Ledger) -> None:
    if ledger.database.dialect != "sqlite":
        ledger.hosts.register("h2", "first", figures())
        assert [found.id for found in ledger.hosts.live()] == ["h1", "h2"]
        return
    with pytest.raises(ConfigError, match="'h1' is alive"):
        ledger.hosts.register("h2", "first", figures())
    assert [found.id for found in ledger.hosts.live()] == ["h1"]
    silence(ledger, "h1", LEASE + 1)
    ledger.hosts.register("h2", "first", figures())
    assert [found.id for found in ledger.hosts.live()] == ["h2"]
