"""How SQL databases are opened: isolation, pragmas, the database's clock, patience while one is away, forks.

Used by the ledger and by every catalog. SQLite, MySQL/MariaDB and PostgreSQL behave alike through this file.
"""

from __future__ import annotations

import json
import logging
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Dialect, Double, Engine, String, Text, create_engine, event
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from ncr_worker.errors import Busy, ConfigError
from ncr_worker.sqlite import Direct, Executes

log = logging.getLogger(__name__)
T = TypeVar("T")

OVERFLOW = 5
"""Connections of one process above its pool's size, for a moment of many requests."""

LongText = Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
TABLE: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",  # keys and ids differ by case, as on the other databases
}


def storable(text: str) -> str:
    """`text` as every database takes it: PostgreSQL has no NUL, and none has the half characters of broken JSON."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


class Note(TypeDecorator[str]):
    """What people, other servers and libraries say: made storable, and cut to the length of its column."""

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        length = cast("String", self.impl_instance).length
        return None if value is None else storable(value)[:length]


class LongNote(Note):
    impl = LongText
    cache_ok = True


class Json(TypeDecorator[Any]):
    """JSON in a column that behaves alike on every database: text, keys sorted, no size limit."""

    impl = LongText
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else storable(_dumped(value))

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except ValueError:  # JSON has no NaN and no infinity: they are null
        finite = json.loads(json.dumps(value), parse_constant=lambda _constant: None)
        return json.dumps(finite, sort_keys=True, ensure_ascii=False)


class now(FunctionElement[float]):  # noqa: N801 - a SQL function
    """The database's clock: epoch seconds as a double. Leases must not depend on a host's clock."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(_element: Any, _compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"  # unixepoch('subsec') needs SQLite 3.42


