"""The board on a real Valkey, and without one: live while it is there, silent while it is not, never an error."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from ncr_worker.board import EVENTS, Board, status_key
from ncr_worker.sandbox.process import LOOPBACK, free_port
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.worker.wakeups import on_wake

DARK = 0.3


@pytest.fixture
def board(valkey: Valkey) -> Iterator[Board]:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    board = Board(valkey.url, dark=DARK)
    yield board
    board.close()


@pytest.fixture
def outage(valkey: Valkey) -> Iterator[Valkey]:
    """The server, stopped; it runs again afterwards, whatever happens."""
    valkey.kill()
    yield valkey
    valkey.start()


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return met


def test_a_status_comes_back_as_it_was_shown(board: Board) -> None:
    status = {"status": "uploading", "percentage": 41.5, "current_file": "Stühle/🪑.glb", "eta": None}
    board.show("a", status)
    board.show("b", {"status": "pending"})
    assert board.statuses(["a", "b", "unknown"]) == {"a": status, "b": {"status": "pending"}}
    assert board.statuses([]) == {}


def test_users_find_a_status_under_the_documented_key_for_a_day(board: Board, valkey: Valkey) -> None:
    board.show("a", {"status": "pending"})
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        assert client.get("job:a:status") == '{"status": "pending"}'
        assert 86_000 < client.ttl(status_key("a")) <= 86_400


def test_changes_are_appended_to_the_stream_and_progress_is_not(board: Board, valkey: Valkey) -> None:
    board.show("a", {"n": 1}, event=True)
    board.show("a", {"n": 2})
    board.show("b", {"n": 3}, event=True)
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        found = [(fields["job"], json.loads(fields["status"])) for _, fields in client.xrange(EVENTS)]
    assert found == [("a", {"n": 1}), ("b", {"n": 3})]


def test_a_wake_up_reaches_every_listener_soon(board: Board, valkey: Valkey) -> None:
    first, second = threading.Semaphore(0), threading.Semaphore(0)
    other = Board(valkey.url)
    with on_wake(board, first.release), on_wake(other, second.release):
        assert first.acquire(timeout=5), "once when it begins to listen"
        assert second.acquire(timeout=5)
        begin = time.monotonic()
        board.wake()
        assert first.acquire(timeout=5)
        assert second.acquire(timeout=5)
        assert time.monotonic() - begin < 1
    other.close()


def test_nobody_listens_after_the_end(board: Board) -> None:
    woken = threading.Semaphore(0)
    with on_wake(board, woken.release):
        assert woken.acquire(timeout=5)
    board.wake()
    assert not woken.acquire(timeout=0.5)


def test_without_redis_everything_is_quiet_and_quick(board: Board, outage: Valkey) -> None:
    assert not outage.running
    begin = time.monotonic()
    for _ in range(100):
        board.show("a", {"n": 1}, event=True)
        board.wake()
        assert board.statuses(["a"]) == {}
    assert not board.ping()
    assert time.monotonic() - begin < 2


def test_after_a_restart_the_board_and_its_wake_ups_come_back(board: Board, valkey: Valkey) -> None:
    woken = threading.Semaphore(0)
    board.show("a", {"n": 1})
    with on_wake(board, woken.release):
        assert woken.acquire(timeout=5)
        valkey.kill()
        try:
            board.show("a", {"n": 2})
            assert board.statuses(["a"]) == {}
        finally:
            valkey.start()
        assert woken.acquire(timeout=10), "once after the gap: something may have been missed"
        assert eventually(board.ping)
        board.show("a", {"n": 3})
        assert eventually(lambda: "a" in board.statuses(["a"]))
        while woken.acquire(blocking=False):
            continue
        board.wake()
        assert woken.acquire(timeout=5)


def test_emptied_redis_is_filled_again_by_the_next_word(board: Board, valkey: Valkey) -> None:
    board.show("a", {"n": 1})
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    assert board.statuses(["a"]) == {}
    board.show("a", {"n": 2})
    assert board.statuses(["a"]) == {"a": {"n": 2}}


def test_a_server_that_takes_connections_and_never_answers_costs_one_timeout() -> None:
    with socket.socket() as silent:
        silent.bind((LOOPBACK, free_port()))
        silent.listen()
        board = Board(f"redis://{LOOPBACK}:{silent.getsockname()[1]}/0", timeout=0.3, dark=60)
        begin = time.monotonic()
        for _ in range(20):
            board.show("a", {"n": 1})
        assert time.monotonic() - begin < 2
        board.close()
