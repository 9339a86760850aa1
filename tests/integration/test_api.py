"""Jobs and batches through the HTTP interface, on a real ledger of each kind and a real Redis."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving import (
    FIGURES,
    HOST,
    MAX_BATCH,
    migrated,
    on_sqlite,
    order,
    serving,
    settings_for,
    show,
    start,
    status,
    submit,
)
from sqlalchemy import text

from ncr_worker.job import Reason, State
from ncr_worker.ledger import HostFigures, Offer
from ncr_worker.pipeline import GIB, MIB
from ncr_worker.pipelines.deliver import PIPELINE
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings


@pytest.fixture
def api_settings(database_url: str, valkey: Valkey, tmp_path: Path) -> Settings:
    return settings_for(migrated(database_url), valkey.url, tmp_path)


@pytest.fixture
def sqlite_settings(valkey: Valkey, tmp_path: Path) -> Settings:
    return on_sqlite(valkey.url, tmp_path)


# --- the whole way, on each database ------------------------------------------------------------------


def test_a_job_from_submit_to_its_end(api_settings: Settings) -> None:
    with serving(api_settings) as (client, app):
        answer = client.post("/process-job", json=order(1, row_id=7))
        accepted = answer.json()
        assert answer.status_code == 202
        assert accepted.keys() == {"job_id", "task_id", "status", "message", "timestamp"}
        assert (accepted["job_id"], accepted["status"]) == ("job-1", "pending")
        assert "no worker is up" in accepted["message"]
        task_id = accepted["task_id"]
        assert answer.headers["Location"] == f"/job-status/{task_id}"

        pending = status(client, task_id)
        assert (pending["status"], pending["reason"], pending["started_at"]) == ("pending", "new", None)
        assert pending["progress"].keys() == {
            *("current_step", "total_files", "processed_files", "current_file"),
            *("percentage", "bytes_done", "bytes_total"),
        }
        assert datetime.fromisoformat(pending["created_at"]).utcoffset() is not None
        assert client.get("/jobs/active").json() == {"active_jobs": [], "count": 0}

        claim = start(app)
        running = status(client, task_id)
        assert (running["status"], running["host"], running["attempt"]) == ("processing", HOST, 1)
        assert running["progress"]["current_step"] == "plan"
        app.ledger.work.enter(claim.job, "upload")
        active = client.get("/jobs/active").json()
        assert (active["count"], active["active_jobs"][0]["status"]) == (1, "uploading")

        receipt = {"total_files": 3, "total_bytes": 4096}
        app.ledger.work.finish(claim.job, State.SUCCEEDED, result={"receipt": receipt})
        done = status(client, task_id)
        assert (done["status"], done["message"], done["error"]) == ("completed", "done", None)
        assert done["progress"]["percentage"] == 100.0
        assert (done["progress"]["processed_files"], done["progress"]["bytes_total"]) == (3, 4096)
        assert done["created_at"] <= done["started_at"] <= done["finished_at"]


def test_a_batch_from_submit_to_its_end(api_settings: Settings) -> None:
    with serving(api_settings) as (client, app):
        answer = client.post("/process-batch", json=[order(n) for n in range(3)])
        accepted = answer.json()
        assert answer.status_code == 202
        assert accepted.keys() == {"batch_id", "total_jobs", "jobs", "status", "message", "timestamp"}
        assert [job["job_id"] for job in accepted["jobs"]] == ["job-0", "job-1", "job-2"]

        def batch() -> dict[str, Any]:
            body: dict[str, Any] = client.get(answer.headers["Location"]).json()
            return body

        first = batch()
        assert (first["status"], first["counts"], first["percentage"]) == ("pending", {"pending": 3}, 0.0)
        assert [job["task_id"] for job in first["jobs"]] == [job["task_id"] for job in accepted["jobs"]]
        app.ledger.work.finish(start(app).job, State.SUCCEEDED, result={})
        running = batch()
        assert (running["status"], running["counts"]) == ("processing", {"completed": 1, "pending": 2})
        assert running["percentage"] == 33.3
        app.ledger.work.finish(start(app).job, State.FAILED, error_code="validation_failed", error="no .glb")
        app.ledger.work.finish(start(app).job, State.SUCCEEDED, result={})
        ended = batch()
        assert (ended["status"], ended["percentage"]) == ("partial", 100.0)
        assert ended["counts"] == {"completed": 2, "validation_failed": 1}
        assert ended["total_jobs"] == 3


def test_a_second_delivery_of_the_same_job_is_a_conflict_that_names_the_first(api_settings: Settings) -> None:
    with serving(api_settings) as (client, _):
        first = submit(client)
        again = client.post("/process-job", json=order())
        in_batch = client.post("/process-batch", json=[order(2), order(1)])
        assert (again.status_code, again.json()["code"]) == (409, "already_active")
        assert first in again.json()["detail"]
        assert in_batch.status_code == 409
        assert client.post("/process-job", json=order(2)).status_code == 202, "the refused batch left nothing behind"


def test_the_longest_names_that_are_taken_can_be_stored(api_settings: Settings) -> None:
    with serving(api_settings) as (client, _):
        longest = next(n for n in range(300, 0, -1) if _accepts(client, username="ü" * n))
        assert longest >= 50
        assert _accepts(client, job_id="j" * 128, campaign="\U0001f600" * 100)


def _accepts(client: TestClient, **more: Any) -> bool:
    answer = client.post("/process-job", json=order(1, **more))
    assert answer.status_code in (202, 422), answer.text
    return answer.status_code == 202


@pytest.mark.parametrize("route", ["job-status", "batch-status"])
def test_an_unknown_id_is_not_found(api_settings: Settings, route: str) -> None:
    with serving(api_settings) as (client, _):
        answer = client.get(f"/{route}/0b0f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert client.get(f"/{route}/%00").status_code == 422


def test_figures_of_hosts_and_backlog(api_settings: Settings) -> None:
    with serving(api_settings) as (client, app):
        app.ledger.hosts.register(HOST, "life-1", FIGURES)
        submit(client)
        memory = client.get("/memory-stats").json()
        (host,) = memory["hosts"]
        assert (host["host"], host["limit_bytes"], host["budget_bytes"]) == (HOST, 8 * GIB, 4 * GIB)
        assert (host["used_bytes"], host["reserved_bytes"]) == (GIB, 96 * MIB)
        assert host["recommended_concurrency"] == 4 * GIB // PIPELINE.memory
        assert (memory["accepting_jobs"], memory["reason"]) == (True, "1 worker host(s) up")
        assert memory["system"]["limit_bytes"] == 2 * GIB
        assert memory["system"]["limit_source"] == "setting"
        assert memory["process"]["rss_bytes"] > 0
        (entry,) = client.get("/celery-stats").json()["backlog"]
        assert (entry["kind"], entry["reason"], entry["jobs"], entry["scheduled"]) == ("deliver", "new", 1, 0)
        assert entry["need_bytes"] == PIPELINE.memory


def test_jobs_that_wait_for_memory_are_shown_as_waiting(api_settings: Settings) -> None:
    with serving(api_settings) as (client, app):
        app.ledger.hosts.register(HOST, "life-1", FIGURES)
        task_id = submit(client)
        assert app.ledger.queue.pick(Offer(HOST, 1, 1 * MIB, False, 8 * GIB)) == []
        waiting = status(client, task_id)
        assert (waiting["status"], waiting["reason"]) == ("waiting", "no_memory")
        assert client.get("/memory-stats").json()["hosts"][0]["waiting"] == {"jobs": 1, "bytes": PIPELINE.memory}


def test_health_tells_which_part_is_missing(api_settings: Settings) -> None:
    with serving(api_settings) as (client, app):
        degraded = client.get("/health")
        assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
        app.ledger.hosts.register(HOST, "life-1", FIGURES)
        healthy = client.get("/health")
        assert healthy.status_code == 200
        assert healthy.json() == {
            "status": "healthy",
            "redis": "connected",
            "database": "connected",
            "workers": 1,
            "timestamp": healthy.json()["timestamp"],
        }
        app.database.transact(lambda connection: connection.execute(text("delete from alembic_version")))
        unhealthy = client.get("/health")
        assert (unhealthy.status_code, unhealthy.json()["database"]) == (503, "not_migrated")
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200


# --- states and figures ---------------------------------------------------------------------------------


def test_live_figures_decorate_only_the_run_and_stage_that_the_ledger_names(sqlite_settings: Settings) -> None:
    with serving(sqlite_settings) as (client, app):
        task_id = submit(client)
        job = start(app).job.evolve(stage="upload")
        app.ledger.work.enter(job, "upload")
        before = status(client, task_id)["progress"]

        show(app, job, percentage=99.95, files=2, total_files=4, bytes_done=5, bytes_total=9, current_file="a.png")
        shown = status(client, task_id)["progress"]
        assert (shown["processed_files"], shown["total_files"], shown["current_file"]) == (2, 4, "a.png")
        assert (shown["bytes_done"], shown["bytes_total"]) == (5, 9)
        assert before["percentage"] < shown["percentage"] < 100.0, "capped at the end of the stage"

        for stale in (job.evolve(stage="publish"), job.evolve(started_at=0.0)):
            show(app, stale, percentage=100.0, files=4)
            assert status(client, task_id)["progress"] == before


def test_a_retry_is_visible_with_its_cause(sqlite_settings: Settings) -> None:
    with serving(sqlite_settings) as (client, app):
        task_id = submit(client)
        job = start(app).job
        app.ledger.work.give_back(
            job, reason=Reason.RETRY, retry_in=60, counted=True, error_code="s3_failed", error="503 from S3"
        )
        shown = status(client, task_id)
        assert (shown["status"], shown["reason"], shown["host"]) == ("pending", "retry", None)
        assert shown["error"] == {"code": "s3_failed", "detail": "503 from S3"}
        stats = client.get("/celery-stats").json()
        assert (stats["scheduled"], stats["backlog"][0]["reason"]) == (1, "retry")


@pytest.mark.parametrize(
    ("state", "code", "word"),
    [
        (State.FAILED, "validation_failed", "validation_failed"),
        (State.FAILED, "s3_missing", "failed"),
        (State.CANCELLED, "cancelled", "cancelled"),
    ],
)
def test_a_job_that_ends_without_success_says_why(
    sqlite_settings: Settings, state: State, code: str, word: str
) -> None:
    with serving(sqlite_settings) as (client, app):
        task_id = submit(client)
        job = start(app).job
        if state is State.CANCELLED:
            app.ledger.intake.cancel(task_id, actor="ann")
            assert status(client, task_id)["message"] == "was asked to stop"
        app.ledger.work.finish(job, state, error_code=code, error="because")
        shown = status(client, task_id)
        assert (shown["status"], shown["message"]) == (word, "because")
        assert shown["error"] == {"code": code, "detail": "because"}
        assert shown["progress"]["percentage"] < 100.0


def test_no_job_is_taken_in_that_cannot_run(sqlite_settings: Settings) -> None:
    tight = HostFigures(8 * GIB, "host", 1 * MIB, 8 * GIB, 0, 4, 0)
    with serving(sqlite_settings) as (client, app):
        app.ledger.hosts.register(HOST, "life-1", tight)
        busy = client.post("/process-job", json=order())
        assert (busy.status_code, busy.json()["code"]) == (503, "memory_short")
        assert int(busy.headers["Retry-After"]) >= 1
        assert client.get("/memory-stats").json()["accepting_jobs"] is False
        app.ledger.hosts.register(HOST, "life-2", HostFigures(1 * MIB, "host", 1 * MIB, 0, 0, 4, 0))
        app.admission.forget()
        never = client.post("/process-job", json=order())
        assert (never.status_code, never.json()["code"]) == (422, "never_fits")


@pytest.mark.parametrize("size", [0, MAX_BATCH + 1])
def test_a_batch_has_at_least_one_job_and_not_too_many(sqlite_settings: Settings, size: int) -> None:
    with serving(sqlite_settings) as (client, _):
        answer = client.post("/process-batch", json=[order(n) for n in range(size)])
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "body")


def test_the_same_job_twice_in_one_batch_is_refused(sqlite_settings: Settings) -> None:
    with serving(sqlite_settings) as (client, _):
        answer = client.post("/process-batch", json=[order(1), order(1)])
        assert (answer.status_code, answer.json()["code"]) == (409, "duplicate_target")
