"""The API inside a test, and the steps of a job on its ledger."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi.testclient import TestClient

from ncr_worker.api.application import create_app
from ncr_worker.app import App
from ncr_worker.job import Job, State
from ncr_worker.ledger import Claim, HostFigures, Offer, schema
from ncr_worker.pipeline import GIB, MIB
from ncr_worker.sandbox.process import LOOPBACK
from ncr_worker.settings import Settings
from ncr_worker.sql import Database

HOST = "h1"
MAX_BATCH = 20
FIGURES = HostFigures(8 * GIB, "cgroup v2", 4 * GIB, 1 * GIB, 96 * MIB, 4, 1)


def migrated(url: str) -> str:
    database = Database(url)
    schema.upgrade(database)
    database.close()
    return url


def settings_for(database_url: str, redis_url: str, folder: Path, **more: Any) -> Settings:
    return Settings(
        _env_file=None,
        database_url=database_url,
        redis_url=redis_url,
        celery_broker_url=more.pop("celery_broker_url", redis_url),
        work_folder=folder / "work",
        max_batch_jobs=MAX_BATCH,
        cors_origins=("https://ui.example",),
        host_memory_bytes=2 * GIB,
        **more,
    )


def on_sqlite(redis_url: str, folder: Path, **more: Any) -> Settings:
    """For what is the same on every database."""
    return settings_for(migrated(f"sqlite:///{folder / 'ncr.sqlite3'}"), redis_url, folder, **more)


@contextmanager
def serving(settings: Settings) -> Iterator[tuple[TestClient, App]]:
    api = create_app(settings)
    with TestClient(api) as client:
        yield client, api.state.app


@contextmanager
def listening(settings: Settings) -> Iterator[tuple[httpx2.Client, App]]:
    """The API on a port, for streams: the client inside a test gets an answer only when it is whole.

    It stops as on SIGTERM, but without a limit of time: whoever is still being served then holds it up.
    """
    api = create_app(settings)
    server = uvicorn.Server(uvicorn.Config(api, log_config=None, lifespan="on"))
    with socket.create_server((LOOPBACK, 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with httpx2.Client(base_url=f"http://{LOOPBACK}:{listener.getsockname()[1]}", timeout=30) as client:
                client.get("/health/live").raise_for_status()  # it may connect before the server has begun to serve
                yield client, api.state.app
        finally:
            server.should_exit = True
            thread.join()


def order(number: int = 1, **more: Any) -> dict[str, Any]:
    return {"job_id": f"job-{number}", "username": "ann", "campaign": "spring", **more}


def submit(client: TestClient | httpx2.Client, number: int = 1) -> str:
    answer = client.post("/process-job", json=order(number))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


def submit_batch(client: TestClient | httpx2.Client, *numbers: int, **more: Any) -> str:
    answer = client.post("/process-batch", json=[order(number, **more) for number in numbers])
    assert answer.status_code == 202, answer.text
    return str(answer.json()["batch_id"])


def start(app: App) -> Claim:
    """Dispatch and claim the next job, as a worker does."""
    (picked,) = app.ledger.queue.pick(Offer(HOST, 1, 4 * GIB, True, 8 * GIB))
    claim = app.ledger.work.claim(picked.job_id, picked.token, "1-x", "plan")
    assert claim is not None
    return claim


def end(app: App, state: State, code: str | None = None) -> Job:
    """Run the next job to its end."""
    job = start(app).job
    app.ledger.work.finish(job, state, error_code=code, error=code and "because")
    return job


def show(app: App, job: Job, **figures: Any) -> None:
    app.board.show(job.id, {"stage": job.stage, "started_at": job.started_at, **figures})


def status(client: TestClient, task_id: str) -> dict[str, Any]:
    answer = client.get(f"/job-status/{task_id}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body
