"""What runs were seen to use is kept for each stage of each kind, the newest first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ncr_worker.ledger import Ledger
from ncr_worker.ledger.observations import KEPT, Observations, Seen, largest, note
from ncr_worker.sql import Database

WHOLE = Seen("deliver", 2, None, 10, 64, 50, 1.5)
PACK = Seen("deliver", 2, "pack", None, None, 40, 0.5, killed=True)
OTHER = Seen("import", 1, None, 7, 8, 90, 2.0)


@pytest.fixture
def clean(ledger: Ledger) -> Database:
    return ledger.database


def noted(database: Database, *seen: Seen) -> Observations:
    database.transact(lambda connection: note(connection, seen))
    return Observations(database)


def test_each_stage_of_each_kind_is_kept_as_it_was_seen(clean: Database) -> None:
    later = replace(WHOLE, peak=60, input_bytes=None)
    observations = noted(clean, WHOLE, PACK, OTHER, later)
    assert observations.newest("deliver", None) == [WHOLE, later]
    assert observations.newest("deliver", "pack") == [PACK]
    assert observations.newest("import", None) == [OTHER]
    assert observations.newest("import", "pack") == []


def test_of_many_the_newest_count(clean: Database) -> None:
    many = [replace(WHOLE, peak=1000 - number) for number in range(KEPT + 1)]
    observations = noted(clean, *many)
    assert observations.newest("deliver", None) == many[1:]
    assert clean.read(lambda connection: largest(connection, "deliver")) == 999
    assert observations.forget() == 1
    assert observations.newest("deliver", None) == many[1:]
    assert observations.forget() == 0


def test_each_stage_is_forgotten_by_its_own_measure(clean: Database) -> None:
    of_stage = [replace(PACK, peak=1000 - number) for number in range(KEPT + 2)]
    observations = noted(clean, WHOLE, *of_stage)
    assert observations.forget() == 2
    assert observations.newest("deliver", "pack") == of_stage[2:]
    assert observations.newest("deliver", None) == [WHOLE]


def test_the_largest_is_one_of_a_whole_run_of_the_kind(clean: Database) -> None:
    assert clean.read(lambda connection: largest(connection, "deliver")) == 0
    noted(clean, WHOLE, replace(PACK, peak=80), OTHER)
    assert clean.read(lambda connection: largest(connection, "deliver")) == 50


def test_nothing_seen_is_nothing_noted(clean: Database) -> None:
    assert noted(clean).newest("deliver", None) == []
