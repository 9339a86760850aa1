"""A worker host for tests: its settings, ledger, slots and runner, and pool children that are real forks.

A plugin for its fixtures: conftest.py names it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from ledgers import figures, new_job, opened

from ncr_worker.board import Board
from ncr_worker.errors import Transient
from ncr_worker.job import Job, State
from ncr_worker.ledger import Ledger, Offer, Picked
from ncr_worker.memory.domain import Domain
from ncr_worker.memory.slots import Phase, Slots
from ncr_worker.pipeline import GIB, Args, Parcel, Pipeline, stage
from ncr_worker.runner import Runner
from ncr_worker.sandbox.process import free_port
from ncr_worker.settings import Settings
from ncr_worker.sql import Database
from ncr_worker.worker import holding
from ncr_worker.worker.feeder import Feeder

HEARTBEAT = 0.2


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return met


class Children:
    """Each child is a fork that does its work and ends: status 0, or 1 after an exception."""

    def __init__(self) -> None:
        self._alive: list[int] = []

    def start(self, work: Callable[[], object]) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads at a fork
            pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work()
                status = 0
            except BaseException:  # noqa: BLE001 - nothing of the parent's stack may run in the child
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        self._alive.append(pid)
        return pid

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def wait(self, pid: int) -> int:
        """Its exit status; negative: the signal that ended it."""
        self._alive.remove(pid)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def close(self) -> None:
        for pid in list(self._alive):
            with suppress(ProcessLookupError):
                self.kill(pid)
            self.wait(pid)


@pytest.fixture
def children() -> Iterator[Children]:
    children = Children()
    yield children
    children.close()


class Note(Args):
    text: str = ""


class Tally(Parcel):
    """What a test pipeline carries: the names of the stages that have run."""

    args: Note
    done: tuple[str, ...] = ()


Work = Callable[[Any, Tally], object]


def step(name: str, work: Work = lambda _run, _parcel: None, **options: Any) -> Any:
    """A stage that does `work` and adds its name."""

    def function(run: Any, parcel: Tally) -> Tally:
        work(run, parcel)
        return parcel.evolve(done=(*parcel.done, name))

    function.__name__ = name
    return stage(**options)(function)


def pipeline(*stages: Any, **options: Any) -> Pipeline[Tally]:
    return Pipeline("tally", Note, Tally, stages, **options)


def host_settings(folder: Path, **changes: Any) -> Settings:
    usual: dict[str, Any] = {"database_url": f"sqlite:///{folder / 'ncr.sqlite3'}", "work_folder": folder / "work"}
    usual |= {"redis_url": f"redis://127.0.0.1:{free_port()}/0", "host_id": "h1", "retry_delay": 30}
    return Settings(_env_file=None, **usual | {"host_memory_bytes": 1000 * GIB} | changes)


class WorkerHost:
    """One host without Celery: what main and its pool children share, in one process. No Redis: the board is dark."""

    def __init__(self, settings: Settings, database: Database, slots: int = 4) -> None:
        self.settings = settings
        self.ledger = Ledger(database, lease=settings.host_lease, batch_timeout=300, overtake_limit=2)
        self.slots = Slots(slots)
        self.board = Board(settings.board_url)

    def submit(self, **changes: Any) -> str:
        new = new_job(**{"kind": "tally", "args": {}} | changes)
        self.ledger.intake.submit([new])
        return new.id

    def pick(self) -> Picked:
        [picked] = self.ledger.queue.pick(Offer(self.settings.host, 1, 800 * GIB, True, 1000 * GIB))
        self.slots.arm(0, picked.token, picked.reserved)
        return picked

    def runner(self, kind: Pipeline[Any]) -> Runner:
        return Runner(self.settings, self.ledger, self.board, {kind.kind: kind}, self.slots)

    def run(self, kind: Pipeline[Any]) -> Job:
        """Dispatch the next job to slot 0 and run it here, to wherever that leads."""
        picked = self.pick()
        self.runner(kind).run(kind.kind, picked.job_id, picked.token, 0)
        return self.ledger.reads.job(picked.job_id)


@contextmanager
def worker_host(folder: Path, **changes: Any) -> Iterator[WorkerHost]:
    settings = host_settings(folder, **changes)
    with ExitStack() as resources:
        database = resources.enter_context(opened(settings.ledger_url))
        host = WorkerHost(settings, database)
        resources.callback(host.board.close)
        host.ledger.hosts.register(settings.host, "test", figures(limit_bytes=1000 * GIB))
        yield host


@pytest.fixture
def host(tmp_path: Path) -> Iterator[WorkerHost]:
    """As a worker's main process has it: forks do its database no harm. Its heart beats quickly."""
    with worker_host(tmp_path, host_heartbeat=HEARTBEAT, host_lease=5.0) as host:
        host.ledger.database.survive_forks()
        yield host


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main process soon looks after a message that nobody has taken, and a job that does not obey."""
    monkeypatch.setattr(holding, "RESEND", 0.15)
    monkeypatch.setattr(holding, "ORDER_GRACE", 0.5)


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
    feeder.watch.domain = Domain(root=folder)
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


def raising(*errors: BaseException) -> Work:
    """Raises these, one at each call, then does nothing."""
    left = list(errors)

    def work(_run: Any, _parcel: Tally) -> None:
        if left:
            raise left.pop(0)

    return work


def soon(**options: Any) -> Transient:
    return Transient("S3 is away", code="s3_unavailable", **{"retry_in": 0.0} | options)


def noting(ran: list[str], name: str) -> Work:
    """Adds the name to the list."""
    return lambda _run, _parcel: ran.append(name)
