"""The HTTP interface on a real ledger, of each kind, and a real Redis."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from kombu import Connection
from openapi_spec_validator import validate
from services import SqlServer
from sqlalchemy import text

from ncr_worker.api.application import create_app
from ncr_worker.app import App
from ncr_worker.errors import ConfigError
from ncr_worker.job import Job, Reason, State
from ncr_worker.ledger import Claim, HostFigures, Offer, schema
from ncr_worker.pipeline import GIB, MIB
from ncr_worker.pipelines.deliver import PIPELINE
from ncr_worker.sandbox.process import ServerProcess, accepts, free_port, http_ok
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings
from ncr_worker.sql import Database
from ncr_worker.worker.inspection import queue_name

HOST = "h1"
MAX_BATCH = 20
FIGURES = HostFigures(8 * GIB, "cgroup v2", 4 * GIB, 1 * GIB, 96 * MIB, 4, 1)
NOWHERE = {"mysql": "mysql+pymysql://u:p@127.0.0.1:{}/x", "postgresql": "postgresql+psycopg://u:p@127.0.0.1:{}/x"}
ROUTES = {
    "/": "get",
    "/process-job": "post",
    "/process-batch": "post",
    "/job-status/{task_id}": "get",
    "/batch-status/{batch_id}": "get",
    "/jobs/active": "get",
    "/health": "get",
    "/health/live": "get",
    "/health/ready": "get",
    "/memory-stats": "get",
    "/celery-stats": "get",
}


def migrated(url: str) -> str:
    database = Database(url)
    schema.upgrade(database)
    database.close()
    return url


@pytest.fixture
def settings(database_url: str, valkey: Valkey, tmp_path: Path) -> Settings:
    return settings_for(migrated(database_url), valkey.url, tmp_path)


@pytest.fixture
def small(valkey: Valkey, tmp_path: Path) -> Settings:
    """For what is the same on every database."""
    return settings_for(migrated(f"sqlite:///{tmp_path / 'ncr.sqlite3'}"), valkey.url, tmp_path)


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


# --- the whole way, on each database ------------------------------------------------------------------


def test_a_job_from_submit_to_its_end(settings: Settings) -> None:
    with serving(settings) as (client, app):
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


def test_a_batch_from_submit_to_its_end(settings: Settings) -> None:
    with serving(settings) as (client, app):
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


def test_a_second_delivery_of_the_same_job_is_a_conflict_that_names_the_first(settings: Settings) -> None:
    with serving(settings) as (client, _):
        first = submit(client)
        again = client.post("/process-job", json=order())
        in_batch = client.post("/process-batch", json=[order(2), order(1)])
        assert (again.status_code, again.json()["code"]) == (409, "already_active")
        assert first in again.json()["detail"]
        assert in_batch.status_code == 409
        assert client.post("/process-job", json=order(2)).status_code == 202, "the refused batch left nothing behind"


def test_the_longest_names_that_are_taken_can_be_stored(settings: Settings) -> None:
    with serving(settings) as (client, _):
        longest = next(n for n in range(300, 0, -1) if _accepts(client, username="ü" * n))
        assert longest >= 50
        assert _accepts(client, job_id="j" * 128, campaign="\U0001f600" * 100)


def _accepts(client: TestClient, **more: Any) -> bool:
    answer = client.post("/process-job", json=order(1, **more))
    assert answer.status_code in (202, 422), answer.text
    return answer.status_code == 202


@pytest.mark.parametrize("route", ["job-status", "batch-status"])
def test_an_unknown_id_is_not_found(settings: Settings, route: str) -> None:
    with serving(settings) as (client, _):
        answer = client.get(f"/{route}/0b0f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert client.get(f"/{route}/%00").status_code == 422


def test_figures_of_hosts_and_backlog(settings: Settings) -> None:
    with serving(settings) as (client, app):
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


def test_jobs_that_wait_for_memory_are_shown_as_waiting(settings: Settings) -> None:
    with serving(settings) as (client, app):
        app.ledger.hosts.register(HOST, "life-1", FIGURES)
        task_id = submit(client)
        assert app.ledger.queue.pick(Offer(HOST, 1, 1 * MIB, False, 8 * GIB)) == []
        waiting = status(client, task_id)
        assert (waiting["status"], waiting["reason"]) == ("waiting", "no_memory")
        assert client.get("/memory-stats").json()["hosts"][0]["waiting"] == {"jobs": 1, "bytes": PIPELINE.memory}


def test_health_tells_which_part_is_missing(settings: Settings) -> None:
    with serving(settings) as (client, app):
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


def test_live_figures_decorate_only_the_run_and_stage_that_the_ledger_names(small: Settings) -> None:
    with serving(small) as (client, app):
        task_id = submit(client)
        job = start(app).job.evolve(stage="upload")
        app.ledger.work.enter(job, "upload")
        before = status(client, task_id)["progress"]

        show(app, job, percentage=99.95, files=2, total_files=4, bytes_done=5, bytes_total=9, current_file="a.png")
        shown = status(client, task_id)["progress"]
        assert (shown["processed_files"], shown["total_files"], shown["current_file"]) == (2, 4, "a.png")
        assert (shown["bytes_done"], shown["bytes_total"]) == (5, 9)
        assert before["percentage"] < shown["percentage"] < 100.0, "capped at the end of the stage"

        for stale in (job.evolve(stage="publish"), job.evolve(attempt=2)):
            show(app, stale, percentage=100.0, files=4)
            assert status(client, task_id)["progress"] == before


def test_a_retry_is_visible_with_its_cause(small: Settings) -> None:
    with serving(small) as (client, app):
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
def test_a_job_that_ends_without_success_says_why(small: Settings, state: State, code: str, word: str) -> None:
    with serving(small) as (client, app):
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


def test_no_job_is_taken_in_that_cannot_run(small: Settings) -> None:
    tight = HostFigures(8 * GIB, "host", 1 * MIB, 8 * GIB, 0, 4, 0)
    with serving(small) as (client, app):
        app.ledger.hosts.register(HOST, "life-1", tight)
        busy = client.post("/process-job", json=order())
        assert (busy.status_code, busy.json()["code"]) == (503, "memory_short")
        assert int(busy.headers["Retry-After"]) >= 1
        assert client.get("/memory-stats").json()["accepting_jobs"] is False
        app.ledger.hosts.register(HOST, "life-2", HostFigures(1 * MIB, "host", 1 * MIB, 0, 0, 4, 0))
        never = client.post("/process-job", json=order())
        assert (never.status_code, never.json()["code"]) == (422, "never_fits")


@pytest.mark.parametrize("size", [0, MAX_BATCH + 1])
def test_a_batch_has_at_least_one_job_and_not_too_many(small: Settings, size: int) -> None:
    with serving(small) as (client, _):
        answer = client.post("/process-batch", json=[order(n) for n in range(size)])
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "body")


def test_the_same_job_twice_in_one_batch_is_refused(small: Settings) -> None:
    with serving(small) as (client, _):
        answer = client.post("/process-batch", json=[order(1), order(1)])
        assert (answer.status_code, answer.json()["code"]) == (409, "duplicate_target")


# --- parts that are away ----------------------------------------------------------------------------------


def test_without_redis_jobs_are_taken_in_and_shown(small: Settings) -> None:
    dark = f"redis://127.0.0.1:{free_port()}/0"
    with serving(small.model_copy(update={"redis_url": dark, "celery_broker_url": dark})) as (client, app):
        task_id = submit(client)
        assert client.post("/process-batch", json=[order(2)]).status_code == 202
        start(app)
        assert status(client, task_id)["status"] == "processing"
        assert client.get("/celery-stats").json()["broker"] == "disconnected"
        app.ledger.hosts.register(HOST, "life-1", FIGURES)
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert health.json()["redis"] == "disconnected"
        stats = client.get("/celery-stats").json()
        assert (stats["broker"], stats["queues"]) == ("disconnected", {HOST: None})
        assert stats["backlog"][0]["jobs"] == 1


@pytest.mark.parametrize("kind", NOWHERE)
def test_it_starts_without_the_database_and_says_so(kind: str, valkey: Valkey, tmp_path: Path) -> None:
    with serving(settings_for(NOWHERE[kind].format(free_port()), valkey.url, tmp_path)) as (client, _):
        for answer in (client.post("/process-job", json=order()), client.get("/jobs/active")):
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
            assert "Traceback" not in answer.text
        health = client.get("/health")
        assert (health.status_code, health.json()["database"]) == (503, "disconnected")
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        assert client.get("/").status_code == 200


@pytest.mark.parametrize("kind", ["mariadb", "postgresql"])
def test_an_outage_of_the_database_passes(
    kind: str, request: pytest.FixtureRequest, valkey: Valkey, tmp_path: Path
) -> None:
    server: SqlServer = request.getfixturevalue(kind)
    url = server.create_database()
    with serving(settings_for(migrated(url), valkey.url, tmp_path)) as (client, _):
        task_id = submit(client)
        server.stop()
        try:
            away = client.post("/process-job", json=order(2))
            assert (away.status_code, away.json()["code"]) == (503, "database_unavailable")
        finally:
            server.start()
        assert client.post("/process-job", json=order(2)).status_code == 202
        assert status(client, task_id)["status"] == "pending"
    server.drop_database(url)


def test_an_old_schema_is_refused_at_the_start(valkey: Valkey, tmp_path: Path) -> None:
    settings = settings_for(f"sqlite:///{tmp_path / 'empty.sqlite3'}", valkey.url, tmp_path)
    with pytest.raises(ConfigError, match="ncr db upgrade"), serving(settings):
        pass


# --- the document ---------------------------------------------------------------------------------------


def test_the_openapi_document_is_valid_and_describes_every_route(small: Settings) -> None:
    with serving(small) as (client, _):
        document = client.get("/openapi.json").json()
        validate(document)
        assert {path: next(iter(methods)) for path, methods in document["paths"].items()} == ROUTES
        for path, method in ROUTES.items():
            operation = document["paths"][path][method]
            assert operation["summary"], path
            assert operation["description"], path
            good = next(answer for code, answer in operation["responses"].items() if code.startswith("2"))
            assert _schema(document, good, "application/json")["examples"], path
            if method == "post":
                assert operation["requestBody"]["content"]["application/json"]["schema"]["examples"], path
            for code, answer in operation["responses"].items():
                if code.startswith(("4", "5")) and (path, code) != ("/health", "503"):
                    assert _schema(document, answer, "application/problem+json")["title"] == "Problem", (path, code)
        for page in ("/docs", "/redoc"):
            assert client.get(page).status_code == 200


def _schema(document: dict[str, Any], answer: dict[str, Any], media_type: str) -> dict[str, Any]:
    name = answer["content"][media_type]["schema"]["$ref"].rpartition("/")[2]
    schema: dict[str, Any] = document["components"]["schemas"][name]
    return schema


def test_the_examples_are_what_the_document_promises(small: Settings) -> None:
    """An example of an answer has the very fields of the answer."""
    with serving(small) as (client, _):
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        for name, schema in schemas.items():
            for example in schema.get("examples", []):
                assert set(schema["required"]) <= set(example) <= set(schema["properties"]), name


def test_links_lead_somewhere(small: Settings) -> None:
    with serving(small) as (client, _):
        service = client.get("/").json()
        assert service["version"]
        assert all(client.get(link).status_code == 200 for link in service["links"].values())


def test_browsers_of_the_named_origins_may_call(small: Settings) -> None:
    with serving(small) as (client, _):
        for origin, allowed in (("https://ui.example", "https://ui.example"), ("https://other.example", None)):
            answer = client.get("/job-status/unknown", headers={"Origin": origin})
            assert answer.headers.get("Access-Control-Allow-Origin") == allowed


# --- real processes ---------------------------------------------------------------------------------------


class Ncr(ServerProcess):
    """`ncr …` as an operator starts it."""

    name = "ncr"

    def __init__(self, folder: Path, settings: Settings, args: Sequence[str], is_up: Callable[[], bool]) -> None:
        super().__init__(folder)
        self.settings = settings
        self.args = args
        self.is_up = is_up

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "ncr_worker", *self.args]

    def ready(self) -> bool:
        return self.is_up()

    def env(self) -> dict[str, str]:
        settings = self.settings
        return {
            "DATABASE_URL": settings.database_url,
            "REDIS_URL": settings.redis_url,
            "CELERY_BROKER_URL": settings.celery_broker_url,
            "WORK_FOLDER": str(settings.work_folder),
            "HOST_ID": HOST,
            "SHUTDOWN_GRACE": "1",
            "FLOWER_PORT": str(settings.flower_port),
        }

    def environment(self) -> dict[str, str]:
        return self.env()


def test_a_real_worker_is_seen(small: Settings, broker_url: str, tmp_path: Path) -> None:
    with serving(small.model_copy(update={"celery_broker_url": broker_url})) as (client, app):

        def answers() -> bool:
            return bool(app.ledger.hosts.live()) and bool(client.get("/celery-stats").json()["stats"])

        with Ncr(tmp_path / "ncr", app.settings, ["worker", "--concurrency=1"], answers):
            stats = client.get("/celery-stats").json()
            ((name, worker),) = stats["stats"].items()
            assert (name, worker["concurrency"], len(worker["processes"])) == (f"ncr@{HOST}", 1, 1)
            assert (stats["broker"], stats["queues"]) == ("connected", {HOST: 0})
            assert stats["active"] == stats["reserved"] == {name: []}
            assert client.get("/health").json()["workers"] == 1
        assert client.get("/celery-stats").json()["stats"] == {}, "a worker that was stopped has left"


def test_messages_that_lie_at_the_broker_are_counted(small: Settings, broker_url: str) -> None:
    with serving(small.model_copy(update={"celery_broker_url": broker_url})) as (client, app):
        app.ledger.hosts.register(HOST, "life-1", FIGURES)
        with Connection(broker_url) as connection, connection.SimpleQueue(queue_name(HOST)) as queue:
            queue.put("one")
            queue.put("two")
            began = time.monotonic()
            stats = client.get("/celery-stats").json()
            assert stats["queues"] == {HOST: 2}
            assert stats["stats"] == {}, "nobody answers for this host"
            assert time.monotonic() - began < 3
            queue.clear()


def test_the_commands_serve(small: Settings, tmp_path: Path) -> None:
    """`ncr api`, `ncr flower` and `ncr beat`: each starts, works, and ends on SIGTERM."""
    port, flower_port = free_port(), free_port()
    settings = small.model_copy(update={"flower_port": flower_port})
    schedule = partial(settings.work_folder.glob, "beat-schedule*")  # each dbm has a suffix of its own
    url = f"http://127.0.0.1:{port}"
    with Ncr(tmp_path / "api", settings, ["api", "--port", str(port)], lambda: http_ok(f"{url}/health/ready")):
        pass
    with Ncr(tmp_path / "flower", settings, ["flower"], lambda: http_ok(f"http://127.0.0.1:{flower_port}/healthcheck")):
        pass
    with Ncr(tmp_path / "beat", settings, ["beat"], lambda: any(schedule())):
        pass
    assert not accepts(port)
    assert not accepts(flower_port)
