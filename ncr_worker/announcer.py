"""New jobs go to the board, and wake the feeders, from a thread of their own: a submit does not wait for Redis."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import redis

from ncr_worker.board import DAY, Board, status_key
from ncr_worker.job import NewJob

CHUNK = 500
"""Jobs in one command."""
PATIENCE = 2.0
"""Seconds that the end waits for what is still to be told."""
# What a worker has shown of a job already is newer.
_SHOW = "for i, key in ipairs(KEYS) do redis.call('SET', key, ARGV[i + 1], 'EX', ARGV[1], 'NX') end"


@dataclass(frozen=True, slots=True)
class _News:
    jobs: Sequence[NewJob]
    word: str
    at: float  # epoch seconds


class Announcer:
    """Safe to share between threads. What it has not told when the process dies is told by nobody: feeders poll too."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._news: SimpleQueue[_News | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def tell(self, jobs: Sequence[NewJob], word: str) -> None:
        """They are stored, and shown with this status word. Returns at once."""
        self._news.put(_News(jobs, word, time.time()))
        with self._lock:
            if self._thread is None or not self._thread.is_alive():  # a fork leaves it behind
                self._thread = threading.Thread(target=self._work, name="announcer", daemon=True)
                self._thread.start()

    def close(self) -> None:
        with self._lock:
            if self._thread is not None:
                self._news.put(None)
                self._thread.join(PATIENCE)
                self._thread = None

    def _work(self) -> None:
        while (first := self._news.get()) is not None:
            news, ended = [first], False
            try:
                while not ended:  # what came meanwhile is told with it
                    more = self._news.get_nowait()
                    ended = more is None
                    news += [more] if more else []
            except Empty:
                pass
            self.board.wake()
            self._show([_status(job, each) for each in news for job in each.jobs])
            if ended:
                return

    def _show(self, statuses: Sequence[tuple[str, str]]) -> None:
        for start in range(0, len(statuses), CHUNK):
            keys, texts = zip(*statuses[start : start + CHUNK], strict=True)

            def show(client: redis.Redis, keys: Sequence[str] = keys, texts: Sequence[str] = texts) -> None:
                client.eval(_SHOW, len(keys), *keys, str(DAY), *texts)

            self.board.attempt(show, None)


def _status(job: NewJob, news: _News) -> tuple[str, str]:
    status = {"job_id": job.id, "kind": job.kind, "ref": job.ref, "attempt": 0, "status": news.word}
    status |= {"percentage": 0.0, "message": "stored", "at": news.at}
    return status_key(job.id), json.dumps(status, ensure_ascii=False)
