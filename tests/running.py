"""Deliveries run by the real runner on a real ledger, in this process.

A plugin for its fixtures: conftest.py names it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import Ncr
from deliveries import World, a_world
from engine import WorkerHost
from ledgers import figures, opened

from ncr_worker.job import Job
from ncr_worker.ledger import Offer
from ncr_worker.pipeline import GIB
from ncr_worker.pipelines.deliver import PIPELINE
from ncr_worker.runner import Runner
from ncr_worker.sandbox.process import free_port
from ncr_worker.sandbox.s3 import S3
from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.sandbox.validator import Validator
from ncr_worker.settings import Settings


def with_ledger(world: World, **changes: Any) -> Settings:
    """The world's settings with a ledger beside its catalog."""
    usual: dict[str, Any] = {
        "catalog_url": world.settings.database_url,
        "database_url": f"sqlite:///{world.folder / 'ledger.sqlite3'}",
        "redis_url": f"redis://127.0.0.1:{free_port()}/0",
        "retry_delay": 0.01,
        "memory_prediction": "declared",  # there is no main process that would grant a stage more
        "host_id": "h1",
    }
    return world.settings.model_copy(update=usual | changes)


class Deliveries:
    def __init__(self, host: WorkerHost, runner: Runner) -> None:
        self.host = host
        self.runner = runner
        self.ledger = host.ledger

    def submit(self, world: World) -> str:
        args = world.args
        return self.host.submit(kind="deliver", args=args.model_dump(mode="json"), ref=args.ref, max_attempts=5)

    def run_next(self, *, within: float = 20.0) -> Job:
        """Wait until a job is due, and run it to wherever that leads."""
        deadline = time.monotonic() + within
        while not (picked := self.ledger.queue.pick(Offer("h1", 1, 800 * GIB, True, 1000 * GIB))):
            assert time.monotonic() < deadline, f"no job became due within {within:g} s"
            time.sleep(0.01)
        [one] = picked
        self.host.slots.arm(0, one.token, one.reserved)
        self.runner.run("deliver", one.job_id, one.token, 0)
        return self.ledger.reads.job(one.job_id)

    def run_to_the_end(self, job_id: str, *, within: float = 60.0) -> Job:
        deadline = time.monotonic() + within
        while not (job := self.ledger.reads.job(job_id)).terminal:
            assert time.monotonic() < deadline, job
            self.run_next()
        return job


@contextmanager
def delivering(settings: Settings) -> Iterator[Deliveries]:
    with ExitStack() as resources:
        database = resources.enter_context(opened(settings.ledger_url))
        host = WorkerHost(settings, database)
        resources.callback(host.board.close)
        host.ledger.hosts.register("h1", "test", figures(limit_bytes=1000 * GIB))
        runner = host.runner(PIPELINE)
        resources.callback(runner.connectors.close)
        yield Deliveries(host, runner)


@pytest.fixture
def world(s3: S3, validator: Validator, sftp: SFTP, tmp_path: Path) -> Iterator[World]:
    world = a_world(s3, validator, sftp, tmp_path)
    yield world
    world.close()


@pytest.fixture
def deliveries(world: World) -> Iterator[Deliveries]:
    with delivering(with_ledger(world)) as deliveries:
        yield deliveries


@pytest.fixture
def ncr(
    deliveries: Deliveries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ncr:
    return Ncr(deliveries.host.settings, tmp_path, monkeypatch, capsys)
