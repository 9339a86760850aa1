"""`/metrics`, with a real worker, several API processes, and parts away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx2
import pytest
from engine import eventually
from fastapi.testclient import TestClient
from mortal import MortalArgs
from scraped import families, figure
from serving import FIGURES, HOST, on_sqlite, order, serving, settings_for, submit
from test_processes import Ncr

from ncr_worker.api import metrics
from ncr_worker.app import App
from ncr_worker.ledger.pauses import Scope
from ncr_worker.metrics import Reports
from ncr_worker.sandbox.process import free_port, http_ok
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "metrics.md"
JOBS, FATAL, SLOTS = 9, 2, 2


@pytest.fixture
def sqlite_settings(valkey: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(metrics, "FRESH", 0.0)
    return on_sqlite(valkey.url, tmp_path)


def scrape(client: TestClient) -> str:
    answer = client.get("/metrics")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return answer.text


class Mortals(Ncr):
    """A worker whose children are renewed after three jobs, if they live that long."""

    def env(self) -> dict[str, str]:
        return super().env() | {
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
            "EXTRA_PIPELINES": "mortal",
            "CELERY_WORKER_MAX_TASKS_PER_CHILD": "3",
            "HOST_MEMORY_BYTES": str(self.settings.host_memory_bytes),
            "HOST_HEARTBEAT": "0.3",
            "HOST_LEASE": "30",
        }


def test_the_figures_of_children_that_died_and_were_renewed_add_up(sqlite_settings: Settings, tmp_path: Path) -> None:
    settings = sqlite_settings.model_copy(update={"extra_pipelines": ("mortal",)})
    with serving(settings) as (client, app):
        many = [MortalArgs(name=str(number), fatal=number < FATAL) for number in range(JOBS)]
        for args in many:
            app.submit("mortal", args)
        is_up = partial(_is_alive, app)
        with Mortals(tmp_path / "ncr", settings, ["worker", f"--concurrency={SLOTS}"], is_up):
            ended = partial(_ended, client)
            assert eventually(lambda: ended() >= JOBS, 60)
            text = scrape(client)
            assert ended() == figure(text, "ncr_jobs", kind="mortal", state="succeeded") == JOBS
            assert figure(text, "ncr_jobs_ended_total", host=HOST, kind="mortal", state="succeeded", code="") == JOBS
            assert figure(text, "ncr_runs_lost_total", host=HOST, reason="worker_lost") == FATAL
            for stage, completed in (("begin", JOBS), ("end", JOBS)):
                assert figure(text, "ncr_stage_seconds_count", host=HOST, stage=stage) == completed
            assert figure(text, "ncr_job_seconds_count") == figure(text, "ncr_job_peak_bytes_count") == JOBS
            assert figure(text, "ncr_children_started_total") > SLOTS + FATAL
            assert figure(text, "ncr_host_slots", host=HOST) == SLOTS
            assert families(text) <= documented()
        assert figure(scrape(client), "ncr_hosts") == 0, "it has left, and its figures with it"


def _is_alive(app: App) -> bool:
    return bool(app.ledger.hosts.live())


def _ended(client: TestClient) -> float:
    return figure(scrape(client), "ncr_jobs_ended_total", kind="mortal")


def documented() -> set[str]:
    """The first column of the tables."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    return {line.split("`")[1].partition("{")[0] for line in lines if line.startswith("| `ncr_")}


