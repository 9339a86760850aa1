"""A client that does not know whether its submit arrived sends it again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving import migrated, on_sqlite, order, serving, settings_for

from ncr_worker.app import App
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings

KEY = {"Idempotency-Key": "k 1/~"}


@pytest.fixture
def api_settings(database_url: str, valkey: Valkey, tmp_path: Path) -> Settings:
    return settings_for(migrated(database_url), valkey.url, tmp_path)


@pytest.fixture
def sqlite_settings(valkey: Valkey, tmp_path: Path) -> Settings:
    return on_sqlite(valkey.url, tmp_path)


def jobs_of(client: TestClient) -> list[str]:
    return [job["task_id"] for job in client.get("/jobs").json()["jobs"]]


@pytest.mark.parametrize(
    ("route", "body"), [("/process-job", order(1)), ("/process-batch", [order(n) for n in (3, 1, 2)])]
)
def test_the_same_submit_again_has_the_first_answer_and_stores_nothing(
    api_settings: Settings, route: str, body: Any
) -> None:
    with serving(api_settings) as (client, _):
        first = client.post(route, json=body, headers=KEY)
        stored = jobs_of(client)
        again = client.post(route, json=body, headers=KEY)
        assert (again.status_code, again.json()) == (202, first.json())
        assert again.headers["Location"] == first.headers["Location"]
        assert "Idempotency-Replayed" not in first.headers
        assert again.headers["Idempotency-Replayed"] == "true"
        assert jobs_of(client) == stored

    with serving(api_settings) as (client, _):
        assert client.post(route, json=body, headers=KEY).json() == first.json(), "by another process too"


@pytest.mark.parametrize(("route", "body"), [("/process-job", order(2)), ("/process-batch", [order(1)])])
def test_a_key_is_for_one_request_only(sqlite_settings: Settings, route: str, body: Any) -> None:
    with serving(sqlite_settings) as (client, _):
        client.post("/process-job", json=order(1), headers=KEY)
        other = client.post(route, json=body, headers=KEY)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        assert len(jobs_of(client)) == 1


def test_the_order_of_fields_makes_no_other_request(sqlite_settings: Settings) -> None:
    with serving(sqlite_settings) as (client, _):
        first = client.post("/process-job", json=order(1), headers=KEY)
        again = client.post("/process-job", json=dict(reversed(order(1, row_id=None).items())), headers=KEY)
        assert again.json() == first.json()


def test_a_refused_submit_does_not_use_up_its_key(sqlite_settings: Settings) -> None:
    with serving(sqlite_settings) as (client, _):
        client.post("/pause", json={"scope": "intake"})
        assert client.post("/process-job", json=order(1), headers=KEY).status_code == 503
        client.post("/resume", json={"scope": "intake"})
        later = client.post("/process-job", json=order(1), headers=KEY)
        assert (later.status_code, later.headers.get("Idempotency-Replayed")) == (202, None)


def test_what_was_stored_is_answered_also_while_nothing_is_taken_in(sqlite_settings: Settings) -> None:
    with serving(sqlite_settings) as (client, _):
        first = client.post("/process-job", json=order(1), headers=KEY)
        client.post("/pause", json={"scope": "intake"})
        assert client.post("/process-job", json=order(1), headers=KEY).json() == first.json()


@pytest.mark.parametrize("key", [b"", b"x" * 201, "schlüssel".encode(), b"tab\tin"])
def test_a_key_is_short_printable_ascii(sqlite_settings: Settings, key: bytes) -> None:
    with serving(sqlite_settings) as (client, _):
        answer = client.post("/process-job", json=order(1), headers={b"Idempotency-Key": key})
        [error] = answer.json()["errors"]
        assert (answer.status_code, error["place"], error["field"]) == (422, "header", "Idempotency-Key")
        longest = client.post("/process-job", json=order(1), headers={"Idempotency-Key": "x" * 200})
        assert longest.status_code == 202


def test_while_the_first_is_not_answered_the_second_is_told_to_wait(sqlite_settings: Settings) -> None:
    with serving(sqlite_settings) as (client, app), ThreadPoolExecutor(1) as others:
        inside, go_on = threading.Event(), threading.Event()
        _hold_up(app, inside, go_on)
        first = others.submit(client.post, "/process-job", json=order(1), headers=KEY)
        assert inside.wait(20)
        try:
            early = client.post("/process-job", json=order(1), headers=KEY)
        finally:
            go_on.set()
        assert (early.status_code, early.json()["code"], early.headers["Retry-After"]) == (409, "in_flight", "1")
        assert first.result().status_code == 202
        assert client.post("/process-job", json=order(1), headers=KEY).json() == first.result().json()


def _hold_up(app: App, inside: threading.Event, go_on: threading.Event) -> None:
    """The next submit waits at its admission."""
    judge: Callable[..., Any] = app.admission.judge

    def held_up(*args: Any) -> Any:
        inside.set()
        assert go_on.wait(20)
        return judge(*args)

    app.admission.judge = held_up  # type: ignore[method-assign, assignment]


def test_of_many_at_once_in_two_processes_one_is_stored_and_all_hear_of_it(api_settings: Settings) -> None:
    """Two applications on one database stand for two processes."""
    with serving(api_settings) as (one, _), serving(api_settings) as (two, _), ThreadPoolExecutor(8) as threads:
        for client in (one, two):  # FastAPI completes its routes at the first request, and not for two at once
            assert client.get("/health/live").status_code == 200
        barrier = threading.Barrier(8)

        def submit(client: TestClient) -> Any:
            barrier.wait(20)
            return client.post("/process-job", json=order(1), headers=KEY)

        answers = [each.result() for each in [threads.submit(submit, (one, two)[n % 2]) for n in range(8)]]
        assert {answer.status_code for answer in answers} <= {202, 409}
        assert {answer.json()["code"] for answer in answers if answer.status_code == 409} <= {"in_flight"}
        taken = {answer.json()["task_id"] for answer in answers if answer.status_code == 202}
        assert [*taken] == jobs_of(one)
