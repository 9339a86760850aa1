"""What was answered with 202 is one job, whatever dies: the API in the middle of it, or Redis."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, select
from stack import patience

from ncr_worker.app import App
from ncr_worker.job import TERMINAL
from ncr_worker.ledger import schema
from ncr_worker.ledger.tables import event, job
from ncr_worker.sandbox.own import Api, Worker
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings

CLIENTS = 8
KILLS = 20


@dataclass(frozen=True, slots=True)
class Service:
    api: Api
    valkey: Valkey
    app: App
    start_worker: Callable[[], None]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """API and ledger (SQLite) with a Redis of their own. Its catalog is empty: every delivery ends at its plan."""
    with ExitStack() as resources:
        valkey = resources.enter_context(Valkey(tmp_path / "valkey"))
        environment = {
            "DATABASE_URL": f"sqlite:///{tmp_path / 'ncr.sqlite3'}",
            "WORK_FOLDER": str(tmp_path / "work"),
            "HOST_ID": "h1",
            "CELERY_BROKER_URL": "",
            **valkey.env(),
        }
        app = App(Settings.model_validate({name.lower(): value for name, value in environment.items()}))
        resources.callback(app.close)
        schema.upgrade(app.database)
        api = resources.enter_context(Api(tmp_path / "api", environment))

        def start_worker() -> None:
            resources.enter_context(Worker(tmp_path / "worker", environment, lambda: bool(app.ledger.hosts.live())))

        yield Service(api, valkey, app, start_worker)


def submit(client: httpx2.Client, number: int, **headers: str) -> httpx2.Response:
    body = {"job_id": f"job-{number}", "username": "ann", "campaign": "spring"}
    return client.post("/process-job", json=body, headers=headers)


def insist(client: httpx2.Client, number: int) -> dict[str, Any]:
    """Submit until there is an answer, as a client does that does not know whether the one before arrived."""
    deadline = time.monotonic() + patience(240)
    while True:
        try:
            answer = submit(client, number, **{"Idempotency-Key": f"key-{number}"})
        except httpx2.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.5)  # the API needs the processor to come back
            continue
        assert answer.status_code == 202, answer.text
        return dict(answer.json())


def in_parallel(url: str, work: Callable[[httpx2.Client, int], Any], numbers: Sequence[int]) -> list[Any]:
    with httpx2.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor(CLIENTS) as threads:
        return list(threads.map(lambda number: work(client, number), numbers))


def test_every_202_is_one_job_though_the_api_is_killed_twenty_times(service: Service) -> None:
    numbers = range(1000)
    answered = threading.Semaphore(0)

    def one(client: httpx2.Client, number: int) -> dict[str, Any]:
        answer = insist(client, number)
        answered.release()
        return answer

    dice = random.Random(1)
    with ThreadPoolExecutor(1) as clients:
        answers_later = clients.submit(in_parallel, service.api.url, one, numbers)
        for _ in range(KILLS):
            for _ in range(dice.randint(20, 48)):  # so all kills fall between the first and the last answer
                assert answered.acquire(timeout=patience(60))
            service.api.kill()  # SIGKILL
            service.api.start()
        assert not answers_later.done()
        answers = answers_later.result()

    assert jobs_of(service) == {answer["task_id"]: answer["job_id"] for answer in answers}
    again = in_parallel(service.api.url, insist, numbers)
    assert again == answers
    assert len(jobs_of(service)) == len(numbers)


@contextmanager
def stopped(valkey: Valkey) -> Iterator[None]:
    valkey.stop()
    yield
    valkey.start()


@contextmanager
def black_holed(valkey: Valkey) -> Iterator[None]:
    """Connections are taken, and nothing is ever answered."""
    os.kill(valkey.pid, signal.SIGSTOP)
    yield
    os.kill(valkey.pid, signal.SIGCONT)


@pytest.mark.parametrize("away", [stopped, black_holed])
def test_without_redis_every_submit_is_taken_and_runs_later(service: Service, away: Callable[[Valkey], Any]) -> None:
    service.start_worker()
    numbers = range(500)
    with away(service.valkey):
        answers = in_parallel(service.api.url, submit, numbers)
    assert Counter(answer.status_code for answer in answers) == {202: len(numbers)}
    deadline = time.monotonic() + patience(120)
    while sum(n for (_, state), n in service.app.history.counts().items() if state in TERMINAL) < len(numbers):
        assert time.monotonic() < deadline, service.app.history.counts()
        time.sleep(0.2)
    assert set(jobs_of(service)) == {answer.json()["task_id"] for answer in answers}
    assert runs_of(service) == {1: len(numbers)}


def jobs_of(service: Service) -> dict[str, str]:
    """task_id -> job_id of everything in the ledger."""
    query = select(job.c.id, job.c.ref).where(job.c.kind == "deliver")
    return {row.id: row.ref for row in service.app.database.read(lambda c: c.execute(query).all())}


def runs_of(service: Service) -> Counter[int]:
    """Times that a job was claimed -> jobs."""
    claimed = event.c.state == "running", event.c.stage == "plan"
    query = select(func.count()).join(job, job.c.number == event.c.job_number)
    query = query.where(job.c.kind == "deliver", *claimed).group_by(event.c.job_number)
    return Counter(service.app.database.read(lambda c: c.execute(query).scalars().all()))
