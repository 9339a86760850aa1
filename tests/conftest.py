"""Real servers for all tests, started when a test first asks for one, and the proof that no process is left.

A test that stops or kills a server starts it again: the next one relies on it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import psutil
import pytest
import redis
from services import MariaDB, OpenSSH, PostgreSQL, RabbitMQ, ServerMissing, SqlServer

from ncr_worker.sandbox.process import ServerProcess
from ncr_worker.sandbox.s3 import S3
from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.sandbox.validator import Validator
from ncr_worker.sandbox.valkey import Valkey

pytest_plugins = ["ledgers", "engine", "running"]

S = TypeVar("S", bound=ServerProcess)
RUN_MARK = "NCR_TEST_RUN"
"""Environment variable that all processes of one test run inherit, those included that detach themselves."""


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Fails the run when any process that it started is still there at its end."""
    mark = uuid4().hex
    os.environ[RUN_MARK] = mark
    yield
    deadline = time.monotonic() + 10
    while (left := _processes_of(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    del os.environ[RUN_MARK]
    assert not left, f"the tests left processes behind: {left}"


def _processes_of(mark: str) -> list[str]:
    ourselves = psutil.Process()
    children = set(ourselves.children(recursive=True))
    left = []
    for process in set(psutil.process_iter()) - {ourselves}:
        with suppress(psutil.Error, OSError):  # it ended while we looked
            ours = process in children or process.environ().get(RUN_MARK) == mark
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                left.append(f"{process.pid} {' '.join(process.cmdline())}")
    return left


def _running(make: Callable[[Path], S]) -> Iterator[S]:
    """A started server in a folder that other accounts can reach; stopped and removed at the end."""
    with tempfile.TemporaryDirectory(prefix="ncr-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        try:
            server = make(folder / "server")
        except ServerMissing as missing:
            if os.environ.get("CI"):
                pytest.fail(str(missing))
            pytest.skip(f"NOT TESTED: {missing}")
        with server:
            yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    yield from _running(Valkey)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    yield from _running(S3)


@pytest.fixture(scope="session")
def sftp() -> Iterator[SFTP]:
    yield from _running(SFTP)


@pytest.fixture(scope="session")
def validator() -> Iterator[Validator]:
    yield from _running(Validator)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    yield from _running(MariaDB)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    yield from _running(PostgreSQL)


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    yield from _running(RabbitMQ)


@pytest.fixture(scope="session")
def openssh() -> Iterator[OpenSSH]:
    yield from _running(OpenSSH)


@pytest.fixture(params=["sqlite", "mariadb", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a fresh empty database, on each kind of server in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ncr.sqlite3'}"
        return
    server: SqlServer = request.getfixturevalue(request.param)
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture(params=["redis", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty Celery broker, of each kind in turn. The Redis one is not the board's database."""
    if request.param == "rabbitmq":
        rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
        return rabbitmq.create_vhost()
    valkey: Valkey = request.getfixturevalue("valkey")
    url = valkey.url.removesuffix("/0") + "/1"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url
