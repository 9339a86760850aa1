"""What is told of memory: live figures through Redis, over HTTP, with the command `ncr memory`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from commands import Ncr
from engine import WorkerHost, eventually, host_settings, nobody, started
from fastapi.testclient import TestClient
from ledgers import opened
from serving import FIGURES, HOST, on_sqlite, serving, start, submit, submit_batch

from ncr_worker.app import App
from ncr_worker.board import Board
from ncr_worker.job import NewJob, Reason, State
from ncr_worker.ledger import HostFigures, Offer
from ncr_worker.ledger.observations import Seen, note
from ncr_worker.memory.live import LiveMemory, Snapshot, Use
from ncr_worker.pipeline import GIB, MIB
from ncr_worker.pipelines.deliver import PIPELINE
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.worker.memory import showing_memory, snapshot

NOBODY = "0b0f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c"


def load(**changes: Any) -> Snapshot:
    usual: dict[str, Any] = {"at": time.time(), "limit": 8 * GIB, "budget": 5 * GIB, "others": GIB, "running": 1}
    usual |= {"reserved": 96 * MIB, "observed": 40 * MIB, "swap": 0, "pressure": 1.5}
    return Snapshot(**usual | changes)


@pytest.fixture
def live(valkey: Valkey) -> Iterator[LiveMemory]:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    board = Board(valkey.url)
    yield LiveMemory(board)
    board.close()


@pytest.fixture
def served(live: LiveMemory, valkey: Valkey, tmp_path: Path) -> Iterator[tuple[TestClient, App]]:
    with serving(on_sqlite(valkey.url, tmp_path)) as (client, app):
        app.ledger.hosts.register(HOST, "life-1", FIGURES)
        yield client, app


def took(app: App, seconds: float, *, peak: int = 100 * MIB, runs: int = 3) -> None:
    """So long earlier deliveries took."""
    seen = [Seen("deliver", PIPELINE.version, None, None, None, peak + n, seconds) for n in range(runs)]
    app.database.transact(lambda connection: note(connection, seen))
    app.admission.forget()


# --- live, through Redis -------------------------------------------------------------------------------
def test_what_a_host_shows_comes_back_and_fades(live: LiveMemory, valkey: Valkey) -> None:
    shown = load(jobs=[Use(job_id="a", reserved=96 * MIB, observed=40 * MIB, peak=50 * MIB)])
    live.show("h1", shown, keep=False)
    assert live.now(["h1", "h2"]) == {"h1": shown}
    assert (live.now([]), live.hour("h1")) == ({}, [])
    with redis.Redis.from_url(valkey.url) as client:
        assert 0 < client.ttl("host:h1:memory") <= 15


def test_an_hour_is_kept_and_no_more(live: LiveMemory, valkey: Valkey) -> None:
    for second in range(800):
        live.show("h1", load(at=float(second)), keep=True)
    hour = live.hour("h1")
    assert [sample.at for sample in hour] == [float(second) for second in range(80, 800)]
    assert not hasattr(hour[0], "jobs")
    with redis.Redis.from_url(valkey.url) as client:
        assert 3500 < client.ttl("host:h1:memory:hour") <= 3600


def test_what_another_version_wrote_is_passed_over(live: LiveMemory, valkey: Valkey) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.set("host:h1:memory", '{"at": 1}')
        client.rpush("host:h1:memory:hour", "[]")
    live.show("h1", load(at=2.0), keep=True)
    assert [sample.at for sample in live.hour("h1")] == [2.0]


def test_without_redis_there_is_nothing_to_see(live: LiveMemory, valkey: Valkey) -> None:
    live.show("h1", load(), keep=True)
    valkey.kill()
    try:
        live.show("h1", load(), keep=True)
        assert (live.now(["h1"]), live.hour("h1")) == ({}, [])
    finally:
        valkey.start()


def test_a_worker_shows_its_host_and_each_job(live: LiveMemory, valkey: Valkey, tmp_path: Path) -> None:
    settings = host_settings(tmp_path, redis_url=valkey.url)
    with opened(settings.ledger_url) as database:
        host = WorkerHost(settings, database)
        feeder = started(host, nobody)
        job_id = host.submit(need=70 * MIB)
        feeder.round()
        shown = snapshot(feeder)
        assert [(use.job_id, use.reserved) for use in shown.jobs] == [(job_id, 70 * MIB)]
        assert (shown.limit, shown.running, shown.reserved) == (1000 * MIB, 1, 70 * MIB)
        with showing_memory(host.board, feeder):
            assert eventually(lambda: bool(live.hour("h1")))
            assert [use.job_id for use in live.now(["h1"])["h1"].jobs] == [job_id]
        host.board.close()


# --- over HTTP -----------------------------------------------------------------------------------------
def test_the_figures_of_now_are_shown_before_those_of_the_heartbeat(served: Any, live: LiveMemory) -> None:
    client, app = served
    submit(client)
    job = start(app).job
    [before] = client.get("/memory-stats").json()["hosts"]
    assert (before["budget_bytes"], before["observed_bytes"], before["pressure_percent"]) == (4 * GIB, 0, None)
    assert before["jobs"][0]["observed_bytes"] is None
    use = Use(job_id=job.id, reserved=90 * MIB, observed=40 * MIB, peak=50 * MIB)
    live.show(HOST, load(jobs=[use]), keep=False)
    [now] = client.get("/memory-stats").json()["hosts"]
    assert (now["budget_bytes"], now["observed_bytes"], now["pressure_percent"]) == (5 * GIB, 40 * MIB, 1.5)
    assert now["jobs"] == [
        {
            "task_id": job.id,
            "job_id": "job-1",
            "kind": "deliver",
            "stage": "plan",
            "predicted_bytes": PIPELINE.memory,
            "reserved_bytes": 90 * MIB,
            "observed_bytes": 40 * MIB,
            "peak_bytes": 50 * MIB,
        }
    ]


def test_the_last_hour_of_a_host(served: Any, live: LiveMemory) -> None:
    client, _ = served
    assert client.get(f"/hosts/{HOST}/memory").json()["samples"] == []
    live.show(HOST, load(), keep=True)
    found = client.get(f"/hosts/{HOST}/memory").json()
    [sample] = found["samples"]
    assert (found["every_seconds"], sample["limit_bytes"], sample["used_bytes"]) == (5.0, 8 * GIB, GIB)
    assert datetime.fromisoformat(sample["at"]).utcoffset() is not None
    unknown = client.get("/hosts/h9/memory")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    assert client.get("/hosts/a%00/memory").status_code == 422


def test_a_record_keeps_what_was_predicted_granted_and_measured(served: Any) -> None:
    client, app = served
    task_id = submit(client)
    job = start(app).job
    app.ledger.work.finish(job, State.SUCCEEDED, peak=77 * MIB)
    record = client.get(f"/jobs/{task_id}").json()
    assert (record["predicted_bytes"], record["reserved_bytes"]) == (PIPELINE.memory, PIPELINE.memory)
    assert record["peak_bytes"] == 77 * MIB


def test_who_waits_is_told_for_what(served: Any) -> None:
    client, app = served
    took(app, 40)
    submit(client, 1)
    first = start(app).job
    waiting = submit(client, 2)
    app.ledger.hosts.register(HOST, "life-1", HostFigures(GIB, "host", 100 * MIB, GIB - 100 * MIB, 0, 4, 1))
    assert app.ledger.queue.pick(Offer(HOST, 1, MIB, False, 8 * GIB)) == []
    found = client.get(f"/jobs/{waiting}/explain").json()
    assert [reason["code"] for reason in found["reasons"]] == ["no_memory"]
    assert [one["task_id"] for one in found["hosts"][0]["must_end"]] == [first.id]
    assert 30 < found["starts_in_seconds"] <= 40
    assert (found["memory"]["runs"], found["memory"]["usual_peak_bytes"]) == (3, 100 * MIB + 1)
    running = client.get(f"/jobs/{first.id}/explain").json()
    assert (running["waits"], running["reasons"][0]["code"]) == (False, "running")
    assert client.get(f"/jobs/{NOBODY}/explain").status_code == 404


def test_a_pause_a_retry_and_a_full_batch_are_reasons(served: Any) -> None:
    client, app = served
    batch = submit_batch(client, *range(7))
    for _ in range(5):
        start(app)
    waiting = [job.id for job in app.history.lines_of(batch) if job.state is State.QUEUED]
    assert codes(client, waiting[0])[0] == "batch_full"
    assert codes(client, waiting[1]) == ["batch_full", "no_slot", "turn"]
    retried = app.ledger.reads.job(app.history.lines_of(batch)[0].id)
    app.ledger.work.give_back(retried, reason=Reason.RETRY, retry_in=30, counted=True, error_code="x", error="cut off")
    [reason, *_] = client.get(f"/jobs/{retried.id}/explain").json()["reasons"]
    assert reason["code"] == "retry"
    assert "due in 30 s: cut off" in reason["text"]
    client.post("/pause", json={"scope": "work", "note": "night"})
    assert codes(client, waiting[0])[0] == "paused"


def codes(client: TestClient, task_id: str) -> list[str]:
    return [reason["code"] for reason in client.get(f"/jobs/{task_id}/explain").json()["reasons"]]


def test_admission_is_explained_for_a_kind_a_need_and_a_user(served: Any) -> None:
    client, app = served
    took(app, 10)
    submit(client)
    found = client.get("/admission/explain").json()
    assert (found["accepting_jobs"], found["code"], found["retry_after_seconds"]) == (True, None, None)
    assert (found["kind"], found["user"], found["run_seconds"]) == ("deliver", None, 10)
    assert found["wait_seconds"] == found["drain_seconds"] == pytest.approx(10 / 4)
    assert found["hosts"][0]["fits"] == "now"
    never = client.get("/admission/explain", params={"need": 9 * GIB}).json()
    assert (never["accepting_jobs"], never["code"], never["hosts"][0]["fits"]) == (False, "never_fits", "never")
    assert never["retry_after_seconds"] is None
    assert client.get("/admission/explain", params={"user": "bob"}).json()["wait_seconds"] == 0
    assert client.get("/admission/explain", params={"kind": "none"}).status_code == 404
    assert client.get("/admission/explain", params={"need": -1}).status_code == 422


def test_a_user_who_has_too_much_waiting_is_told_when_to_come_back(valkey: Valkey, tmp_path: Path) -> None:
    with serving(on_sqlite(valkey.url, tmp_path, admission_max_wait=100)) as (client, app):
        app.ledger.hosts.register(HOST, "life-1", FIGURES)
        took(app, 60)
        submit_batch(client, *range(8))  # 8 x 60 s in 4 slots: 120 s
        app.admission.forget()
        refused = client.post("/process-job", json={"job_id": "x", "username": "ann", "campaign": "c"})
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers["Retry-After"] == "40"
        why = client.get("/admission/explain", params={"user": "ann"}).json()
        assert (why["code"], why["retry_after_seconds"], why["reason"]) == ("overloaded", 40, refused.json()["detail"])
        assert client.get("/memory-stats").json()["accepting_jobs"] is False
        assert 'ncr_accepting_jobs{kind="deliver"} 0.0' in client.get("/metrics").text
        bob = client.post("/process-job", json={"job_id": "x", "username": "bob", "campaign": "c"})
        assert bob.status_code == 202
        assert client.get("/batch-status/" + submit_batch(client, 20, username="eve")).json()["total_jobs"] == 1


# --- on the command line -------------------------------------------------------------------------------
@pytest.fixture
def ncr(
    live: LiveMemory,
    valkey: Valkey,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Ncr:
    return Ncr(on_sqlite(valkey.url, tmp_path), tmp_path, monkeypatch, capsys)


@pytest.fixture
def app(ncr: Ncr) -> Iterator[App]:
    app = App(ncr.settings)
    yield app
    app.close()


def test_the_memory_of_hosts_as_bars(ncr: Ncr, app: App, live: LiveMemory) -> None:
    app.ledger.hosts.register(HOST, "life-1", FIGURES)
    ncr("submit", "4711", "--user", "ann", "--campaign", "spring")
    job = start(app).job
    use = Use(job_id=job.id, reserved=2 * GIB, observed=GIB, peak=GIB)
    live.show(HOST, load(others=GIB, observed=GIB, reserved=2 * GIB, budget=6 * GIB, jobs=[use]), keep=False)
    answer = ncr("memory")
    assert answer.code == 0
    [bar] = [line for line in answer.text.splitlines() if line.endswith("│")]
    assert [bar.count(char) for char in "▓█▒·│"] == [8, 7, 7, 30, 1], "of 60, which are 8 GiB"
    assert f"{HOST}  up  1 of 4 slots taken" in answer.text
    assert "4711" in answer.text
    document = ncr("memory", "--json").document
    assert document["hosts"][0]["jobs"][0]["observed_bytes"] == GIB
    assert document.keys() >= {"process", "system", "recommended_concurrency", "accepting_jobs", "reason"}


def test_why_a_job_waits_or_would_be_refused(ncr: Ncr, app: App) -> None:
    task_id = json.loads(ncr("submit", "4711", "--user", "ann", "--campaign", "spring", "--json").text)["task_id"]
    lines = ncr("memory", "explain", "4711").text.splitlines()
    assert lines[:3] == ["job       4711", f"task      {task_id}", "state     queued"]
    assert lines[3] == "why       no worker is up (no_worker)"
    assert ncr("memory", "explain", task_id, "--json").document["reasons"][0]["code"] == "no_worker"
    app.ledger.hosts.register(HOST, "life-1", FIGURES)
    kind = ncr("memory", "explain", "deliver", "--need", str(9 * GIB)).text.splitlines()
    assert kind[0].startswith("deliver   is refused: needs 9,663,676,416 bytes")
    assert any(line.startswith(f"host      {HOST}: fits never") for line in kind)
    assert kind[-1] == "because   it is declared by its pipeline (no job of this kind has ended yet)", "and no plot"
    unknown = ncr("memory", "explain", "nothing")
    assert unknown.code == 1
    assert "there is no job with the task_id or job_id nothing" in unknown.error


def test_why_a_job_needs_so_much(ncr: Ncr, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """In words, as a plot, and as data: the same on the command line and over HTTP."""
    sizes = range(100 * MIB, 2000 * MIB, 100 * MIB)
    seen = [Seen("deliver", PIPELINE.version, None, size, PIPELINE.memory, size // 2, 9.0) for size in sizes]
    seen.append(replace(seen[0], input_bytes=1950 * MIB, killed=True))
    packed = [replace(one, stage="pack") for one in seen[:9]]
    app.database.transact(lambda connection: note(connection, [*seen, *packed]))
    task_id = ncr("submit", "4711", "--user", "ann", "--campaign", "spring", "--json").document["task_id"]
    app.ledger.hosts.register(HOST, "life-1", FIGURES)
    job = start(app).job
    app.ledger.work.enter(job, "fetch", input_bytes=1000 * MIB)
    app.ledger.work.finish(job, State.SUCCEEDED, peak=450 * MIB)

    monkeypatch.setenv("COLUMNS", "80")
    lines = ncr("memory", "explain", task_id).text.splitlines()
    [predicted] = [line for line in lines if line.startswith("predicted ")]
    assert predicted.endswith(" for 1.0 GB of input, by what is known now")
    assert any(line.startswith("because   it grows with the input, by a line, with ") for line in lines)
    assert f"rests on  20 jobs of version {PIPELINE.version}; 1 ran out of memory" in lines
    assert any(line.startswith("by step   pack ") for line in lines)
    assert max(map(len, lines[lines.index("     peak") :])) <= 80
    assert all(mark in "".join(lines) for mark in "•✕◇◆⠤"), (
        "jobs, one that ran out, what this one had and used, the line"
    )

    found = ncr("memory", "explain", task_id, "--json").document["prediction"]
    assert (len(found["points"]), sum(one["killed"] for one in found["points"])) == (20, 1)
    assert (found["size_bytes"], found["base"], found["enough_for"]) == (1000 * MIB, "line", 19)
    assert 500 * MIB < found["need_bytes"] < 600 * MIB
    needs = [one["need_bytes"] for one in found["curve"]]
    assert (len(needs), needs) == (21, sorted(needs))
    with serving(ncr.settings) as (client, _):
        assert client.get(f"/jobs/{task_id}/explain").json()["prediction"] == found
        of_kind = client.get("/admission/explain").json()["prediction"]
        assert (of_kind["size_bytes"], of_kind["points"]) == (None, found["points"])


def test_a_job_of_a_kind_that_is_no_more_is_explained_too(ncr: Ncr, app: App) -> None:
    new = NewJob(str(uuid.uuid4()), "gone", 1, "A", "ann", {}, 70 * MIB)
    app.ledger.intake.submit([new], actor="test")
    found = ncr("memory", "explain", new.id, "--json").document["prediction"]
    assert (found["need_bytes"], found["stages"], found["curve"]) == (70 * MIB, [], [])
