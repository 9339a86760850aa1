"""A database server that goes away: waited for as long as the caller's patience, then said so; never a lost write."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from services import SqlServer
from sqlalchemy import Column, Connection, Integer, MetaData, Table, func, select
from sqlalchemy.exc import IntegrityError, ProgrammingError

from ncr_worker.sql import TABLE, Database, DatabaseAway, now

entry = Table("entry", MetaData(), Column("n", Integer, primary_key=True, autoincrement=False), **TABLE)


@pytest.fixture(params=["mariadb", "postgresql"])
def server(request: pytest.FixtureRequest) -> Iterator[SqlServer]:
    server: SqlServer = request.getfixturevalue(request.param)
    yield server
    server.start()


@pytest.fixture
def url(server: SqlServer) -> Iterator[str]:
    url = server.create_database()
    database = Database(url)
    database.transact(lambda c: entry.create(c))
    database.close()
    yield url
    server.start()
    server.drop_database(url)


def opened(url: str, patience: float) -> Database:
    database = Database(url, patience=patience)
    assert count(database) == 0  # a connection is in the pool
    return database


def count(database: Database) -> int:
    return int(database.read(lambda c: c.execute(select(func.count()).select_from(entry)).scalar_one()))


def write(connection: Connection) -> None:
    connection.execute(entry.insert().values(n=1))


def test_without_patience_it_is_said_at_once(server: SqlServer, url: str) -> None:
    database = opened(url, patience=0)
    server.kill()
    begin = time.monotonic()
    with pytest.raises(DatabaseAway) as away:
        database.transact(write)
    assert time.monotonic() - begin < 2
    assert (away.value.code, away.value.retry_in) == ("database_unavailable", 5)
    server.start()
    database.transact(write)
    assert count(database) == 1
    database.close()


def test_a_patient_caller_is_served_when_the_server_is_back(server: SqlServer, url: str) -> None:
    database = opened(url, patience=30)
    server.kill()
    caller = threading.Thread(target=database.transact, args=(write,))
    caller.start()
    caller.join(0.5)
    assert caller.is_alive()
    server.start()
    caller.join(15)
    assert not caller.is_alive()
    assert count(database) == 1
    database.close()


def test_patience_ends(server: SqlServer, url: str) -> None:
    database = opened(url, patience=1.0)
    server.kill()
    begin = time.monotonic()
    with pytest.raises(DatabaseAway):
        database.read(lambda c: c.execute(select(entry)))
    assert 1.0 <= time.monotonic() - begin < 5
    database.close()


def test_a_server_killed_in_the_middle_of_a_transaction_undoes_and_repeats_it(server: SqlServer, url: str) -> None:
    database = opened(url, patience=30)
    kills = [server.kill, server.start]

    def work(connection: Connection) -> None:
        write(connection)
        while kills:
            kills.pop(0)()
        connection.execute(entry.insert().values(n=2))

    database.transact(work)
    assert count(database) == 2
    database.close()


def test_two_transactions_that_block_each_other_both_end(server: SqlServer, url: str) -> None:
    database = opened(url, patience=5)
    database.transact(lambda c: c.execute(entry.insert(), [{"n": 10}, {"n": 20}]))
    gate = threading.Barrier(2)
    meets: set[int] = set()

    def swap(first: int, second: int) -> None:
        def work(connection: Connection) -> None:
            connection.execute(select(entry).where(entry.c.n == first).with_for_update())
            if first not in meets:
                meets.add(first)
                gate.wait()
            connection.execute(select(entry).where(entry.c.n == second).with_for_update())

        database.transact(work)

    threads = [threading.Thread(target=swap, args=pair) for pair in ((10, 20), (20, 10))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    database.close()


def test_errors_that_waiting_cannot_help_come_at_once(server: SqlServer, url: str) -> None:
    database = opened(url, patience=30)
    database.transact(write)
    begin = time.monotonic()
    with pytest.raises(IntegrityError):
        database.transact(write)
    with pytest.raises(ProgrammingError):
        database.read(lambda c: c.exec_driver_sql("SELECT * FROM no_such_table"))
    assert time.monotonic() - begin < 2
    database.close()


def test_the_clock_of_the_server_goes_on_within_a_transaction(server: SqlServer, url: str) -> None:
    database = opened(url, patience=0)

    def work(connection: Connection) -> float:
        first = connection.execute(select(now())).scalar_one()
        time.sleep(0.05)
        return connection.execute(select(now())).scalar_one() - first

    assert 0.04 < database.transact(work) < 5
    database.close()
