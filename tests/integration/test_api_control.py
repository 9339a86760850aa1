"""What operators may stop, and what the intake refuses by itself."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from serving import end, migrated, on_sqlite, order, serving, settings_for, start, status, submit, submit_batch

from ncr_worker.job import State
from ncr_worker.ledger import Offer
from ncr_worker.pipeline import GIB
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings


@pytest.fixture
def api_settings(database_url: str, valkey: Valkey, tmp_path: Path) -> Settings:
    return settings_for(migrated(database_url), valkey.url, tmp_path)


def test_while_the_intake_is_paused_jobs_are_refused_with_the_reason(
    api_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ncr_worker")
    with serving(api_settings) as (client, app):
        taken = submit(client)
        paused = client.post("/pause", json={"scope": "intake", "note": "moving the bucket"})
        [line] = paused.json()["pauses"]
        assert (paused.status_code, line["scope"], line["actor"], line["note"]) == (
            200,
            "intake",
            "api",
            "moving the bucket",
        )
        assert client.get("/pauses").json() == paused.json()
        for answer in (client.post("/process-job", json=order(2)), client.post("/process-batch", json=[order(2)])):
            assert (answer.status_code, answer.json()["code"]) == (503, "intake_paused")
            assert "moving the bucket" in answer.json()["detail"]
            assert int(answer.headers["Retry-After"]) >= 1
        memory = client.get("/memory-stats").json()
        assert (memory["accepting_jobs"], "moving the bucket" in memory["reason"]) == (False, True)
        assert start(app).job.id == taken, "what was taken in is worked on"
        assert client.post("/resume", json={"scope": "intake"}).json() == {"pauses": []}
        assert "intake is resumed by api" in caplog.text
        assert client.post("/resume", json={"scope": "intake"}).status_code == 200, "again does no harm"
        submit(client, 2)


def test_while_work_is_paused_jobs_wait_and_say_why(api_settings: Settings) -> None:
    with serving(api_settings) as (client, app):
        client.post("/pause", json={"scope": "work", "note": "first"})
        client.post("/pause", json={"scope": "work", "note": "night"})
        task_id = submit(client)
        assert app.ledger.queue.pick(Offer("h1", 1, 4 * GIB, True, 8 * GIB)) == []
        waiting = status(client, task_id)
        assert (waiting["status"], waiting["reason"]) == ("pending", "paused")
        assert "night" in waiting["message"]
        client.post("/resume", json={"scope": "work"})
        assert start(app).job.id == task_id


def test_a_new_round_is_admitted_as_a_new_job_is(valkey: Valkey, tmp_path: Path) -> None:
    with serving(on_sqlite(valkey.url, tmp_path, max_backlog=2)) as (client, app):
        batch_id = submit_batch(client, 1, 2)
        failed = [end(app, State.FAILED, "source_missing").id for _ in range(2)]
        orders = [f"/jobs/{failed[0]}/retry", f"/batches/{batch_id}/retry"]
        client.post("/pause", json={"scope": "intake"})
        for path in orders:
            refused = client.post(path)
            assert (refused.status_code, refused.json()["code"]) == (503, "intake_paused")
            assert int(refused.headers["Retry-After"]) >= 1
        client.post("/resume", json={"scope": "intake"})
        submit(client, 3)
        assert client.post(orders[0]).status_code == 202
        full = client.post(orders[1])
        assert (full.status_code, full.json()["code"]) == (503, "backlog_full")
        assert [status(client, job_id)["status"] for job_id in failed] == ["pending", "failed"]


def test_no_more_jobs_wait_than_may(valkey: Valkey, tmp_path: Path) -> None:
    with serving(on_sqlite(valkey.url, tmp_path, max_backlog=3)) as (client, app):
        submit_batch(client, 1, 2)
        app.admission.forget()
        many = client.post("/process-batch", json=[order(3), order(4)])
        assert (many.status_code, many.json()["code"]) == (503, "backlog_full")
        assert "MAX_BACKLOG" in many.json()["detail"]
        assert int(many.headers["Retry-After"]) >= 1
        submit(client, 3)
        assert client.get("/memory-stats").json()["accepting_jobs"] is False
        assert client.post("/process-job", json=order(4)).status_code == 503
        start(app)
        app.admission.forget()
        submit(client, 4)


@pytest.mark.parametrize(
    "body", [{}, {"scope": "all"}, {"scope": "work", "note": "x" * 401}, {"scope": "work", "note": "a\0b"}, {"x": 1}]
)
def test_an_order_that_means_nothing_is_refused(body: object, valkey: Valkey, tmp_path: Path) -> None:
    with serving(on_sqlite(valkey.url, tmp_path)) as (client, _):
        answer = client.post("/pause", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
        assert client.get("/pauses").json() == {"pauses": []}


def test_a_body_above_the_limit_is_refused(valkey: Valkey, tmp_path: Path) -> None:
    with serving(on_sqlite(valkey.url, tmp_path, max_body_bytes=100)) as (client, _):
        answer = client.post("/process-batch", json=[order(1), order(2)])
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
        assert client.get("/jobs").json()["jobs"] == []
