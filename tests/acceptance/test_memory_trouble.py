"""A job in trouble with memory is its own trouble: the worker and the other jobs go on, and the kernel ends nobody."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from confined import Confined, confined
from memory_group import NoMemoryGroup
from stack import eventually

from ncr_worker.job import Job, State
from ncr_worker.pipeline import GIB, MIB

pytestmark = pytest.mark.slow

KINDS = ("storm", "swarm", "exhausted")


@pytest.fixture
def host() -> Iterator[Confined]:
    """A worker with 1 GiB and four slots."""
    with tempfile.TemporaryDirectory(prefix="ncr-") as name:
        try:
            with confined(Path(name), GIB, KINDS, celery_worker_concurrency=4) as host:
                pid = host.worker.pid
                yield host
                print(*host.worker.tail(150), sep="\n")  # pytest shows it when the test failed
                assert host.worker.running
                assert host.worker.pid == pid
                assert host.group.kernel_kills == 0
        except NoMemoryGroup as error:
            pytest.skip(f"NOT TESTED: {error}")


class Company:
    """Honest jobs, which were there before the culprit, run beside it, and come after it."""

    def __init__(self, host: Confined, count: int = 60) -> None:
        self.host = host
        self.ids = host.submit("storm", [honest(f"before-{number}") for number in range(count // 2)])
        self.rest = [honest(f"after-{number}") for number in range(count // 2)]

    def with_culprit(self, kind: str, **values: Any) -> Job:
        """The culprit when it has ended; the others have ended well by then."""
        [culprit] = self.host.submit(kind, [{"name": "culprit", **values}])
        self.ids += self.host.submit("storm", self.rest)
        ledger = self.host.app.ledger

        def ended() -> bool:
            self.host.worker.check()
            return all(job.terminal for job in ledger.reads.jobs([culprit, *self.ids]))

        eventually(ended, "all end", within=100)
        bad = [job for job in ledger.reads.jobs(self.ids) if (job.state, job.attempt) != (State.SUCCEEDED, 1)]
        assert not bad, "honest jobs had to suffer"
        assert len(self.host.done()) >= len(self.ids)
        return ledger.reads.job(culprit)


def honest(name: str) -> dict[str, Any]:
    return {"name": name, "need": 48 * MIB, "touch": 40 * MIB, "seconds": 0.1}


def test_jobs_give_way_to_the_process_that_watches_them(host: Confined) -> None:
    own = psutil.Process(host.worker.pid).nice()
    eventually(lambda: len(host.worker.children()) >= 4, "the pool is there")
    eventually(lambda: all(child.nice() > own for child in host.worker.children()), "all of them are ready")


def test_a_memory_error_fails_the_job_alone(host: Confined) -> None:
    culprit = Company(host).with_culprit("exhausted")
    assert_out_of_memory(host, culprit)
    assert "32 MiB were reserved; then 0 of 64 MiB; then 0 of 128 MiB" in str(culprit.error)


@pytest.mark.parametrize("deaf", [False, True], ids=["listens", "deaf"])
def test_a_job_that_uses_four_times_what_it_said_gets_it_later(host: Confined, deaf: bool) -> None:
    """There is no room for it beside the others: it is ended, comes back with more, and succeeds."""
    company = Company(host)
    culprit = company.with_culprit("storm", need=120 * MIB, touch=480 * MIB, seconds=1.0, deaf=deaf)
    assert culprit.state == State.SUCCEEDED, culprit.error


@pytest.mark.parametrize("deaf", [False, True], ids=["listens", "deaf"])
def test_a_job_that_no_host_can_hold_fails_with_its_history(host: Confined, deaf: bool) -> None:
    company = Company(host)
    culprit = company.with_culprit("storm", need=300 * MIB, touch=1200 * MIB, seconds=2.0, deaf=deaf)
    assert_out_of_memory(host, culprit)
    assert culprit.number not in host.done()


@pytest.mark.parametrize("away", [False, True], ids=["near", "in-sessions-of-their-own"])
def test_a_hundred_subprocesses_are_gone_when_their_job_has_ended(host: Confined, tmp_path: Path, away: bool) -> None:
    pids = tmp_path / "pids"
    culprit = Company(host).with_culprit("swarm", pids=str(pids), count=100, away=away)
    assert culprit.terminal
    assert_gone(pids)


def test_subprocesses_that_use_too_much_are_ended_with_their_job(host: Confined, tmp_path: Path) -> None:
    """Together they use more than the host has, each of them next to nothing."""
    pids = tmp_path / "pids"
    culprit = Company(host).with_culprit("swarm", pids=str(pids), count=100, each=8 * MIB)
    assert_out_of_memory(host, culprit)
    assert_gone(pids)


def assert_out_of_memory(host: Confined, culprit: Job) -> None:
    """It has failed after more than one attempt, each with more, and its message tells what each one used and had."""
    assert (culprit.state, culprit.error_code) == (State.FAILED, "out_of_memory"), culprit.error
    events = host.app.ledger.reads.events(culprit.id)
    ends = [re.fullmatch(r"out of memory: used (\S+) MiB, (\S+) MiB were reserved", str(one.reason)) for one in events]
    told = re.findall(r"(\S+)(?: MiB, | of )(\S+) MiB", str(culprit.error))
    assert told == [end.groups() for end in ends if end], culprit.error
    had = [int(reserved.replace(",", "")) for _, reserved in told]
    assert len(had) > 1
    assert had == sorted(set(had))


def assert_gone(pids: Path) -> None:
    def left() -> list[psutil.Process]:
        found = []
        for pid in map(int, pids.read_text().split()):
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if str(pids) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    eventually(lambda: not left(), "no subprocess is left", within=10)
