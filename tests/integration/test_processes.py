"""`ncr …` in real processes, and what the API sees of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from kombu import Connection
from serving import FIGURES, HOST, on_sqlite, serving

from ncr_worker.sandbox.process import ServerProcess, accepts, free_port, http_ok
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings
from ncr_worker.worker.inspection import queue_name


@pytest.fixture
def sqlite_settings(valkey: Valkey, tmp_path: Path) -> Settings:
    return on_sqlite(valkey.url, tmp_path)


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


def test_a_real_worker_is_seen(sqlite_settings: Settings, broker_url: str, tmp_path: Path) -> None:
    with serving(sqlite_settings.model_copy(update={"celery_broker_url": broker_url})) as (client, app):

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


def test_messages_that_lie_at_the_broker_are_counted(sqlite_settings: Settings, broker_url: str) -> None:
    with serving(sqlite_settings.model_copy(update={"celery_broker_url": broker_url})) as (client, app):
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


def test_the_commands_serve(sqlite_settings: Settings, tmp_path: Path) -> None:
    """`ncr api` and `ncr flower`: each starts, works, and ends on SIGTERM."""
    port, flower_port = free_port(), free_port()
    settings = sqlite_settings.model_copy(update={"flower_port": flower_port})
    url = f"http://127.0.0.1:{port}"
    with Ncr(tmp_path / "api", settings, ["api", "--port", str(port)], lambda: http_ok(f"{url}/health/ready")):
        pass
    with Ncr(tmp_path / "flower", settings, ["flower"], lambda: http_ok(f"http://127.0.0.1:{flower_port}/healthcheck")):
        pass
    assert not accepts(port)
    assert not accepts(flower_port)
