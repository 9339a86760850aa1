"""Lines of the contract that no other file shows: the commands as they are written there, Celery's results, times."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import redis
from celery import Celery
from engine import eventually
from pydantic import SecretStr
from serving import HOST, on_sqlite, order, serving, start, submit, submit_batch
from starlette.routing import Match, Route

from ncr_worker.api.application import create_app
from ncr_worker.app import App
from ncr_worker.job import NewBatch, NewJob, State
from ncr_worker.pipelines.stuck_report import KIND, StuckReportArgs
from ncr_worker.sandbox.process import ServerProcess, accepts, free_port, http_ok
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings

PROJECT = Path(__file__).parents[2]
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
TIMES = re.compile(r"(_at|_run_at|^at|^since|^timestamp)$")


class Program(ServerProcess):
    """A program of the project as an operator starts it, in a folder of its own."""

    name = "program"
    start_patience = 120.0

    def __init__(self, folder: Path, settings: Settings, args: Sequence[str], up: Callable[[], bool], **more: str):
        super().__init__(folder)
        self.args = args
        self.up = up
        self._env = {
            "DATABASE_URL": settings.database_url,
            "REDIS_URL": settings.redis_url,
            "CELERY_BROKER_URL": settings.celery_broker_url,
            "WORK_FOLDER": str(settings.work_folder),
            "FLOWER_PORT": str(settings.flower_port),
            "HOST_ID": HOST,
            "SHUTDOWN_GRACE": "5",
            "PYTHONPATH": str(PROJECT),
        } | more

    def command(self) -> Sequence[str]:
        return [sys.executable, *self.args]

    def ready(self) -> bool:
        return self.up()

    def env(self) -> dict[str, str]:
        return self._env

    def environment(self) -> dict[str, str]:
        return self._env

    def said(self) -> str:
        return self.log.read_text(errors="replace")


@pytest.fixture
def settings(valkey: Valkey, tmp_path: Path) -> Settings:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return on_sqlite(valkey.url, tmp_path, flower_port=free_port())


@pytest.fixture
def app(settings: Settings) -> Iterator[App]:
    app = App(settings)
    yield app
    app.close()


# --- settings -----------------------------------------------------------------------------------------
DEFAULTS = {
    "api_port": 8001,
    "redis_port": 6380,
    "flower_port": 5555,
    "max_memory_usage_percent": 80,
    "celery_worker_concurrency": 4,
    "celery_worker_max_memory_per_child": 200_000,
    "celery_worker_max_tasks_per_child": 1000,
    "batch_size": 5,
    "batch_timeout": 300,
    "validator_api_key_header": "x-bond-api-public-key",
    "db_name": "csv_worker",
    "auth": "off",
}


def test_the_documented_defaults() -> None:
    assert {name: Settings.model_fields[name].default for name in DEFAULTS} == DEFAULTS


SECRETS = [name for name, field in Settings.model_fields.items() if field.annotation is SecretStr]


@pytest.mark.parametrize("name", [*SECRETS, "database_url", "celery_broker_url", "celery_result_backend"])
def test_any_secret_can_come_from_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for known in Settings.model_fields:
        monkeypatch.delenv(known.upper(), raising=False)
    (tmp_path / "secret").write_text("ann:s3cret\n")
    monkeypatch.setenv(f"{name.upper()}_FILE", str(tmp_path / "secret"))
    value = getattr(Settings(_env_file=None), name)
    assert (value.get_secret_value() if isinstance(value, SecretStr) else value) == "ann:s3cret"


# --- the commands -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "args",
    [
        [str(PROJECT / "main.py")],
        [str(PROJECT / "start_worker.py"), "api"],
        ["-m", "uvicorn", "ncr_worker.api:app", "--timeout-graceful-shutdown", "5"],
    ],
    ids=["main", "start_worker", "uvicorn"],
)
def test_the_api_is_served(settings: Settings, tmp_path: Path, args: list[str]) -> None:
    port = free_port()
    up = f"http://127.0.0.1:{port}/health/ready"
    with Program(tmp_path / "api", settings, [*args, "--port", str(port)], lambda: http_ok(up)):
        pass
    assert not accepts(port)


def test_in_development_the_api_starts_again_when_a_file_changes(settings: Settings, tmp_path: Path) -> None:
    folder, port = tmp_path / "api", free_port()
    shutil.copytree(PROJECT / "ncr_worker", folder / "ncr_worker")
    shutil.copy(PROJECT / "main.py", folder)
    args = ["main.py", "--reload", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with Program(folder, settings, args, lambda: http_ok(f"{url}/health/ready"), PYTHONPATH=str(folder)) as program:
        (folder / "ncr_worker" / "__init__.py").write_text('__version__ = "0.1.0+changed"\n')

        def renewed() -> bool:
            try:
                return bool(httpx2.get(url, timeout=5).json()["version"] == "0.1.0+changed")
            except httpx2.TransportError:  # it starts just now
                return False

        assert eventually(renewed, 120), program.said()
        family = psutil.Process(program.pid).children(recursive=True)
        assert family, "it serves in a process of its own"
        os.kill(program.pid, signal.SIGTERM)
        assert eventually(lambda: not program.running, 30)
        _, left = psutil.wait_procs(family, timeout=10)
        assert not left
    assert not accepts(port)


@pytest.mark.parametrize(
    "args",
    [[str(PROJECT / "start_worker.py"), "flower"], ["-m", "celery", "-A", "ncr_worker.worker", "flower"]],
    ids=["start_worker", "celery"],
)
def test_flower_is_served(settings: Settings, tmp_path: Path, args: list[str]) -> None:
    port = settings.flower_port
    args = [*args, f"--port={port}", "--address=127.0.0.1"]
    with Program(tmp_path / "flower", settings, args, lambda: http_ok(f"http://127.0.0.1:{port}/healthcheck")):
        pass
    assert not accepts(port)


def test_beat_submits(settings: Settings, app: App, tmp_path: Path) -> None:
    def submitted() -> bool:
        return app.history.queued() > 0

    script = str(PROJECT / "start_worker.py")
    with Program(tmp_path / "beat", settings, [script, "beat"], submitted):
        pass


@pytest.mark.parametrize(
    "args",
    [
        [str(PROJECT / "start_worker.py"), "worker", "--concurrency=1"],
        ["-m", "celery", "-A", "ncr_worker.worker", "worker", "--concurrency=1"],
    ],
    ids=["start_worker", "celery"],
)
def test_a_worker_runs_jobs_and_shows_them_where_redis_cli_looks(
    settings: Settings, app: App, tmp_path: Path, args: list[str]
) -> None:
    (job_id,) = app.submit(KIND, StuckReportArgs()).job_ids
    with Program(tmp_path / "worker", settings, args, lambda: app.ledger.reads.job(job_id).terminal):
        assert app.ledger.reads.job(job_id).state is State.SUCCEEDED
    with redis.Redis.from_url(settings.redis_url) as client:
        shown = json.loads(client.get(f"job:{job_id}:status"))
    assert shown["status"] == app.look.status(job_id).status


# --- CELERY_RESULT_BACKEND ----------------------------------------------------------------------------
def test_results_are_where_users_of_celery_look(settings: Settings, app: App, tmp_path: Path) -> None:
    url = settings.redis_url.removesuffix("/0") + "/2"
    (job_id,) = app.submit(KIND, StuckReportArgs()).job_ids
    with Celery("reader", backend=url, set_as_current=False) as reader:
        result = reader.AsyncResult(job_id)
        args = [str(PROJECT / "start_worker.py"), "worker", "--concurrency=1"]
        with Program(tmp_path / "worker", settings, args, result.ready, CELERY_RESULT_BACKEND=url):
            status = app.look.status(job_id).status
            assert (result.state, result.result) == ("SUCCESS", {"job_id": KIND, "kind": KIND, "status": status})


def test_a_result_that_cannot_be_written_is_logged_and_changes_nothing(
    settings: Settings, app: App, tmp_path: Path
) -> None:
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    args = [str(PROJECT / "start_worker.py"), "worker", "--concurrency=1"]
    jobs = list(app.submit(KIND, StuckReportArgs()).job_ids)

    def ended() -> bool:
        if not app.ledger.reads.job(jobs[-1]).terminal:
            return False
        if len(jobs) < 3:  # the report is exclusive: the next one may be submitted now
            jobs.extend(app.submit(KIND, StuckReportArgs()).job_ids)
            return False
        return worker.said().count("was not written to CELERY_RESULT_BACKEND") == len(jobs)

    worker = Program(tmp_path / "worker", settings, args, ended, CELERY_RESULT_BACKEND=nobody)
    with worker:
        pass
    assert [job.state for job in app.ledger.reads.jobs(jobs)] == [State.SUCCEEDED] * 3
    assert [job.attempt for job in app.ledger.reads.jobs(jobs)] == [1] * 3
    assert "Traceback" not in worker.said()


# --- answers ------------------------------------------------------------------------------------------
def test_literal_routes_come_before_those_with_an_id(settings: Settings) -> None:
    routes = [route for route in create_app(settings).routes if isinstance(route, Route)]
    for route in routes:
        if "{" not in route.path:
            scope = {"type": "http", "path": route.path, "method": next(iter(route.methods or {"GET"}))}
            first = next(each for each in routes if each.matches(scope)[0] is Match.FULL)
            assert first is route, f"{first.path} takes {route.path}"


def test_all_times_are_rfc_3339_utc(settings: Settings) -> None:
    with serving(settings) as (client, app):
        task_id, batch_id = submit(client), submit_batch(client, 2, 3)
        claim = start(app)
        client.post("/pause", json={"scope": "intake"})
        app.ledger.work.finish(claim.job, State.FAILED, error_code="source_missing", error="because")
        answers = [client.get(f"/jobs/{task_id}{part}") for part in ("", "/audit", "/receipt")]
        paths = (
            f"/batch-status/{batch_id}",
            "/jobs",
            "/batches",
            "/health",
            "/memory-stats",
            "/celery-stats",
            "/pauses",
        )
        answers += [client.get(path) for path in paths]
        answers += [client.get(f"/job-status/{task_id}"), client.post("/process-job", json=order(9))]
        times = [(name, value) for answer in answers for name, value in _times(answer.json())]
    assert {name for name, _ in times} >= {"timestamp", "at", "created_at", "started_at", "finished_at", "since"}
    assert [(name, value) for name, value in times if not UTC_TIME.fullmatch(str(value))] == []


def _times(answer: Any) -> Iterator[tuple[str, Any]]:
    """(field, value) of all that is called like a time and is not null."""
    if isinstance(answer, list):
        for each in answer:
            yield from _times(each)
    elif isinstance(answer, dict):
        for name, value in answer.items():
            if TIMES.search(name) and value is not None:
                yield name, value
            else:
                yield from _times(value)


def test_a_running_task_says_since_when(settings: Settings) -> None:
    """In `/celery-stats`; only a busy worker shows one."""
    document = create_app(settings).openapi()["components"]["schemas"]["RunningTask"]
    (kind,) = [each for each in document["properties"]["started_at"]["anyOf"] if each["type"] != "null"]
    assert (kind["type"], kind["format"]) == ("string", "date-time")


def test_a_batch_of_a_kind_that_this_process_does_not_know_is_not_found(settings: Settings, app: App) -> None:
    """While a new version is rolled out, another process may have stored it."""
    new = NewJob(id="j", kind="newer", version=1, ref="1", tenant="ann", args={}, need=1, batch_id="b")
    app.ledger.intake.submit([new], NewBatch("b", "ann", 1))
    with serving(settings) as (client, _):
        for path in ("/batch-status/b", "/job-status/j", "/jobs/j"):
            answer = client.get(path)
            assert (answer.status_code, "'newer'" in answer.json()["detail"]) == (404, True), path
        assert client.get("/jobs").json()["jobs"] == []
        assert client.get("/batches").json()["batches"][0]["counts"] == {"queued": 1}
        assert client.post("/batches/b/cancel").json()["cancelled"] == ["j"]
