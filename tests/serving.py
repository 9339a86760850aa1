"""The API inside a test, and the steps of a job on its ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from ncr_worker.api.application import create_app
from ncr_worker.app import App
from ncr_worker.job import Job
from ncr_worker.ledger import Claim, HostFigures, Offer, schema
from ncr_worker.pipeline import GIB, MIB
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


def on_sqlite(redis_url: str, folder: Path) -> Settings:
    """For what is the same on every database."""
    return settings_for(migrated(f"sqlite:///{folder / 'ncr.sqlite3'}"), redis_url, folder)


@contextmanager
def serving(settings: Settings) -> Iterator[tuple[TestClient, App]]:
    api = create_app(settings)
    with TestClient(api) as client:
        yield client, api.state.app


def order(number: int = 1, **more: Any) -> dict[str, Any]:
    return {"job_id": f"job-{number}", "username": "ann", "campaign": "spring", **more}


def submit(client: TestClient, number: int = 1) -> str:
    answer = client.post("/process-job", json=order(number))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


def start(app: App) -> Claim:
    """Dispatch and claim the next job, as a worker does."""
    (picked,) = app.ledger.queue.pick(Offer(HOST, 1, 4 * GIB, True, 8 * GIB))
    claim = app.ledger.work.claim(picked.job_id, picked.token, "1-x", "plan")
    assert claim is not None
    return claim


def show(app: App, job: Job, **figures: Any) -> None:
    app.board.show(job.id, {"stage": job.stage, "attempt": job.attempt, **figures})


def status(client: TestClient, task_id: str) -> dict[str, Any]:
    answer = client.get(f"/job-status/{task_id}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body
