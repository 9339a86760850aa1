"""Fixtures of the acceptance tests: stacks, whose workers' logs are shown when a test fails.

A plugin, not a conftest: type checkers take two modules of one name for one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from services import RabbitMQ
from stack import MakeStack, Servers, Stack

from ncr_worker.sandbox.s3 import S3
from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.sandbox.validator import Validator
from ncr_worker.sandbox.valkey import Valkey

LOG_TAIL = 150


@pytest.fixture(scope="session")
def servers(valkey: Valkey, s3: S3, sftp: SFTP, validator: Validator) -> Servers:
    return Servers(valkey, s3, sftp, validator)


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def make_stack(request: pytest.FixtureRequest, servers: Servers) -> Iterator[MakeStack]:
    """`make_stack(broker="redis" | "rabbitmq", database="sqlite" | "mariadb" | "postgresql", **settings)`."""
    with ExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="ncr-")))

        def make(*, broker: str = "redis", database: str = "sqlite", **settings: object) -> Stack:
            url = f"sqlite:///{folder / 'ledger.sqlite3'}"
            if database != "sqlite":
                server = request.getfixturevalue(database)
                url = server.create_database()
                resources.callback(server.drop_database, url)
            with redis.Redis.from_url(servers.valkey.url) as client:
                client.flushall()
            stack = Stack(
                servers, folder, database_url=url, broker_url=_broker_url(request, servers, broker), **settings
            )
            resources.callback(_show_logs, stack)
            return resources.enter_context(stack)

        yield make


def _broker_url(request: pytest.FixtureRequest, servers: Servers, name: str) -> str:
    if name == "redis":
        return servers.valkey.url.removesuffix("/0") + "/1"
    rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
    return rabbitmq.create_vhost()


def _show_logs(stack: Stack) -> None:
    """Printed after every test; pytest shows it for those that failed."""
    for worker in stack.workers:
        lines = worker.log.read_text(errors="replace").splitlines()
        print(f"--- {worker.host_id}", *lines[-LOG_TAIL:], sep="\n")