def test_what_the_ledger_says(sqlite_settings: Settings) -> None:
    with serving(sqlite_settings) as (client, app):
        empty = scrape(client)
        assert figure(empty, "ncr_jobs", kind="deliver") == figure(empty, "ncr_hosts") == 0
        assert 'ncr_jobs{kind="deliver",state="failed"} 0.0' in empty, "an alert needs the series before the event"
        submit(client)
        app.ledger.hosts.register(HOST, "life-1", FIGURES)
        Reports(app.database).write(HOST, "# TYPE ncr_runs_lost_total counter\nncr_runs_lost_total 2.0\n")
        text = scrape(client)
        assert figure(text, "ncr_jobs", kind="deliver", state="queued") == 1
        assert figure(text, "ncr_backlog_jobs", kind="deliver", reason="new") == 1
        assert figure(text, "ncr_backlog_need_bytes", kind="deliver") == app.pipeline("deliver").memory
        assert figure(text, "ncr_host_budget_bytes", host=HOST) == FIGURES.budget
        assert figure(text, "ncr_runs_lost_total", host=HOST) == 2
        assert figure(text, "ncr_ledger_up") == figure(text, "ncr_redis_up") == figure(text, "ncr_build_info") == 1
        assert figure(text, "ncr_accepting_jobs", kind="deliver") == 1
        app.pause(Scope.INTAKE, actor="ann")
        text = scrape(client)
        assert (figure(text, "ncr_intake_paused"), figure(text, "ncr_work_paused")) == (1, 0)
        assert figure(text, "ncr_accepting_jobs", kind="deliver") == 0


def test_the_ledger_is_not_asked_at_every_scrape(sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "FRESH", 600.0)
    with serving(sqlite_settings) as (client, _):
        assert figure(scrape(client), "ncr_jobs") == 0
        submit(client)
        text = scrape(client)
        assert figure(text, "ncr_jobs") == 0
        assert figure(text, "ncr_http_requests_total", route="/process-job") == 1, "its own are always new"


def test_without_the_database_it_says_so_and_what_it_knows(valkey: Valkey, tmp_path: Path) -> None:
    nowhere = f"postgresql+psycopg://u:p@127.0.0.1:{free_port()}/x"
    with serving(settings_for(nowhere, valkey.url, tmp_path)) as (client, _):
        assert client.post("/process-job", json=order()).status_code == 503
        text = scrape(client)
        assert 'ncr_http_requests_total{method="POST",route="/process-job",status="503"} 1.0' in text
        assert "ncr_ledger_up 0.0" in text
        assert "ncr_jobs" not in families(text), "no figure is better than a wrong one"


def test_requests_are_counted_by_route_and_not_by_what_clients_invent(sqlite_settings: Settings) -> None:
    with serving(sqlite_settings) as (client, _):
        for number in range(3):
            client.get(f"/job-status/unknown-{number}")
            client.get(f"/nothing/{number}")
        client.post("/process-job", json={"job_id": 1})
        client.request("BREW", "/health/live")
        text = scrape(client)
        count = partial(figure, text, "ncr_http_requests_total")
        assert count(route="/job-status/{task_id}", method="GET", status="404") == 3
        assert count(route="other", method="GET", status="404") == 3
        assert count(route="/process-job", method="POST", status="422") == 1
        assert count(route="/health/live", method="other", status="405") == 1
        assert figure(text, "ncr_http_request_seconds_count", route="/job-status/{task_id}", method="GET") == 3
        assert families(text) <= documented()


class Api(Ncr):
    start_patience = 90.0  # several processes start one after another


@contextmanager
def api(folder: Path, settings: Settings, *more: str) -> Iterator[str]:
    """`ncr api …` in processes of its own; its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with Api(folder, settings, ["api", f"--port={port}", *more], lambda: http_ok(f"{url}/health/ready")):
        yield url


def test_any_of_several_api_processes_answers_for_all(sqlite_settings: Settings, tmp_path: Path) -> None:
    with api(tmp_path / "api", sqlite_settings, "--workers=2") as url:
        for _ in range(30):  # each on a connection of its own: any process may get it
            assert httpx2.get(f"{url}/health/live").status_code == 200
        for _ in range(4):
            text = httpx2.get(f"{url}/metrics").text
            assert figure(text, "ncr_http_requests_total", route="/health/live") == 30
            assert figure(text, "ncr_http_request_seconds_count", route="/health/live") == 30
