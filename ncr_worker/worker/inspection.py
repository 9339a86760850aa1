"""Asks workers and the broker what they are doing, for people. Nothing depends on the answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningTask:
    """A message that a worker has: running, or about to be. `started_at`: by its host's clock."""

    task_id: str
    kind: str
    pid: int | None
    started_at: datetime | None


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """`uptime`: seconds. `processes`: pids of the pool. `total`: messages taken since it was started, by kind."""

    pid: int
    uptime: int
    concurrency: int
    processes: tuple[int, ...]
    total: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Seen:
    """By worker name, those that answered in time; `queues`: host -> messages in its queue, None: unknown."""

    connected: bool
    queues: Mapping[str, int | None]
    active: Mapping[str, list[RunningTask]] = field(default_factory=dict)
    reserved: Mapping[str, list[RunningTask]] = field(default_factory=dict)
    stats: Mapping[str, WorkerStats] = field(default_factory=dict)


def queue_name(host: str) -> str:
    """The queue of one worker host."""
    return f"host.{host}"


class Inspector:
    """`timeout`: seconds that workers have to answer one question."""

    def __init__(self, broker_url: str, *, timeout: float = 0.7) -> None:
        self.timeout = timeout
        self._celery = Celery("inspector", broker=broker_url, set_as_current=False)
        self._celery.conf.update(
            broker_connection_timeout=1,
            broker_transport_options={
                "max_retries": 0,
                "interval_start": 0,
                "interval_step": 0,
                "socket_connect_timeout": 1,
                "socket_timeout": 2,
            },
        )

    def close(self) -> None:
        self._celery.close()

    def look(self, hosts: Sequence[str]) -> Seen:
        """Ask the workers of these hosts. Never raises because one, or the broker, does not answer."""
        connection: Connection = self._celery.connection_for_write()
        errors = (*connection.connection_errors, *connection.channel_errors)
        away: tuple[type[BaseException], ...] = (OperationalError, *errors)
        with connection:
            try:
                queues = {host: _depth(connection, host) for host in hosts}
                return self._ask(connection, queues)
            except away as error:
                log.warning("the broker does not answer: %s", error)
                return Seen(False, dict.fromkeys(hosts))

    def _ask(self, connection: Connection, queues: Mapping[str, int | None]) -> Seen:
        if not queues:
            connection.ensure_connection(max_retries=0)
            return Seen(True, queues)
        # With a limit the answer is complete as soon as every live host has spoken.
        ask = self._celery.control.inspect(timeout=self.timeout, limit=len(queues), connection=connection)
        stats = ask.stats()
        if not stats:
            return Seen(True, queues)
        active, reserved = ask.active() or {}, ask.reserved() or {}
        return Seen(
            True,
            queues,
            {worker: [_task(each) for each in tasks] for worker, tasks in active.items()},
            {worker: [_task(each) for each in tasks] for worker, tasks in reserved.items()},
            {worker: _stats(each) for worker, each in stats.items()},
        )


def _depth(connection: Connection, host: str) -> int:
    """Messages in a host's queue; a queue that does not exist is empty."""
    # A channel for each question: a broker closes it when the queue does not exist.
    channel: Any = connection.channel()
    try:
        return int(channel.queue_declare(queue_name(host), passive=True).message_count)
    except connection.channel_errors as error:
        if str(getattr(error, "reply_code", "")) != "404":  # a number from RabbitMQ, text from Redis
            raise
        return 0
    finally:
        channel.close()


def _task(answer: Mapping[str, Any]) -> RunningTask:
    begun = answer.get("time_start")
    started_at = None if begun is None else datetime.fromtimestamp(begun, UTC)
    return RunningTask(answer["id"], answer["name"], answer.get("worker_pid"), started_at)


def _stats(answer: Mapping[str, Any]) -> WorkerStats:
    pool = answer.get("pool", {})
    return WorkerStats(
        answer["pid"],
        answer.get("uptime", 0),
        pool.get("max-concurrency", 0),
        tuple(pool.get("processes", ())),
        answer.get("total", {}),
    )
