"""A job followed through server-sent events, over a real connection."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fastapi.routing
import pytest
from following import Event, following
from serving import listening, on_sqlite, serving, show, start, submit

from ncr_worker.api import events
from ncr_worker.app import App
from ncr_worker.job import State
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings
from ncr_worker.sql import DatabaseAway

MANY = 60
"""More than there are threads for requests."""


@pytest.fixture
def sqlite_settings(valkey: Valkey, tmp_path: Path) -> Settings:
    return on_sqlite(valkey.url, tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "EVERY", 0.05)


def states(seen: list[Event]) -> list[tuple[str, str | None]]:
    return [(event.data["state"], event.data["stage"]) for event in seen if event.name == "state"]


def finish(app: App, job: Any) -> None:
    app.ledger.work.finish(job, State.SUCCEEDED, result={})


def test_a_job_is_followed_from_its_submit_to_its_end(sqlite_settings: Settings) -> None:
    with listening(sqlite_settings) as (client, app):
        task_id = submit(client)
        with following(client, task_id) as stream:
            assert stream.answer.headers["content-type"].startswith("text/event-stream")
            seen = stream.until("progress", status="pending")
            job = start(app).job
            seen += stream.until("progress", status="processing")
            app.ledger.work.enter(job, "upload")
            seen += stream.until("progress", status="uploading")
            show(app, job.evolve(stage="upload"), percentage=90.0, files=2, total_files=4)
            live = stream.until("progress")[-1]
            finish(app, job)
            seen += stream.until("end")
            assert list(stream) == [], "nothing follows"
        assert live.data["progress"]["processed_files"] == 2
        assert states(seen) == [
            ("queued", None),
            ("dispatched", None),
            ("running", "plan"),
            ("running", "upload"),
            ("succeeded", "upload"),
        ]
        audit = client.get(f"/jobs/{task_id}/audit").json()["events"]
        assert [event.data for event in seen if event.name == "state"] == audit
        assert [event.id for event in seen if event.name == "state"] == [event["id"] for event in audit]
        assert {event.id for event in seen if event.name != "state"} == {None}
        assert (seen[-1].data["status"], seen[-1].data["progress"]["percentage"]) == ("completed", 100.0)


def test_who_comes_back_goes_on_behind_the_last_event(sqlite_settings: Settings) -> None:
    with listening(sqlite_settings) as (client, app):
        task_id = submit(client)
        with following(client, task_id) as stream:
            last = stream.until("progress")[0]
        finish(app, start(app).job)
        with following(client, task_id, **{"Last-Event-ID": str(last.id)}) as stream:
            seen = stream.until("end")
        assert [state for state, _ in states(seen)] == ["dispatched", "running", "succeeded"]
        with following(client, task_id, **{"Last-Event-ID": str(seen[2].id)}) as stream:
            assert [event.name for event in stream] == ["progress", "end"], "of a job that has ended: how it ended"


def test_many_watchers_leave_room_for_requests(sqlite_settings: Settings) -> None:
    with listening(sqlite_settings) as (client, app), ExitStack() as stack:
        task_id = submit(client)
        streams = [stack.enter_context(following(client, task_id)) for _ in range(MANY)]
        for stream in streams:
            stream.until("progress", status="pending")
        assert client.get(f"/job-status/{task_id}").status_code == 200
        finish(app, start(app).job)
        for stream in streams:
            assert [state for state, _ in states(stream.until("end"))] == ["dispatched", "running", "succeeded"]


def test_a_client_that_goes_away_is_not_served_any_longer(sqlite_settings: Settings) -> None:
    """The server waits for everybody whom it serves: that it stops shows that nobody is left."""
    with listening(sqlite_settings) as (client, _), following(client, submit(client)) as stream:
        stream.until("progress")


def test_a_comment_shows_that_the_line_works(sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastapi.routing._PING_INTERVAL == 15.0  # type: ignore[attr-defined]
    monkeypatch.setattr(fastapi.routing, "_PING_INTERVAL", 0.05)
    with listening(sqlite_settings) as (client, _), following(client, submit(client)) as stream:
        stream.until("progress")
        assert next(event.comment for event in stream if event.comment) == "ping"


def test_a_database_that_is_away_is_waited_for(sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(sqlite_settings) as (client, app):
        task_id = submit(client)
        with following(client, task_id) as stream:
            stream.until("progress")
            with monkeypatch.context() as outage:

                def away(_task_id: str) -> Any:
                    raise DatabaseAway("gone")

                outage.setattr(app.look, "status", away)
                assert next(event.comment for event in stream if event.comment) == "the database is away"
            finish(app, start(app).job)
            assert [state for state, _ in states(stream.until("end"))] == ["dispatched", "running", "succeeded"]


@pytest.mark.parametrize("given", ["x", "-1", "1.5", str(2**63)])
def test_a_last_event_that_is_none_is_refused(sqlite_settings: Settings, given: str) -> None:
    with serving(sqlite_settings) as (client, _):
        answer = client.get(f"/jobs/{submit(client)}/events", headers={"Last-Event-ID": given})
        [error] = answer.json()["errors"]
        assert (answer.status_code, error["field"]) == (422, "Last-Event-ID")
