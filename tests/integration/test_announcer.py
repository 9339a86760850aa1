"""What is stored stands on the board at once, as those see it who look with redis-cli; and no submit waits for it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from engine import eventually
from ledgers import new_job
from serving import on_sqlite, order, serving, start, status, submit

from ncr_worker import announcer
from ncr_worker.announcer import CHUNK, Announcer
from ncr_worker.board import Board, status_key
from ncr_worker.sandbox.process import LOOPBACK
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.worker.wakeups import on_wake


@pytest.fixture
def client(valkey: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture
def board(valkey: Valkey, client: redis.Redis) -> Iterator[Board]:
    board = Board(valkey.url)
    yield board
    board.close()


def told(board: Board, *jobs: Any) -> None:
    crier = Announcer(board)
    crier.tell(jobs, "pending")
    crier.close()


def test_a_job_that_was_taken_in_is_pending_for_a_day(client: redis.Redis, valkey: Valkey, tmp_path: Path) -> None:
    with serving(on_sqlite(valkey.url, tmp_path)) as (api, app):
        task_id = submit(api)
        keyed = api.post("/process-job", json=order(2), headers={"Idempotency-Key": "k"}).json()["task_id"]
        many = [job["task_id"] for job in api.post("/process-batch", json=[order(3), order(4)]).json()["jobs"]]
        everything = [task_id, keyed, *many]
        assert eventually(lambda: len(app.board.statuses(everything)) == len(everything))
        shown = app.board.statuses(everything)
        assert {each["status"] for each in shown.values()} == {"pending"} == {status(api, task_id)["status"]}
        assert [shown[each]["ref"] for each in everything] == [f"job-{number}" for number in range(1, 5)]
        assert 86_000 < client.ttl(status_key(task_id)) <= 86_400
        assert status(api, start(app).job.id)["message"] == "step plan runs", "what is told of a new job is past then"


def test_a_workers_word_is_newer(board: Board) -> None:
    early, late = new_job(), new_job()
    board.show(early.id, {"status": "completed"})
    told(board, early, late)
    assert {job_id: shown["status"] for job_id, shown in board.statuses([early.id, late.id]).items()} == {
        early.id: "completed",
        late.id: "pending",
    }


def test_a_large_batch_is_told_to_its_last_job(board: Board) -> None:
    jobs = [new_job() for _ in range(2 * CHUNK + 1)]
    told(board, *jobs)
    assert len(board.statuses([job.id for job in jobs])) == len(jobs)


def test_feeders_are_woken(board: Board) -> None:
    woken = threading.Semaphore(0)
    with on_wake(board, woken.release):
        assert woken.acquire(timeout=5), "once when it begins to listen"
        told(board, new_job())
        assert woken.acquire(timeout=5)


def test_nobody_waits_for_a_redis_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcer, "PATIENCE", 0.0)
    with socket.socket() as silent:
        silent.bind((LOOPBACK, 0))
        silent.listen()
        board = Board(f"redis://{LOOPBACK}:{silent.getsockname()[1]}/0", timeout=10)
        crier = Announcer(board)
        crier.tell([new_job()], "pending")
        silent.settimeout(10)
        connection, _ = silent.accept()  # it tries, and waits for the answer
        crier.tell([new_job()], "pending")
        crier.close()
        [thread] = [each for each in threading.enumerate() if each.name == "announcer"]
        assert thread.is_alive(), "nobody has waited for this"
        connection.close()
        silent.close()
        thread.join(30)
        board.close()
