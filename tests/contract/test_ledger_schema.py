"""The migrations give exactly the tables that the code works with, on every database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect

from ncr_worker.errors import ConfigError
from ncr_worker.ledger import schema, tables
from ncr_worker.pipelines.deliver import catalog
from ncr_worker.sql import Database


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


def test_upgrade_gives_the_tables_of_the_code_and_can_be_repeated(database: Database) -> None:
    with pytest.raises(ConfigError, match="ncr db upgrade"):
        schema.require_current(database)
    assert schema.upgrade(database) == schema.head()
    assert schema.upgrade(database) == schema.head()
    schema.require_current(database)
    assert _differences(database) == []


def _differences(database: Database) -> list[Any]:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        both = cast("Any", [tables.metadata, catalog.metadata])
        return list(compare_metadata(context, both))


def test_tables_keep_ids_apart_by_case_and_text_of_any_script_and_size(database: Database) -> None:
    schema.upgrade(database)
    long_text = "ü🪑" * 100_000
    rows = [{"key": "Chair", "job_number": 1}, {"key": "chair", "job_number": 2}]
    database.transact(lambda c: c.execute(tables.hold.insert(), rows))
    point = {"job_number": 1, "position": 0, "stage": "plan", "parcel": long_text}
    database.transact(lambda c: c.execute(tables.checkpoint.insert(), point))
    found = database.read(lambda c: c.execute(tables.checkpoint.select()).one())
    assert found.parcel == long_text


def test_a_schema_of_another_version_is_refused(database: Database) -> None:
    schema.upgrade(database)
    database.transact(lambda c: c.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="revision 9999"):
        schema.require_current(database)


def test_every_table_of_the_ledger_has_the_name_that_the_code_uses(database: Database) -> None:
    schema.upgrade(database)
    found = set(inspect(database.engine).get_table_names())
    assert set(tables.metadata.tables) | set(catalog.metadata.tables) | {"alembic_version"} == found
