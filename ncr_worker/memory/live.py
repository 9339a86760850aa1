"""What a host's memory is used for at this moment, and was in the last hour: on the board, for people to look at.

host:{id}:memory        JSON: Snapshot; expires soon after the last word
host:{id}:memory:hour   list of JSON: Sample, one each five seconds, the newest 720; expires after an hour
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import redis
from pydantic import BaseModel, ValidationError

from ncr_worker.board import Board

EVERY = 5.0
"""Seconds between two samples of the last hour."""
HOUR = 3600
STALE = 15
"""Seconds after which a host that says nothing more is not shown as if it did."""

M = TypeVar("M", bound=BaseModel)


class Sample(BaseModel):
    """Sizes in bytes. `at`: epoch seconds. `budget`: what its jobs may use together; `others`: used by other programs;
    `reserved`: by its jobs, or observed where that is more; `observed`: what they use. `pressure`: percent of the last
    ten seconds in which some process waited for memory, None where the kernel does not measure it."""

    at: float
    limit: int
    budget: int
    others: int
    reserved: int
    observed: int
    swap: int
    pressure: float | None
    running: int


class Use(BaseModel):
    """A job on the host. Sizes in bytes; `peak`: the most so far of what `observed` is now."""

    job_id: str
    reserved: int
    observed: int
    peak: int


class Snapshot(Sample):
    """With the jobs that run."""

    jobs: list[Use] = []


class LiveMemory:
    """Without Redis nothing is shown; nobody else misses it."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def show(self, host: str, snapshot: Snapshot, *, keep: bool) -> None:
        """`keep`: it is one of the samples of the last hour too."""

        def work(client: redis.Redis) -> None:
            pipe = client.pipeline(transaction=False)
            pipe.set(_now(host), snapshot.model_dump_json(), ex=STALE)
            if keep:
                pipe.rpush(_hour(host), snapshot.model_dump_json(exclude={"jobs"}))
                pipe.ltrim(_hour(host), -int(HOUR / EVERY), -1)
                pipe.expire(_hour(host), HOUR)
            pipe.execute()

        self.board.attempt(work, None)

    def now(self, hosts: Sequence[str]) -> dict[str, Snapshot]:
        """Of those hosts that say it now."""
        if not hosts:
            return {}
        texts: Sequence[Any] = self.board.attempt(lambda client: client.mget([_now(host) for host in hosts]), ())
        found = {host: _parsed(Snapshot, text) for host, text in zip(hosts, texts, strict=False) if text}
        return {host: each for host, each in found.items() if each is not None}

    def hour(self, host: str) -> list[Sample]:
        """The oldest first; empty for a host that nobody knows."""
        texts: Sequence[Any] = self.board.attempt(lambda client: client.lrange(_hour(host), 0, -1), ())
        return [sample for text in texts if (sample := _parsed(Sample, text)) is not None]


def _parsed(model: type[M], text: str) -> M | None:
    try:
        return model.model_validate_json(text)
    except ValidationError:  # written by another version of us
        return None


def _now(host: str) -> str:
    return f"host:{host}:memory"


def _hour(host: str) -> str:
    return f"host:{host}:memory:hour"
