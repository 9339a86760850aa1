"""What the queue promises, with real processes: one run for a message, a batch's limit, attempts, memory."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from faults.suicide import ATTEMPTS
from sqlalchemy import func, select
from stack import MakeStack, Stack, eventually

from ncr_worker.job import OUT, State
from ncr_worker.ledger.tables import job

pytest_plugins = ["stacks"]
pytestmark = pytest.mark.slow


def test_a_message_delivered_five_times_at_once_runs_once(make_stack: MakeStack, broker: str) -> None:
    stack = make_stack(broker=broker, celery_worker_concurrency=8)
    worker = stack.worker("h1")
    worker.signal_children(signal.SIGSTOP)  # so that all messages wait, each before another process
    job_id = stack.submit("counter", seconds=0.5)
    eventually(lambda: worker.received(job_id), "the message is on its way")
    dispatched = stack.job(job_id)
    assert dispatched.state == State.DISPATCHED
    stack.publish(worker, dispatched, slot=0, times=4)
    eventually(lambda: worker.received(job_id) >= 5, "all messages are on their way")
    worker.signal_children(signal.SIGCONT)
    stack.ended()
    stack.publish(worker, dispatched, slot=0, times=1)  # and once more when all is over
    eventually(lambda: worker.received(job_id) >= 6, "the last message has come")
    stack.assert_settled()
    assert stack.runs(job_id) == 1
    assert stack.job(job_id).attempt == 1


@contextmanager
def sampled(stack: Stack, batch_id: str) -> Iterator[list[int]]:
    """Counts how many jobs of the batch are out, all the time."""
    query = select(func.count()).select_from(job).where(job.c.batch_id == batch_id, job.c.state.in_(sorted(OUT)))
    samples: list[int] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.is_set():
            samples.append(stack.app.database.read(lambda connection: connection.execute(query).scalar_one()))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(("database", "broker"), [("mariadb", "rabbitmq"), ("postgresql", "redis")])
def test_two_hosts_share_a_batch_within_its_limit(make_stack: MakeStack, database: str, broker: str) -> None:
    # Neither host has slots for the whole share of the batch, so it takes both to fill it.
    stack = make_stack(database=database, broker=broker, batch_size=3, celery_worker_concurrency=2)
    hosts = {stack.worker(name).host_id for name in ("h1", "h2")}
    # More jobs than one host looks at in one query, so that the other one finds some that are not locked.
    batch_id, job_ids = stack.submit_batch("counter", [{"name": f"n{i}", "seconds": 0.05} for i in range(150)])
    with sampled(stack, batch_id) as samples:
        stack.assert_settled()
    assert max(samples) == 3
    assert {stack.job(job_id).host for job_id in job_ids} == hosts
    assert {stack.runs(job_id) for job_id in job_ids} == {1}


def test_a_job_that_kills_its_child_every_time_fails_alone(make_stack: MakeStack, broker: str) -> None:
    stack = make_stack(broker=broker)
    stack.worker("h1")
    killers = [stack.submit("suicide") for _ in range(2)]
    others = [stack.submit("counter", seconds=0.05) for _ in range(30)]
    stack.assert_settled(suicide=State.FAILED)
    for job_id in killers:
        assert stack.job(job_id).error_code == "worker_lost"
        assert stack.runs(job_id) == ATTEMPTS
        assert stack.job(job_id).attempt == ATTEMPTS + 1  # the last one cleans up
    assert {stack.job(job_id).attempt for job_id in others} == {1}
    assert {stack.runs(job_id) for job_id in others} == {1}


def test_a_pick_whose_answer_was_lost_is_noticed(make_stack: MakeStack) -> None:
    stack = make_stack(host_lease=600)
    worker = stack.worker("h1")
    job_id = stack.submit("counter")
    stack.ended()
    orphan = stack.pick_in_the_name_of(worker)
    stack.assert_settled(within=10)
    assert stack.runs(job_id) == stack.runs(orphan) == 1


def test_children_may_be_renewed_all_the_time(make_stack: MakeStack) -> None:
    """On SQLite: a fork in the middle of a transaction would leave the child with a lock for ever."""
    stack = make_stack(db_patience=5)
    stack.worker("h1")
    job_ids = [stack.submit("brief") for _ in range(30)]
    stack.assert_settled()
    assert {stack.job(job_id).attempt for job_id in job_ids} == {1}


def test_a_job_that_needs_nearly_the_whole_host_runs_alone(make_stack: MakeStack) -> None:
    stack = make_stack()
    others = [stack.submit("counter", seconds=0.1) for _ in range(6)]
    large = stack.submit("large", seconds=0.3)
    later = [stack.submit("counter", seconds=0.1) for _ in range(6)]
    stack.worker("h1")
    stack.assert_settled()
    alone = stack.job(large)
    for job_id in others + later:
        other = stack.job(job_id)
        assert other.finished_at is not None
        assert alone.finished_at is not None
        assert other.started_at is not None
        assert alone.started_at is not None
        assert other.finished_at <= alone.started_at or other.started_at >= alone.finished_at
