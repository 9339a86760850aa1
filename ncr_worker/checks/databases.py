"""The ledger's database and the catalog's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

from sqlalchemy import Connection, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from ncr_worker.checks.finding import Finding, error, ok, warning
from ncr_worker.errors import ConfigError
from ncr_worker.ledger import Ledger, schema
from ncr_worker.pipelines.deliver.catalog import metadata
from ncr_worker.settings import Settings
from ncr_worker.sql import OVERFLOW, Database, DatabaseAway, now

CLOCKS_APART = 5.0
"""Seconds by which the clocks of this host and of the database may differ."""
_LOGIN = ("access denied for user", "authentication failed", "no pg_hba.conf entry", "no password supplied")
_NO_DATABASE = ("unknown database", "does not exist", "to database")
_MOST = {
    "mysql": "SELECT @@max_connections",
    "postgresql": "SELECT current_setting('max_connections')::int"
    " - current_setting('superuser_reserved_connections')::int",
}


def ledger(settings: Settings) -> Iterator[Finding]:
    """Reachable, migrated, and with our time."""
    by_parts = bool(settings.db_host) and not settings.database_url
    names = ("DB_HOST", "DB_PASS", "DB_NAME") if by_parts else ("DATABASE_URL",) * 3
    with closing(Database(settings.ledger_url)) as database:
        what = _name(database.url)
        asked_at = time.time()
        try:
            there = database.read(lambda connection: connection.scalar(select(now())) or 0.0)
        except (DatabaseAway, DBAPIError) as failure:
            yield _unreachable(what, failure, *names)
            return
        # The answer is of some moment between question and answer.
        apart = max(asked_at - there, there - time.time(), 0.0)
        if apart > CLOCKS_APART:
            problem = f"the clocks of this host and of the database are {apart:.0f} s apart"
            yield warning(what, problem, names[0], "Let both keep time by NTP")
        try:
            schema.require_current(database)
        except ConfigError as wrong:
            yield error(what, wrong.problem, names[0], wrong.remedy)
            return
        yield ok(f"{what}: migrated to {schema.head()}, clocks {apart:.1f} s apart")


def connections(settings: Settings) -> Iterator[Finding]:
    """What API and workers may open together, against what the server allows. Nothing when it cannot be asked."""
    with closing(Database(settings.ledger_url)) as database:
        backend = database.url.get_backend_name()
        if backend not in _MOST:
            return
        try:
            most = database.read(lambda connection: int(connection.scalar(text(_MOST[backend])) or 0))
            hosts = _hosts(settings, database)
        except (DatabaseAway, DBAPIError):
            return  # `ledger` tells
        needed = (settings.db_pool_size + OVERFLOW) + hosts * (_processes(settings) * settings.db_pool_size)
        what = f"connections: {needed} for the API and {hosts} worker host(s), {most} allowed by the server"
        if needed > most:
            problem = f"API and {hosts} worker host(s) may open {needed} connections, the server allows {most}"
            remedy = f"Raise max_connections to {needed} or more, or lower DB_POOL_SIZE or CELERY_WORKER_CONCURRENCY"
            yield error(what, problem, "DB_POOL_SIZE", remedy)
        else:
            yield ok(what)


def catalog(settings: Settings) -> Iterator[Finding]:
    """Every table or view that deliveries read or write."""
    setting = "CATALOG_URL" if settings.catalog_url else "DATABASE_URL"
    with closing(Database(settings.catalog_url or settings.ledger_url)) as database:
        what = f"catalog {_name(database.url)}"
        try:
            missing = database.read(_missing)
        except (DatabaseAway, DBAPIError) as failure:
            if settings.catalog_url not in ("", settings.ledger_url):  # else `ledger` tells
                yield _unreachable(what, failure, *(setting,) * 3)
            return
    if missing and setting == "DATABASE_URL":
        return  # not migrated: `ledger` tells
    if missing:
        problem = f"has no {', '.join(missing)} that can be read"
        yield error(what, problem, setting, "Make them as tables or views with the columns of the built-in catalog")
    else:
        yield ok(f"{what}: all {len(metadata.tables)} tables")


def _missing(connection: Connection) -> list[str]:
    missing = []
    for table in metadata.sorted_tables:
        try:
            with connection.begin_nested():
                connection.execute(select(table).limit(0))
        except DBAPIError as failure:
            if failure.connection_invalidated:
                raise
            missing.append(table.name)
    return missing


def _processes(settings: Settings) -> int:
    """Of one worker host: its pool children and its main process."""
    return settings.celery_worker_concurrency + 1


def _hosts(settings: Settings, database: Database) -> int:
    """Worker hosts that are up, this one counted."""
    try:
        schema.require_current(database)
    except ConfigError:
        return 1
    of = Ledger(
        database,
        lease=settings.host_lease,
        batch_timeout=settings.batch_timeout,
        overtake_limit=settings.overtake_limit,
    )
    return len({settings.host} | {host.id for host in of.hosts.live()})


def _name(url: URL) -> str:
    """Without user and password."""
    if url.get_backend_name() == "sqlite":
        return f"SQLite {url.database}"
    return f"{url.get_backend_name()} at {url.host}:{url.port or 'its usual port'}/{url.database}"


def _unreachable(what: str, failure: Exception, host: str, password: str, name: str) -> Finding:
    cause = failure.__cause__ if isinstance(failure, DatabaseAway) else failure
    said = " ".join(str(cause.orig if isinstance(cause, DBAPIError) else failure).split())
    words = said.lower()
    if any(each in words for each in _LOGIN) and "to database" not in words:
        return error(what, f"refuses the login ({said})", password, "Check user and password")
    if any(each in words for each in _NO_DATABASE):
        remedy = "Create the database and grant the user all rights on it, or name another one"
        return error(what, f"has no such database for us ({said})", name, remedy)
    remedy = "Check host and port, and that the server is up and lets this host in"
    return error(what, f"does not answer ({said})", host, remedy, away=True)
