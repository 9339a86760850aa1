"""The board: what is live, in Redis. Losing it loses no job. (What hosts show of their memory: memory/live.py)

job:{id}:status     JSON: status word, stage, progress; expires a day after the last word
ncr:events          stream of all changes, newest 10,000
ncr:wake            channel: the feeders look for work at once instead of at their next poll
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import redis

log = logging.getLogger(__name__)

WAKE = "ncr:wake"
EVENTS = "ncr:events"
DAY = 86_400
T = TypeVar("T")


def status_key(job_id: str) -> str:
    return f"job:{job_id}:status"


class Board:
    """Never raises because Redis is away: it goes dark for `dark` seconds, then tries again.

    `timeout`: seconds that one call may take. Thread-safe.
    """

    def __init__(self, url: str, *, timeout: float = 0.5, dark: float = 2.0) -> None:
        self._redis: redis.Redis = redis.Redis.from_url(
            url, socket_timeout=timeout, socket_connect_timeout=timeout, decode_responses=True, retry=None
        )
        self._dark = dark
        self._dark_until = 0.0

    def close(self) -> None:
        self._redis.close()

    def show(self, job_id: str, status: Mapping[str, Any], *, event: bool = False) -> None:
        """Write a job's live status; with `event`, append it to the stream too."""
        text = json.dumps(status, ensure_ascii=False)

        def work(client: redis.Redis) -> None:
            pipe = client.pipeline(transaction=False)
            pipe.set(status_key(job_id), text, ex=DAY)
            if event:
                pipe.xadd(EVENTS, {"job": job_id, "status": text}, maxlen=10_000, approximate=True)
            pipe.execute()

        self.attempt(work, None)

    def statuses(self, job_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Live statuses of those jobs that have one; nothing when Redis is away."""
        if not job_ids:
            return {}
        texts: Sequence[Any] = self.attempt(lambda client: client.mget([status_key(i) for i in job_ids]), ())
        return {job_id: json.loads(text) for job_id, text in zip(job_ids, texts, strict=False) if text}

    def wake(self) -> None:
        """Tell all feeders that there may be work."""
        self.attempt(lambda client: client.publish(WAKE, "1"), 0)

    def ping(self) -> bool:
        """Whether Redis answers now, asked afresh."""
        try:
            return bool(self._redis.ping())
        except redis.RedisError:
            return False

    def wakes(self) -> redis.client.PubSub:
        """The channel of wake-ups, not yet subscribed to. Unlike the rest it raises redis.RedisError."""
        return self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call,no-any-return]

    def attempt(self, work: Callable[[redis.Redis], T], otherwise: T) -> T:
        """What `work` does with Redis; `otherwise` while that is away."""
        if time.monotonic() < self._dark_until:
            return otherwise
        try:
            return work(self._redis)
        except redis.RedisError as error:
            log.warning("the board is dark for %g s: %s", self._dark, error)
            self._dark_until = time.monotonic() + self._dark
            return otherwise
