"""Databases as this project opens them: URLs, SQLite's transactions, JSON, and forks in the middle of everything."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from engine import Children, eventually
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, Connection, Integer, MetaData, Table, bindparam, event, select, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import OperationalError

from ncr_worker.errors import ConfigError
from ncr_worker.sql import OVERFLOW, Database, DatabaseAway, Json, Note, now
from ncr_worker.sqlite import Executes

metadata = MetaData()
counter = Table(
    "counter", metadata, Column("n", Integer, nullable=False), Column("data", Json), Column("said", Note(5))
)
missing = Table("missing", metadata, Column("n", Integer))
SAY = update(counter).where(counter.c.n == bindparam("known")).values(said=bindparam("words"), n=counter.c.n + 1)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'test.sqlite3'}"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url, patience=5)
    database.transact(lambda c: counter.create(c))
    database.transact(lambda c: c.execute(counter.insert().values(n=0)))
    yield database
    database.close()


def value(database: Database) -> int:
    return int(database.read(lambda c: c.execute(select(counter.c.n)).scalar_one()))


def add_one(connection: Connection) -> None:
    n = connection.execute(select(counter.c.n)).scalar_one()
    connection.execute(counter.update().values(n=n + 1))


# --- URLs ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("mysql://u@h/d", "mysql+pymysql"),
        ("mariadb://u@h/d", "mysql+pymysql"),
        ("mysql+pymysql://u@h/d", "mysql+pymysql"),
        ("postgres://u@h/d", "postgresql+psycopg"),
        ("postgresql://u@h/d", "postgresql+psycopg"),
        ("sqlite:///x.sqlite3", "sqlite"),
    ],
)
def test_usual_ways_to_write_a_url_are_understood(url: str, driver: str) -> None:
    assert Database(url).url.drivername == driver


@pytest.mark.parametrize("url", ["", "nonsense", "oracle://u@h/d", "http://h/d"])
def test_any_other_url_is_an_error_that_says_what_to_write(url: str) -> None:
    with pytest.raises(ConfigError, match="DATABASE_URL"):
        Database(url)


# --- transactions -------------------------------------------------------------------------------------
def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    def work(connection: Connection) -> None:
        add_one(connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.transact(work)
    assert value(database) == 0


def test_many_threads_read_and_write_without_losing_one(database: Database) -> None:
    threads = [threading.Thread(target=lambda: [database.transact(add_one) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert value(database) == 80


def test_a_reader_does_not_wait_for_a_writer(database: Database) -> None:
    def work(connection: Connection) -> int:
        add_one(connection)
        return value(database)

    begin = time.monotonic()
    assert database.transact(work) == 0
    assert time.monotonic() - begin < 2
    assert value(database) == 1


def test_a_database_that_stays_locked_is_away_once_the_patience_is_over(database: Database, url: str) -> None:
    impatient = Database(url)
    with impatient.engine.connect() as connection:
        connection.exec_driver_sql("pragma busy_timeout=10")
        connection.rollback()

    def work(_connection: Connection) -> None:
        with pytest.raises(DatabaseAway):
            impatient.transact(add_one)

    database.transact(work)
    impatient.close()


def test_the_clock_is_the_present_and_goes_on(database: Database) -> None:
    first, second = (database.read(lambda c: c.execute(select(now())).scalar_one()) for _ in range(2))
    assert first == pytest.approx(time.time(), abs=1)
    assert second >= first


# --- by the driver alone ------------------------------------------------------------------------------
def say(words: str, known: int = 0) -> Callable[[Executes], int]:
    """Work that writes it, and tells how many rows it has changed."""
    return lambda connection: connection.execute(SAY, {"known": known, "words": words}).rowcount


@pytest.mark.parametrize("words", ["hello", "\0 and more", "\ud800"])
def test_the_driver_alone_writes_what_sqlalchemy_would(database: Database, words: str) -> None:
    assert database.transact(say(words)) == 1
    assert database.transact_unflushed(say(words, known=1)) == 1
    assert database.transact_unflushed(say("nothing", known=1)) == 0, "it is not 1 any more"
    assert value(database) == 2
    by_sqlalchemy = database.read(lambda c: c.execute(select(counter.c.said)).scalar_one())
    assert by_sqlalchemy == Note(5).process_bind_param(words, sqlite.dialect())


def test_a_transaction_of_the_driver_alone_that_fails_leaves_nothing(database: Database) -> None:
    def work(connection: Executes) -> None:
        say("lost")(connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.transact_unflushed(work)
    assert value(database) == 0
    assert database.transact_unflushed(say("kept")) == 1, "nothing is locked"


def test_errors_of_the_driver_are_told_as_everywhere(database: Database, url: str) -> None:
    with pytest.raises(OperationalError, match="no such table"):
        database.transact_unflushed(lambda c: c.execute(missing.insert(), {"n": 1}))
    impatient = Database(url)

    def work(_connection: Connection) -> None:
        with pytest.raises(DatabaseAway):
            impatient.transact_unflushed(say("too late"))

    event.listen(impatient.engine, "connect", lambda opened, _record: opened.execute("pragma busy_timeout=10"))
    database.transact(work)
    impatient.close()


def test_no_connection_left_for_it_is_told_as_everywhere(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(url, pool_size=1)
    monkeypatch.setattr(database.engine.pool, "_timeout", 0.01)
    with ExitStack() as others:
        for _ in range(1 + OVERFLOW):
            others.enter_context(database.engine.connect())
        with pytest.raises(DatabaseAway, match="DB_POOL_SIZE"):
            database.transact_unflushed(say("nobody hears it"))
    database.close()


# --- JSON ---------------------------------------------------------------------------------------------
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_json_comes_back_as_it_was_written(value: object) -> None:
    dialect = sqlite.dialect()
    written = Json().process_bind_param(value, dialect)
    assert Json().process_result_value(written, dialect) == value


def test_numbers_that_json_does_not_have_are_written_as_null() -> None:
    written = Json().process_bind_param({"b": float("nan"), "a": [float("inf"), 1.5, "NaN"]}, sqlite.dialect())
    assert written == '{"a": [null, 1.5, "NaN"], "b": null}'


# --- forks --------------------------------------------------------------------------------------------
def test_a_child_forked_in_the_middle_of_a_transaction_can_write(
    database: Database, url: str, children: Children
) -> None:
    """Another thread's open transaction would leave SQLite's locks in the child for ever."""
    database.survive_forks()
    stop = threading.Event()

    def slow(connection: Connection) -> None:
        add_one(connection)
        time.sleep(0.02)

    def keep_writing() -> None:
        while not stop.wait(0.01):
            database.transact(slow)

    def work() -> None:
        mine = Database(url, patience=5)
        mine.transact(add_one)
        database.transact(add_one)  # the parent's own object works in the child as well

    writer = threading.Thread(target=keep_writing)
    writer.start()
    assert eventually(lambda: value(database) > 2)
    pids = [children.start(work) for _ in range(5)]
    assert [children.wait(pid) for pid in pids] == [0] * 5
    stop.set()
    writer.join()


def test_the_parent_goes_on_after_a_fork(database: Database, children: Children) -> None:
    database.survive_forks()
    database.transact_unflushed(say("before"))
    assert children.wait(children.start(lambda: None)) == 0
    database.transact(add_one)
    assert database.transact_unflushed(say("after", known=2)) == 1
    assert value(database) == 3


def test_no_connection_is_open_at_a_fork(database: Database, children: Children) -> None:
    database.survive_forks()
    value(database)
    database.transact_unflushed(say("hello"))

    def work() -> None:
        open_files = {path.resolve().name for path in Path("/proc/self/fd").iterdir()}
        assert not any("sqlite" in name for name in open_files)

    assert children.wait(children.start(work)) == 0
