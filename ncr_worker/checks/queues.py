"""Redis, the broker, the result backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import redis
from celery import Celery
from kombu import Connection

from ncr_worker.checks.finding import Finding, error, ok, warning
from ncr_worker.settings import Settings, mask_passwords

TIMEOUT = 2.0
NEVER_EVICTS = "noeviction"


def board(settings: Settings) -> Iterator[Finding]:
    """Redis of the live board; it is the broker too unless CELERY_BROKER_URL says otherwise."""
    setting = "REDIS_URL" if settings.redis_url else "REDIS_HOST"
    yield from _redis("Redis", settings.board_url, setting, broker=settings.broker_url == settings.board_url)


def broker(settings: Settings) -> Iterator[Finding]:
    url, setting = settings.broker_url, "CELERY_BROKER_URL"
    if url == settings.board_url:
        return
    if _is_redis(url):
        yield from _redis("broker", url, setting, broker=True)
        return
    what = f"broker {mask_passwords(url)}"
    try:
        connection = Connection(url, connect_timeout=TIMEOUT)
    except (KeyError, ValueError, ImportError) as failure:
        yield error(what, f"cannot be used: {failure}", setting, "Write it like pyamqp://user:password@host:5672/vhost")
        return
    refusals: tuple[type[BaseException], ...] = (OSError, *connection.connection_errors, *connection.channel_errors)
    with closing(connection):
        try:
            connection.connect()
        except refusals as failure:
            remedy = "Check host, port, user, password and virtual host, and that the broker is up"
            yield error(what, f"does not let us in: {_said(failure)}", setting, remedy, away=True)
            return
        yield ok(f"{what}: connected")


def results(settings: Settings) -> Iterator[Finding]:
    url, setting = settings.celery_result_backend, "CELERY_RESULT_BACKEND"
    if not url:
        return
    if _is_redis(url):
        yield from _redis("result backend", url, setting, broker=False)
        return
    what = f"result backend {mask_passwords(url)}"
    with closing(Celery("doctor", backend=url, set_as_current=False)) as celery:
        celery.backend.get_task_meta("ncr-doctor")  # its errors are of many kinds
    yield ok(f"{what}: answers")


def _redis(role: str, url: str, setting: str, *, broker: bool) -> Iterator[Finding]:
    """`broker`: whether messages lie there, which must not be evicted."""
    what = f"{role} {mask_passwords(url)}"
    example = "Write it like redis://:password@host:6379/0"
    try:
        client: redis.Redis = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, decode_responses=True, retry=None
        )
    except ValueError as failure:
        yield error(what, f"is no address of a Redis ({failure})", setting, example)
        return
    with closing(client):
        try:
            client.ping()
        except redis.AuthenticationError as failure:
            yield error(what, f"refuses the login ({_said(failure)})", setting, example, away=True)
            return
        except redis.RedisError as failure:
            remedy = "Check host and port, and that Redis is up"
            yield error(what, f"does not answer ({_said(failure)})", setting, remedy, away=True)
            return
        yield from _eviction(client, what, setting, broker)


def _eviction(client: redis.Redis, what: str, setting: str, broker: bool) -> Iterator[Finding]:
    """Asked with INFO: managed Redis services refuse CONFIG."""
    try:
        info: dict[str, Any] = client.info()
    except redis.RedisError as failure:
        problem = f"does not tell whether it evicts ({_said(failure)})"
        yield warning(what, problem, setting, f"Make sure that its maxmemory-policy is {NEVER_EVICTS}")
        return
    policy = str(info.get("maxmemory_policy", "unknown"))
    if broker and policy != NEVER_EVICTS:
        problem = f"the Redis there has maxmemory-policy {policy}: it may drop what waits in it when memory is short"
        remedy = f"Set maxmemory-policy {NEVER_EVICTS} there, or use another Redis as broker"
        yield error(what, problem, setting, remedy)
        return
    kept = "kept" if info.get("aof_enabled") else "not kept"
    version = info.get("valkey_version") or info.get("redis_version")
    yield ok(f"{what}: version {version}, {policy}; live progress is {kept} over its restart (append-only file)")


def _is_redis(url: str) -> bool:
    return urlsplit(url).scheme in ("redis", "rediss", "unix")


def _said(failure: BaseException) -> str:
    return " ".join(str(failure).split()) or type(failure).__name__
