"""Board, broker and database go away while jobs run."""

from __future__ import annotations

import signal
import time

import pytest
import redis
from faults.gated import POINTS
from services import SqlServer
from stack import LEASE, MakeStack, Servers, Stack, eventually
from test_kills import stopped_in_every_stage

from ncr_worker.sandbox.process import ServerProcess

pytest_plugins = ["stacks"]
pytestmark = pytest.mark.slow

OUTAGE = 20.0


@pytest.fixture
def broker_server(request: pytest.FixtureRequest, servers: Servers, broker: str) -> ServerProcess:
    server: ServerProcess = servers.valkey if broker == "redis" else request.getfixturevalue("rabbitmq")
    return server


def test_board_and_broker_may_be_emptied_and_restarted(
    make_stack: MakeStack, servers: Servers, broker: str, broker_server: ServerProcess
) -> None:
    stack = make_stack(broker=broker, celery_worker_concurrency=len(POINTS) + 2)
    worker = stack.worker("h1")
    jobs = stopped_in_every_stage(stack)
    counters = [stack.submit("counter", seconds=0.1) for _ in range(40)]
    eventually(lambda: stack.runs(counters[3]), "counters run")
    empty_broker(stack, servers, broker)
    heard = [job_id for point, job_id in jobs.items() if point != "publish.swap"]  # where no job says how far it is
    eventually(lambda: len(stack.app.board.statuses(heard)) == len(heard), "they show again")
    for server in {servers.valkey, broker_server}:
        server.kill()
    unsent = [stack.submit("counter") for _ in range(3)]
    eventually(lambda: "was not sent" in worker.log.read_text(), "a job is picked, but there is no broker to send to")
    for server in {servers.valkey, broker_server}:
        server.start()
    stack.open_all()
    stack.assert_settled()
    assert {stack.runs(job_id) for job_id in counters + unsent} == {1}
    assert {stack.job(job_id).attempt for job_id in stack.jobs} == {1}
    assert worker.running


def test_the_broker_may_restart_with_messages_in_flight(
    make_stack: MakeStack, broker: str, broker_server: ServerProcess
) -> None:
    stack = make_stack(broker=broker)
    worker = stack.worker("h1")
    worker.signal_children(signal.SIGSTOP)
    job_ids = [stack.submit("counter") for _ in range(4)]
    eventually(lambda: all(map(worker.received, job_ids)), "all messages are on their way, none is acknowledged")
    broker_server.kill()
    broker_server.start()
    worker.signal_children(signal.SIGCONT)
    stack.assert_settled()
    assert {stack.runs(job_id) for job_id in job_ids} == {1}
    assert worker.running


def empty_broker(stack: Stack, servers: Servers, broker: str) -> None:
    with redis.Redis.from_url(servers.valkey.url) as client:
        client.flushall()
    if broker == "rabbitmq":
        stack.delete_queues()


@pytest.mark.parametrize("database", ["mariadb", "postgresql"])
def test_the_database_may_be_away(request: pytest.FixtureRequest, make_stack: MakeStack, database: str) -> None:
    assert OUTAGE > LEASE
    stack = make_stack(database=database, celery_worker_concurrency=len(POINTS) + 2)
    stack.worker("h1")
    stack.worker("h2")
    server: SqlServer = request.getfixturevalue(database)
    stopped_in_every_stage(stack)
    for _ in range(40):
        stack.submit("counter", seconds=0.1)
    server.stop()
    back = time.monotonic() + OUTAGE
    stack.open_all()  # every stage ends while nobody can write it down
    time.sleep(back - time.monotonic())  # the outage itself: nothing to wait for
    server.start()
    stack.assert_settled()
    assert {stack.job(job_id).attempt for job_id in stack.jobs} == {1}
    assert {stack.runs(job_id) for job_id in stack.jobs if stack.job(job_id).kind == "counter"} == {1}
