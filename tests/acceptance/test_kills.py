"""SIGKILL, in every stage: of a pool child, of a whole host; and a host that comes back from the dead."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
from faults.gated import POINTS
from stack import HEARTBEAT, LEASE, MakeStack, Stack, eventually, patience

from ncr_worker.job import State

pytest_plugins = ["stacks"]
pytestmark = pytest.mark.slow

CHILD_BACK = 5.0  # seconds: the promise for a dead child
HOST_BACK = LEASE + 2 * HEARTBEAT  # and for a dead host
SLACK = 2.0  # to register, pick, send and claim


def stopped_in_every_stage(stack: Stack, *, but: str = "") -> dict[str, str]:
    """One delivery for each point, all of them standing there now: point -> job id."""
    jobs = {point: stack.deliver(point) for point in POINTS if point != but}
    for point, job_id in jobs.items():
        stack.reached(job_id, point)
    return jobs


def started_again(stack: Stack, job_id: str, *, after: float) -> float:
    """When the job began to run for the first time after `after`; epoch seconds."""

    def found() -> list[float]:
        return [event.at for event in stack.events(job_id) if event.state == State.RUNNING and event.at > after]

    return eventually(found, f"job {job_id} runs again")[0]


def test_a_child_killed_in_any_stage_costs_seconds(make_stack: MakeStack, broker: str) -> None:
    stack = make_stack(broker=broker, celery_worker_concurrency=len(POINTS))
    stack.worker("h1")
    jobs = stopped_in_every_stage(stack)
    for point, job_id in jobs.items():
        killed = time.time()
        os.kill(stack.reached(job_id, point), signal.SIGKILL)
        stack.open(job_id, point)
        assert started_again(stack, job_id, after=killed) - killed < patience(CHILD_BACK), point
    stack.assert_settled()
    assert [stack.job(job_id).attempt for job_id in jobs.values()] == [2] * len(jobs)


def test_a_killed_worker_goes_on_with_its_jobs_as_soon_as_it_is_back(make_stack: MakeStack) -> None:
    # The lease is not waited for: a start of the same host says that its earlier life is over.
    stack = make_stack(celery_worker_concurrency=len(POINTS), host_lease=600)
    worker = stack.worker("h1")
    jobs = stopped_in_every_stage(stack)
    killed = time.time()
    worker.kill()
    stack.open_all()
    worker.start()
    back = time.time()
    for point, job_id in jobs.items():
        assert started_again(stack, job_id, after=killed) - back < patience(CHILD_BACK), point
    stack.assert_settled()
    assert [stack.job(job_id).attempt for job_id in jobs.values()] == [2] * len(jobs)


@pytest.mark.parametrize(("database", "broker"), [("mariadb", "redis"), ("postgresql", "rabbitmq")])
def test_another_host_takes_over_what_a_killed_one_had(make_stack: MakeStack, database: str, broker: str) -> None:
    stack = make_stack(broker=broker, database=database, celery_worker_concurrency=len(POINTS))
    worker = stack.worker("h1")
    jobs = stopped_in_every_stage(stack)
    heir = stack.worker("h2")
    # A host that has just come judges no other.
    eventually(lambda: stack.up_for(heir.host_id) > 2 * HEARTBEAT + 1, "the second host has settled")
    killed = time.time()
    worker.kill()
    stack.open_all()
    for point, job_id in jobs.items():
        assert started_again(stack, job_id, after=killed) - killed < patience(HOST_BACK + SLACK), point
    stack.ended()
    worker.start()  # it has work folders to remove
    stack.assert_settled()
    assert {stack.job(job_id).host for job_id in jobs.values()} == {heir.host_id}
    assert [stack.job(job_id).attempt for job_id in jobs.values()] == [2] * len(jobs)


def test_children_do_not_outlive_their_worker(make_stack: MakeStack) -> None:
    stack = make_stack(host_lease=600)
    worker = stack.worker("h1")
    stack.close("orphan", "work")
    job_id = stack.submit("counter", name="orphan")
    child = psutil.Process(stack.reached(job_id, "work"))
    os.kill(worker.pid, signal.SIGKILL)
    gone, _ = psutil.wait_procs([child], timeout=patience(5))
    assert gone == [child]
    worker.kill()
    stack.open_all()
    worker.start()
    stack.assert_settled()
    assert stack.runs(job_id) == 2


def test_a_host_that_was_only_frozen_spoils_nothing(make_stack: MakeStack) -> None:
    """Its jobs are another's when it wakes: whatever its processes still do counts for nothing."""
    stack = make_stack(database="postgresql", celery_worker_concurrency=len(POINTS) + 1)
    frozen = stack.worker("h1")
    # A run that freezes between asking whose the job is and making its staging folder makes it all the same, for
    # an SFTP server knows no fence: an empty hidden folder.
    jobs = stopped_in_every_stage(stack, but="prepare")
    counter = stack.submit("counter", name="twice")
    heir_id = f"h2-{stack.name}"
    for host_id in (frozen.host_id, heir_id):
        stack.close("twice", f"work.{host_id}")
    stack.reached(counter, f"work.{frozen.host_id}")
    frozen.freeze()
    for point, job_id in jobs.items():
        stack.open(job_id, point)
    stack.worker("h2")
    stack.reached(counter, f"work.{heir_id}")
    eventually(lambda: all(stack.job(job_id).terminal for job_id in jobs.values()), "the heir delivers")
    stack.open(counter, f"work.{frozen.host_id}")
    frozen.thaw()
    eventually(lambda: stack.reserved(frozen.host_id) == 0, "the frozen host has let go")
    assert (stack.job(counter).state, stack.job(counter).host) == (State.RUNNING, heir_id)
    stack.open(counter, f"work.{heir_id}")
    stack.assert_settled()
    assert stack.runs(counter) == 2
