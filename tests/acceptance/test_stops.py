"""SIGTERM in every stage: what can finish finishes, the rest is given back at once."""

from __future__ import annotations

import signal
import time

import pytest
from faults.gated import POINTS
from stack import MakeStack, Worker, eventually, patience
from test_kills import stopped_in_every_stage

from ncr_worker.job import Job, State

pytest_plugins = ["stacks"]
pytestmark = pytest.mark.slow


def test_sigterm_lets_jobs_finish(make_stack: MakeStack) -> None:
    stack = make_stack(celery_worker_concurrency=len(POINTS), shutdown_grace=60)
    worker = stack.worker("h1")
    jobs = stopped_in_every_stage(stack)
    late = stack.submit("counter")
    worker.terminate()
    eventually(lambda: "stopping" in worker.log.read_text(), "the worker stops")
    stack.open_all()
    assert worker.await_exit(within=patience(60)) == 0
    assert {stack.job(job_id).state for job_id in jobs.values()} == {State.SUCCEEDED}
    assert {stack.job(job_id).attempt for job_id in jobs.values()} == {1}
    assert stack.job(late).state == State.QUEUED
    stack.worker("h2")
    stack.assert_settled()


def taken_over(job: Job, heir: Worker) -> bool:
    return job.host == heir.host_id or job.terminal


def test_sigterm_gives_back_what_cannot_finish(make_stack: MakeStack) -> None:
    stack = make_stack(
        broker="rabbitmq",
        database="mariadb",
        celery_worker_concurrency=len(POINTS),
        shutdown_grace=0.2,
        host_lease=600,
    )
    worker = stack.worker("h1")
    jobs = stopped_in_every_stage(stack)
    heir = stack.worker("h2")
    stopped = time.time()
    worker.terminate()
    stack.open(jobs["publish.swap"], "publish.swap")  # between the renames no job listens, for it is but a moment
    for job_id in jobs.values():
        eventually(lambda: taken_over(stack.job(job_id), heir), f"{job_id} is taken over")  # noqa: B023 - called here
    assert time.time() - stopped < patience(10)
    assert worker.await_exit(within=patience(20)) == 0
    stack.open_all()
    stack.assert_settled()
    assert {stack.job(job_id).attempt for job_id in jobs.values()} == {1}


def test_sigterm_takes_messages_back_that_no_child_has_read(make_stack: MakeStack, broker: str) -> None:
    stack = make_stack(broker=broker, database="postgresql", host_lease=600)
    worker = stack.worker("h1")
    worker.signal_children(signal.SIGSTOP)
    job_id = stack.submit("counter")
    eventually(lambda: worker.received(job_id), "the message is on its way")
    assert stack.job(job_id).state == State.DISPATCHED
    worker.terminate()
    eventually(lambda: stack.job(job_id).state == State.QUEUED, "the worker takes it back", within=10)
    stack.worker("h2")
    worker.signal_children(signal.SIGCONT)  # now they read a message that means nothing any more
    stack.assert_settled()
    assert stack.runs(job_id) == 1
    assert stack.job(job_id).attempt == 1