@compiles(now, "postgresql")
def _now_postgresql(_element: Any, _compiler: Any, **_: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


@compiles(now, "mysql", "mariadb")
def _now_mysql(_element: Any, _compiler: Any, **_: Any) -> str:
    return "(unix_timestamp(sysdate(6)) + 0e0)"


class DatabaseAway(Busy):
    """The database cannot be reached, or gave a transaction up, for longer than the caller's patience.

    What its driver says names hosts and users: it is in the log and in `__cause__`, not in the message.
    """

    code = "database_unavailable"


class Database:
    """One SQL database. Safe to share between threads; build it in the process that uses it.

    `patience`: seconds for which a transaction is tried again while the database is away.
    """

    def __init__(self, url: str, *, patience: float = 0.0, pool_size: int = 5) -> None:
        self.url = _parse(url)
        self.patience = patience
        self.engine = _create(self.url, pool_size)
        self._lock: threading.RLock | None = None
        # SQLite's own waiting for its one writer is by sleeps, in which a thread may starve for a second.
        self._writer = threading.RLock() if self.dialect == "sqlite" else None
        self._direct: Direct | None = None

    @property
    def dialect(self) -> str:
        """sqlite, mysql, mariadb or postgresql."""
        return self.engine.dialect.name

    def close(self) -> None:
        self._close_direct()
        self.engine.dispose()

    def survive_forks(self) -> None:
        """Call once in a process that forks: no connection is open, and no transaction runs, at a fork.

        A child would inherit SQLite's locks, or end its parent's session by closing the shared socket.
        """
        self._lock = threading.RLock()
        reference = weakref.ref(self)

        def before() -> None:
            if (database := reference()) is not None and database._lock is not None:
                database._lock.acquire()
                database.close()

        def after_in_parent() -> None:
            if (database := reference()) is not None and database._lock is not None:
                database._lock.release()

        def after_in_child() -> None:
            if (database := reference()) is not None:
                database._lock = threading.RLock()

        os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)

    def transact(self, work: Callable[[Connection], T]) -> T:
        """`work(connection)` in one transaction; tried again while the database is away or gives it up.

        `work` may run more than once, and once more after a commit whose answer was lost: it must be idempotent.
        Raises DatabaseAway.
        """
        return self._patiently(work, read=False)

    def transact_unflushed(self, work: Callable[[Executes], T]) -> T:
        """`transact` on SQLite for what every job's start costs: far cheaper, and it does not wait for the disk.

        A power cut may undo it, but nothing is left then of what `transact` has committed after it.
        """
        try:
            with self._turn(read=False):
                self._direct = direct = self._direct or Direct(self.engine)
                with direct.transaction():
                    return work(direct)
        except (sqlite3.Error, SQLAlchemyError):  # the latter: none could be opened
            self._close_direct()
            return self.transact(work)  # which knows when to be patient, and what to say

    def read(self, work: Callable[[Connection], T]) -> T:
        """Like `transact`, for reads only: on SQLite it does not wait for a writer."""
        return self._patiently(work, read=True)

    def _close_direct(self) -> None:
        direct, self._direct = self._direct, None
        if direct is not None:
            direct.close()

    def _patiently(self, work: Callable[[Connection], T], *, read: bool) -> T:
        deadline = time.monotonic() + self.patience
        pause, conflicts = 0.05, 0
        while True:
            try:
                return self._once(work, read=read)
            except PoolTimeout as error:
                text = "all database connections of this process are in use (DB_POOL_SIZE)"
                raise DatabaseAway(text, retry_in=5) from error
            except DBAPIError as error:
                lost = error.connection_invalidated or _is_away(error)
                conflict = _is_conflict(error)
                conflicts += conflict
                if not (lost or conflict):
                    raise
                if time.monotonic() > deadline and not (conflict and conflicts < 5):
                    log.warning("the database does not answer: %s", error.orig)
                    raise DatabaseAway("the database does not answer", retry_in=5) from error
                if lost:
                    self.engine.dispose()
                    log.warning("database is away, trying again: %s", error.orig)
            time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries, no secret
            pause = min(pause * 2, 1.0)

    def _once(self, work: Callable[[Connection], T], *, read: bool) -> T:
        with self._turn(read=read):
            return self._run(work, read)

    def _turn(self, *, read: bool) -> AbstractContextManager[Any]:
        return self._lock or (None if read else self._writer) or nullcontext()

    def _run(self, work: Callable[[Connection], T], read: bool) -> T:
        with self.engine.connect() as connection:
            connection = connection.execution_options(ncr_read=read)
            with connection.begin():
                return work(connection)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except SQLAlchemyError as error:
        raise ConfigError(
            "DATABASE_URL", "not a database URL", "Write it like postgresql+psycopg://user:password@host/name"
        ) from error
    drivers = {"mysql": "mysql+pymysql", "mariadb": "mysql+pymysql", "mariadb+pymysql": "mysql+pymysql"}
    drivers |= {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
    parsed = parsed.set(drivername=drivers.get(parsed.drivername, parsed.drivername))
    if parsed.get_backend_name() not in ("sqlite", "mysql", "postgresql"):
        raise ConfigError("DATABASE_URL", f"{parsed.drivername} is not supported", "Use sqlite, mysql or postgresql")
    return parsed


def _create(url: URL, pool_size: int) -> Engine:
    backend = url.get_backend_name()
    options: dict[str, Any] = {"pool_size": pool_size, "max_overflow": OVERFLOW}
    if backend == "sqlite":
        options["connect_args"] = {"timeout": 30, "check_same_thread": False}
        _make_folder(url)
    elif backend == "mysql":
        options |= {"isolation_level": "READ COMMITTED", "pool_pre_ping": True}
        # A host that vanished in a transaction must not hold its locks for hours, nor may a dead line cost a lease.
        options["connect_args"] = {"connect_timeout": 3, "read_timeout": 15, "write_timeout": 15}
        options["connect_args"]["init_command"] = "SET SESSION innodb_lock_wait_timeout = 5, wait_timeout = 60"
    else:
        options["pool_pre_ping"] = True
        options["connect_args"] = {
            "connect_timeout": 3,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "tcp_user_timeout": 15_000,
            "options": "-c lock_timeout=5s -c idle_in_transaction_session_timeout=30s",
        }
    engine = create_engine(url, **options)
    if backend == "sqlite":
        event.listen(engine, "connect", _sqlite_connected)
        event.listen(engine, "begin", _sqlite_begin)
    return engine


def _make_folder(url: URL) -> None:
    if url.database and url.database != ":memory:":
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("DATABASE_URL", f"{error}", "Name a folder that can be written") from error


def _sqlite_connected(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _sqlite_begin, not by the driver
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=full")
    connection.execute("pragma foreign_keys=on")


def _sqlite_begin(connection: Connection) -> None:
    read = connection.get_execution_options().get("ncr_read", False)
    connection.exec_driver_sql("begin" if read else "begin immediate")


# MySQL: deadlock, lock wait timeout. PostgreSQL: serialization failure, deadlock, lock timeout.
_CONFLICT_CODES = {1213, 1205, "40001", "40P01", "55P03"}
# MySQL: cannot connect, gone away, lost, shutdown in progress, too many connections.
_AWAY_CODES = {2002, 2003, 2006, 2013, 2055, 1053, 1040, 1927}
# PostgreSQL: shutdown, crash, cannot connect now, too many connections; class 08: connection exceptions.
_AWAY_STATES = {"57P01", "57P02", "57P03", "53300", "25P03"}


def _code(error: DBAPIError) -> Any:
    original = error.orig
    state = getattr(original, "sqlstate", None)
    return state if state is not None else (original.args[0] if original is not None and original.args else None)


def _is_conflict(error: DBAPIError) -> bool:
    return _code(error) in _CONFLICT_CODES or "database is locked" in str(error.orig)


def _is_away(error: DBAPIError) -> bool:
    code = _code(error)
    if code in _AWAY_CODES or code in _AWAY_STATES or (isinstance(code, str) and code.startswith("08")):
        return True
    # psycopg has no state when no server answered at all.
    return (
        isinstance(error, OperationalError)
        and type(error.orig).__module__.startswith("psycopg")
        and (getattr(error.orig, "sqlstate", None) is None)
    )
