"""The catalog on every kind of database."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, Table, insert, select

from ncr_worker.errors import Rejected
from ncr_worker.pipelines.deliver.catalog import (
    Catalog,
    Entry,
    delivery,
    delivery_history,
    job_details,
    job_files,
    metadata,
    model_validation,
)
from ncr_worker.sql import Database
from ncr_worker.validator import Verdict

NOW = datetime.now(UTC).replace(tzinfo=None)
VALID = Verdict(result="Valid", answer={"data": [{"result": "Valid", "note": "ü ✓"}]})
INVALID = Verdict(result="Invalid", answer={"data": [{"result": "Invalid", "reasons": ["no"]}]})
ENTRY = Entry("J1", None, "run-1", 1)


@pytest.fixture
def catalog(database_url: str) -> Iterator[Catalog]:
    database = Database(database_url)
    metadata.create_all(database.engine)
    files = [
        {"job_id": "J1", "key": "J1/S/b.glb", "file_type": "base", "uploaded_at": NOW},
        {"job_id": "J1", "key": "J1/S/a.glb", "file_type": "base", "uploaded_at": NOW - timedelta(days=1)},
        {"job_id": "J1", "key": "J1/S/a.glb", "file_type": "base", "uploaded_at": NOW},
        {"job_id": "J1", "key": "J1/S/thumb.png", "file_type": "preview", "uploaded_at": NOW},
        {"job_id": "j1", "key": "j1/S/other.glb", "file_type": "base", "uploaded_at": NOW},
    ]
    details = [{"job_id": "J1", "sku_id": "old"}, {"job_id": "J1", "sku_id": "S"}, {"job_id": "J2", "sku_id": "T"}]

    def fill(connection: Connection) -> None:
        connection.execute(insert(job_files), files)
        connection.execute(insert(job_details), details)

    database.transact(fill)
    yield Catalog(database)
    database.close()


def rows(catalog: Catalog, table: Table, *columns: str) -> list[tuple[object, ...]]:
    query = select(*(table.c[name] for name in columns)).order_by(next(iter(table.primary_key)))
    return catalog.database.read(lambda connection: [tuple(row) for row in connection.execute(query)])


def test_only_base_files_of_this_very_job_each_once(catalog: Catalog) -> None:
    assert catalog.keys("J1") == ["J1/S/a.glb", "J1/S/b.glb"]


def test_a_job_without_files_is_refused(catalog: Catalog) -> None:
    with pytest.raises(Rejected) as caught:
        catalog.keys("J2")
    assert caught.value.code == "catalog_no_files"


def test_the_newest_row_tells_the_sku_unless_one_is_named(catalog: Catalog) -> None:
    assert catalog.sku("J1", None) == "S"
    first = rows(catalog, job_details, "id")[0][0]
    assert isinstance(first, int)
    assert catalog.sku("J1", first) == "old"


@pytest.mark.parametrize(("job_id", "row_id"), [("J9", None), ("J1", 99), ("j2", None)])
def test_an_unknown_job_or_row_is_refused(catalog: Catalog, job_id: str, row_id: int | None) -> None:
    with pytest.raises(Rejected) as caught:
        catalog.sku(job_id, row_id)
    assert caught.value.code == "catalog_missing"


def test_a_validation_of_the_same_round_replaces_the_earlier_one(catalog: Catalog) -> None:
    catalog.record_validation(ENTRY, INVALID)
    assert rows(catalog, delivery, "state", "deliveries") == [("validation_failed", 0)]
    catalog.record_validation(ENTRY, VALID)
    assert rows(catalog, model_validation, "result", "answer") == [("Valid", VALID.answer)]
    assert rows(catalog, delivery, "state") == [("validated",)]


def test_a_delivery_is_counted_once_for_each_round(catalog: Catalog) -> None:
    second_round = Entry("J1", None, "run-1", 2)
    for entry in (ENTRY, ENTRY, second_round, ENTRY):
        catalog.record_delivery(entry, "S", 3, 5_000_000_000, "Valid")
    assert rows(catalog, delivery_history, "round", "bytes") == [(1, 5_000_000_000), (2, 5_000_000_000)]
    assert rows(catalog, delivery, "state", "deliveries", "files", "bytes") == [("delivered", 2, 6, 10_000_000_000)]


def test_the_row_that_was_named_is_updated_and_no_other(catalog: Catalog) -> None:
    first = rows(catalog, job_details, "id")[0][0]
    assert isinstance(first, int)
    catalog.record_delivery(Entry("J1", first, "run-1", 1), "S", 1, 1, "Valid")
    assert rows(catalog, job_details, "status") == [("delivered",), ("new",), ("new",)]
