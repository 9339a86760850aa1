"""Lists, records, audit trails, cancel and retry through the HTTP interface, on a real ledger of each kind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from engine import pipeline, step, worker_host
from fastapi.testclient import TestClient
from serving import HOST, end, migrated, on_sqlite, order, serving, settings_for, start, status, submit, submit_batch

from ncr_worker import logs
from ncr_worker.job import State
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings

NOBODY = "0b0f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c"


@pytest.fixture
def api_settings(database_url: str, valkey: Valkey, tmp_path: Path) -> Settings:
    return settings_for(migrated(database_url), valkey.url, tmp_path)


@pytest.fixture
def sqlite_settings(valkey: Valkey, tmp_path: Path) -> Settings:
    return on_sqlite(valkey.url, tmp_path)


def page(client: TestClient, route: str = "/jobs", **query: Any) -> dict[str, Any]:
    answer = client.get(route, params=query)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def refs(client: TestClient, **query: Any) -> list[str]:
    return [job["job_id"] for job in page(client, **query)["jobs"]]


# --- lists ----------------------------------------------------------------------------------------------


def test_jobs_are_found_by_what_is_known_of_them(api_settings: Settings) -> None:
    with serving(api_settings) as (client, app):
        batch_id = submit_batch(client, 1, 2, username="bob")
        submit(client, 3)
        rejected = end(app, State.FAILED, "validation_failed")
        failed = end(app, State.FAILED, "source_missing")
        running = start(app).job
        submit(client, 4)

        assert refs(client) == ["job-4", "job-3", "job-2", "job-1"], "the newest first"
        assert refs(client, kind="deliver", user="bob") == ["job-2", "job-1"]
        assert refs(client, batch=batch_id, job_id="job-1") == ["job-1"]
        by_status = {
            word: refs(client, status=word) for word in ("validation_failed", "failed", "processing", "pending")
        }
        assert by_status == {
            "validation_failed": [rejected.ref],
            "failed": [failed.ref],
            "processing": [running.ref],
            "pending": ["job-4"],
        }
        assert refs(client, status="completed") == refs(client, user="nobody") == refs(client, batch="none") == []

        [line] = page(client, status="failed")["jobs"]
        assert (line["error_code"], line["user"], line["batch_id"]) == ("source_missing", "bob", batch_id)
        submitted = {job["job_id"]: job["created_at"] for job in page(client)["jobs"]}
        assert refs(client, since=submitted["job-3"]) == ["job-4", "job-3"], "that very moment counts"
        assert refs(client, since=submitted["job-3"], until=submitted["job-4"]) == ["job-3"]


def test_pages_have_every_job_once_while_new_ones_arrive(api_settings: Settings) -> None:
    with serving(api_settings) as (client, _):
        submit_batch(client, *range(7))
        seen: list[str] = []
        cursor: dict[str, str] = {}
        for late in range(100, 104):
            found = page(client, limit=2, **cursor)
            seen += [job["job_id"] for job in found["jobs"]]
            submit(client, late)
            cursor = {"cursor": found["next_cursor"]}
        assert cursor == {"cursor": None}, "the last page says so"
        assert seen == [f"job-{number}" for number in reversed(range(7))]


def test_batches_are_listed_in_pages(api_settings: Settings) -> None:
    with serving(api_settings) as (client, app):
        first, second = submit_batch(client, 1), submit_batch(client, 2, 3, username="bob")
        end(app, State.SUCCEEDED)
        newest = page(client, "/batches", limit=1)
        [line] = newest["batches"]
        assert (line["batch_id"], line["user"], line["total_jobs"]) == (second, "bob", 2)
        assert (line["status"], line["counts"]) == ("pending", {"queued": 2})
        submit_batch(client, 4)
        rest = page(client, "/batches", cursor=newest["next_cursor"])
        assert [(line["batch_id"], line["status"]) for line in rest["batches"]] == [(first, "completed")]
        assert rest["next_cursor"] is None
        assert [line["batch_id"] for line in page(client, "/batches", user="bob")["batches"]] == [second]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"kind": "delivery"}, "unknown_kind"),
        ({"status": "sleeping"}, "unknown_status"),
        ({"cursor": "x1"}, "invalid_cursor"),
        ({"cursor": "9" * 30}, "invalid_cursor"),
        ({"limit": 0}, "invalid_request"),
        ({"limit": 1001}, "invalid_request"),
        ({"since": "2026-11-22T09:30:00"}, "invalid_request"),
        ({"until": "yesterday"}, "invalid_request"),
        ({"until": "1763803800"}, "invalid_request"),
        ({"user": "a\0b"}, "invalid_request"),
        ({"user": ""}, "invalid_request"),
        ({"statuss": "failed"}, "invalid_request"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(sqlite_settings: Settings, query: dict[str, Any], code: str) -> None:
    with serving(sqlite_settings) as (client, _):
        answer = client.get("/jobs", params=query)
        assert (answer.status_code, answer.json()["code"]) == (422, code)
        assert (
            next(iter(query)) in answer.json()["detail"] or str(next(iter(query.values()))) in answer.json()["detail"]
        )


def test_a_cursor_of_no_batch_is_refused(sqlite_settings: Settings) -> None:
    with serving(sqlite_settings) as (client, _):
        answer = client.get("/batches", params={"cursor": NOBODY})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_cursor")


# --- one job --------------------------------------------------------------------------------------------


def test_the_record_has_all_that_is_known_and_links_to_the_rest(api_settings: Settings) -> None:
    with serving(api_settings) as (client, app):
        task_id = client.post("/process-job", json=order(1), headers={"X-Request-ID": "r-1"}).json()["task_id"]
        record = client.get(f"/jobs/{task_id}").json()
        assert record.keys() > status(client, task_id).keys()
        assert (record["user"], record["state"], record["round"], record["request_id"]) == ("ann", "queued", 1, "r-1")
        assert record["args"] == order(1, row_id=None)
        assert record["need_bytes"] > record["reserved_bytes"] == 0
        job = start(app).job
        assert job.log_context()["request_id"] == "r-1", "as the logs of its stages will have it"

        early = client.get(record["links"]["receipt"])
        assert (early.status_code, early.json()["code"]) == (409, "not_finished")
        assert int(early.headers["Retry-After"]) >= 1
        app.ledger.work.finish(job, State.SUCCEEDED, result={"verdict": {"result": "Valid", "answer": {"a": 1}}})
        receipt = client.get(record["links"]["receipt"])
        assert (receipt.status_code, receipt.json()["verdict"]["answer"]) == (200, {"a": 1})
        audit = client.get(record["links"]["audit"]).json()
        assert [(event["state"], event["actor"]) for event in audit["events"]] == [
            ("queued", "api"),
            ("dispatched", "feeder"),
            ("running", "runner"),
            ("succeeded", "runner"),
        ]
        assert audit["events"][1]["reason"] == HOST
        ids = [event["id"] for event in audit["events"]]
        assert ids == sorted(set(ids))


@pytest.mark.parametrize("receipt", [{"total_files": "many", "paid": 3}, ["a", "b"], "paid", 17])
def test_what_an_own_kind_of_job_calls_a_receipt_is_its_result(sqlite_settings: Settings, receipt: Any) -> None:
    with serving(sqlite_settings) as (client, app):
        task_id = submit(client)
        result = {"args": {}, "receipt": receipt, "verdict": "fine"}
        app.ledger.work.finish(start(app).job, State.SUCCEEDED, result=result)
        assert status(client, task_id)["progress"]["total_files"] == 0
        assert client.get(f"/jobs/{task_id}").json()["result"] == {"receipt": receipt, "verdict": "fine"}
        kept = client.get(f"/jobs/{task_id}/receipt")
        assert (kept.status_code, kept.json()["receipt"], kept.json()["verdict"]) == (200, None, None)


def test_numbers_that_json_does_not_have_are_null(api_settings: Settings) -> None:
    with serving(api_settings) as (client, app):
        task_id = submit(client)
        figures = {"mean": math.nan, "spread": [math.inf, 1.5]}
        app.ledger.work.finish(start(app).job, State.SUCCEEDED, result=figures)
        assert client.get(f"/jobs/{task_id}").json()["result"] == {"mean": None, "spread": [None, 1.5]}


def test_the_logs_of_a_jobs_stages_have_the_id_of_its_request(tmp_path: Path) -> None:
    seen: list[str | None] = []
    with worker_host(tmp_path) as host:
        host.submit(request_id="r-1")
        host.run(pipeline(step("look", lambda _run, _parcel: seen.append(logs.request_id()))))
    assert seen == ["r-1"]


@pytest.mark.parametrize("path", ["", "/audit", "/receipt", "/events"])
@pytest.mark.parametrize("task_id", [NOBODY, "17"])
def test_an_unknown_job_is_not_found(sqlite_settings: Settings, task_id: str, path: str) -> None:
    with serving(sqlite_settings) as (client, _):
        answer = client.get(f"/jobs/{task_id}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_when_it_hears_of_it(api_settings: Settings) -> None:
    with serving(api_settings) as (client, app):
        running = submit(client, 1)
        job = start(app).job
        waiting = submit(client, 2)
        at_once = client.post(f"/jobs/{waiting}/cancel")
        assert (at_once.status_code, at_once.json()["status"]) == (202, "cancelled")
        asked = client.post(f"/jobs/{running}/cancel")
        assert (asked.status_code, asked.json()["state"], asked.json()["message"]) == (
            202,
            "cancelling",
            "was asked to stop",
        )
        assert client.post(f"/jobs/{running}/cancel").status_code == 202, "asking again does no harm"
        app.ledger.work.finish(job, State.CANCELLED, error_code="cancelled", error="cancelled on request")
        late = client.post(f"/jobs/{running}/cancel")
        assert (late.status_code, late.json()["code"]) == (409, "already_ended")
        assert client.post(f"/jobs/{NOBODY}/cancel").status_code == 404


def test_a_job_that_failed_has_a_new_round(api_settings: Settings) -> None:
    with serving(api_settings) as (client, app):
        task_id = submit(client)
        early = client.post(f"/jobs/{task_id}/retry")
        assert (early.status_code, early.json()["code"]) == (409, "not_retryable")
        end(app, State.FAILED, "source_missing")
        again = client.post(f"/jobs/{task_id}/retry")
        assert (again.status_code, again.json()["status"], again.json()["round"]) == (202, "pending", 2)
        assert (again.json()["error"], again.json()["attempt"]) == (None, 0)
        assert end(app, State.FAILED, "source_missing").id == task_id
        submit(client)  # the same target, anew
        taken = client.post(f"/jobs/{task_id}/retry")
        assert (taken.status_code, taken.json()["code"]) == (409, "already_active")
        assert client.post(f"/jobs/{NOBODY}/retry").status_code == 404


# --- batches --------------------------------------------------------------------------------------------


def test_a_batch_is_cancelled_as_far_as_it_has_not_ended(api_settings: Settings) -> None:
    with serving(api_settings) as (client, app):
        batch_id = submit_batch(client, 1, 2, 3)
        done = end(app, State.SUCCEEDED)
        running = start(app).job
        answer = client.post(f"/batches/{batch_id}/cancel")
        tasks = {job["job_id"]: job["task_id"] for job in client.get(f"/batch-status/{batch_id}").json()["jobs"]}
        assert answer.status_code == 202
        assert answer.json() == {"batch_id": batch_id, "cancelled": [tasks["job-2"], tasks["job-3"]]}
        assert (done.id, running.id) == (tasks["job-1"], tasks["job-2"])
        app.ledger.work.finish(running, State.CANCELLED, error_code="cancelled", error="cancelled on request")
        assert client.get(f"/batch-status/{batch_id}").json()["counts"] == {"completed": 1, "cancelled": 2}
        assert client.post(f"/batches/{batch_id}/cancel").json()["cancelled"] == []
        assert client.post(f"/batches/{NOBODY}/cancel").status_code == 404


def test_only_the_failed_jobs_of_a_batch_are_retried_and_the_others_have_a_reason(api_settings: Settings) -> None:
    with serving(api_settings) as (client, app):
        batch_id = submit_batch(client, 1, 2, 3)
        end(app, State.SUCCEEDED)
        failed, taken = end(app, State.FAILED, "source_missing"), end(app, State.FAILED, "source_missing")
        newer = submit(client, 3)
        answer = client.post(f"/batches/{batch_id}/retry")
        assert (answer.status_code, answer.json()["retried"]) == (202, [failed.id])
        assert answer.json()["refused"].keys() == {taken.id}
        assert newer in answer.json()["refused"][taken.id]
        assert client.get(f"/batch-status/{batch_id}").json()["counts"] == {"completed": 1, "pending": 1, "failed": 1}
        assert client.post(f"/batches/{NOBODY}/retry").status_code == 404
