"""The HTTP interface while parts are away."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from services import SqlServer
from serving import FIGURES, HOST, migrated, on_sqlite, order, serving, settings_for, start, status, submit
from sqlalchemy import QueuePool

from ncr_worker.errors import ConfigError
from ncr_worker.sandbox.process import free_port
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings
from ncr_worker.sql import OVERFLOW

NOWHERE = {"mysql": "mysql+pymysql://u:p@127.0.0.1:{}/x", "postgresql": "postgresql+psycopg://u:p@127.0.0.1:{}/x"}


@pytest.fixture
def sqlite_settings(valkey: Valkey, tmp_path: Path) -> Settings:
    return on_sqlite(valkey.url, tmp_path)


def test_without_redis_jobs_are_taken_in_and_shown(sqlite_settings: Settings) -> None:
    dark = f"redis://127.0.0.1:{free_port()}/0"
    with serving(sqlite_settings.model_copy(update={"redis_url": dark, "celery_broker_url": dark})) as (client, app):
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
    kind: str,
    request: pytest.FixtureRequest,
    valkey: Valkey,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server: SqlServer = request.getfixturevalue(kind)
    url = server.create_database()
    with serving(settings_for(migrated(url), valkey.url, tmp_path)) as (client, _):
        task_id = submit(client)
        server.stop()
        caplog.clear()
        try:
            away = client.post("/process-job", json=order(2))
            assert (away.status_code, away.json()["code"]) == (503, "database_unavailable")
            assert away.json()["detail"] == "the database does not answer", "what its driver says is for the log"
            assert "the database does not answer: " in caplog.text
        finally:
            server.start()
        assert client.post("/process-job", json=order(2)).status_code == 202
        assert status(client, task_id)["status"] == "pending"
    server.drop_database(url)


def test_a_process_whose_connections_are_all_in_use_says_so(
    sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(sqlite_settings.model_copy(update={"db_pool_size": 1})) as (client, app), ExitStack() as stack:
        pool = app.database.engine.pool
        assert isinstance(pool, QueuePool)
        monkeypatch.setattr(pool, "_timeout", 0)
        for _ in range(1 + OVERFLOW):
            stack.enter_context(app.database.engine.connect())
        answer = client.get("/jobs")
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert "DB_POOL_SIZE" in answer.json()["detail"]


def test_an_old_schema_is_refused_at_the_start(valkey: Valkey, tmp_path: Path) -> None:
    settings = settings_for(f"sqlite:///{tmp_path / 'empty.sqlite3'}", valkey.url, tmp_path)
    with pytest.raises(ConfigError, match="ncr db upgrade"), serving(settings):
        pass
