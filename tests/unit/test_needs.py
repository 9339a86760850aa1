"""What is reserved for a job: by its input where inputs are known, by what is declared where they are not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ledgers import figures, opened

from ncr_worker.ledger.hosts import Hosts
from ncr_worker.ledger.observations import Seen, note
from ncr_worker.memory import needs as needs_module
from ncr_worker.memory.needs import Needs
from ncr_worker.pipeline import MIB
from ncr_worker.sql import Database

BY_INPUT = [Seen("sort", 1, None, size * MIB, 64 * MIB, 3 * size * MIB, 1.0) for size in range(100, 1100, 50)]
BY_WORD = [Seen("sort", 1, None, None, size * MIB, 3 * size * MIB, 1.0) for size in range(100, 1100, 50)]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setattr(needs_module, "SERVES", 0.0)
    monkeypatch.setattr(needs_module, "SERVES_FEW", 0.0)
    with opened(f"sqlite:///{tmp_path / 'ncr.sqlite3'}") as database:
        yield database


def told(database: Database, *seen: Seen) -> None:
    database.transact(lambda connection: note(connection, seen))


def need(needs: Needs, input_mib: int | None, declared_mib: int) -> float:
    """In MiB."""
    input_bytes = None if input_mib is None else input_mib * MIB
    return needs.predict("sort", 1, None, input_bytes, declared_mib * MIB).need / MIB


def test_nothing_known_is_as_declared(database: Database) -> None:
    needs = Needs(database, learned=True)
    assert need(needs, 500, 64) == 64
    assert needs.foresee("sort", 1, 500 * MIB, 64 * MIB) is None


def test_the_input_decides(database: Database) -> None:
    told(database, *BY_INPUT)
    needs = Needs(database, learned=True)
    assert 600 <= need(needs, 200, 64) < 800
    assert 2400 <= need(needs, 800, 64) < 2800


def test_an_input_that_is_not_known_yet_is_never_taken_for_what_is_declared(database: Database) -> None:
    """64 MiB declared is no small input: jobs of this kind need what the others needed."""
    told(database, *BY_INPUT)
    assert need(Needs(database, learned=True), None, 64) >= 2000


def test_without_inputs_what_the_pipeline_says_of_each_job_decides(database: Database) -> None:
    told(database, *BY_WORD)
    needs = Needs(database, learned=True)
    assert 600 <= need(needs, None, 200) < 800
    assert 2400 <= need(needs, None, 800) < 2800


def test_the_first_known_input_changes_the_measure(database: Database) -> None:
    told(database, *BY_WORD)
    needs = Needs(database, learned=True)
    need(needs, None, 200)
    told(database, *BY_INPUT)
    assert 2400 <= need(needs, 800, 64) < 2800


def test_the_first_known_input_does_not_make_the_others_forgotten(database: Database) -> None:
    unknown = [replace(one, input_bytes=None, declared=None, peak=900 * MIB) for one in BY_INPUT]
    told(database, *unknown)
    needs = Needs(database, learned=True)
    assert need(needs, None, 64) >= 900
    told(database, replace(BY_INPUT[0], peak=MIB))
    needs = Needs(database, learned=True)
    assert need(needs, None, 64) >= 900


def test_few_jobs_of_known_input_are_learned_from_at_once_among_many_of_unknown(database: Database) -> None:
    unknown = [replace(one, input_bytes=None, declared=None, peak=900 * MIB) for one in BY_INPUT]
    told(database, *unknown * 10, replace(BY_INPUT[0], peak=900 * MIB))
    needs = Needs(database, learned=True)
    assert need(needs, 100, 64) >= 900
    for size in range(4):
        told(database, replace(BY_INPUT[0], input_bytes=(100 + size) * MIB, peak=30 * MIB))
        need(needs, 100, 64)
    told(database, *(replace(BY_INPUT[0], input_bytes=(110 + size) * MIB, peak=30 * MIB) for size in range(16)))
    assert need(needs, 100, 64) < 100


def test_what_ended_before_its_input_was_known_is_no_point_of_the_curve(database: Database) -> None:
    told(database, *BY_INPUT, *(replace(one, input_bytes=None, peak=MIB) for one in BY_INPUT[:5]))
    assert 600 <= need(Needs(database, learned=True), 200, 64) < 800


def test_jobs_are_learned_from_one_after_another(database: Database) -> None:
    needs = Needs(database, learned=True)
    assert need(needs, 500, 64) == 64
    for seen in BY_INPUT:
        told(database, seen)
        need(needs, 500, 64)
    assert 1500 <= need(needs, 500, 64) < 1700


def test_as_declared_when_nobody_wants_more(database: Database) -> None:
    told(database, *BY_INPUT)
    assert need(Needs(database, learned=False), 800, 64) == 64


def test_what_a_prediction_rests_on_is_told_with_it(database: Database) -> None:
    told(database, *BY_INPUT, replace(BY_INPUT[0], version=2), replace(BY_INPUT[0], version=3))
    needs = Needs(database, learned=True)
    found = needs.basis("sort", 2, None, 800 * MIB, 64 * MIB)
    assert (found.measure, found.size) == ("input_bytes", 800 * MIB)
    assert found.prediction == needs.predict("sort", 2, None, 800 * MIB, 64 * MIB)
    assert (len(found.fit.own), len(found.fit.earlier)) == (1, 19), "version 3 tells nothing of version 2"


def test_what_nobody_wants_is_still_shown(database: Database) -> None:
    told(database, *BY_INPUT)
    found = Needs(database, learned=False).basis("sort", 1, None, 800 * MIB, 64 * MIB)
    assert (found.prediction.need, found.fit.samples) == (64 * MIB, len(BY_INPUT))


# --- what would fit no host ---------------------------------------------------------------------------
KILLED = Seen("sort", 1, None, None, 64 * MIB, 600 * MIB, 1.0, killed=True)


@pytest.fixture
def of_1000_mib(database: Database) -> None:
    """The largest worker host."""
    Hosts(database, lease=60).register("h1", "first", figures(limit_bytes=1000 * MIB))


@pytest.mark.usefixtures("of_1000_mib")
def test_a_guess_denies_no_job_the_largest_host(database: Database) -> None:
    """It may have needed twice what it had when it was ended, or hardly more."""
    told(database, KILLED)
    found = Needs(database, learned=True).predict("sort", 1, None, None, 64 * MIB)
    assert (found.need, found.guessed) == (1000 * MIB, True)
    assert found.why.endswith("no more than the largest worker host has")
    assert Needs(database, learned=True).at_submit("sort", 1, None, 64 * MIB) == 64 * MIB, "nobody is refused for it"


@pytest.mark.usefixtures("of_1000_mib")
def test_a_margin_denies_no_job_the_largest_host(database: Database) -> None:
    """The only job so far took nearly all of it."""
    told(database, replace(KILLED, peak=960 * MIB, killed=False))
    found = Needs(database, learned=True).predict("sort", 1, None, None, 64 * MIB)
    assert (found.need, found.guessed) == (1000 * MIB, False)


@pytest.mark.usefixtures("of_1000_mib")
def test_what_earlier_jobs_did_take_is_no_guess(database: Database) -> None:
    told(database, *BY_INPUT)
    assert Needs(database, learned=True).at_submit("sort", 1, 800 * MIB, 64 * MIB) > 2400 * MIB


@pytest.mark.usefixtures("of_1000_mib")
def test_who_was_taken_in_is_denied_nothing_for_what_was_learned_since(database: Database) -> None:
    """A line drawn far beyond what was seen may be wrong: two jobs of 1.9 GiB were foreseen to need 5 once."""
    needs = Needs(database, learned=True)
    told(database, *BY_INPUT)
    assert needs.foresee("sort", 1, 800 * MIB, 64 * MIB) == 1000 * MIB
    assert needs.predict("sort", 1, None, 800 * MIB, 64 * MIB).need == 1000 * MIB


def test_without_a_host_nothing_is_too_much(database: Database) -> None:
    told(database, KILLED)
    assert need(Needs(database, learned=True), None, 64) > 1200


def test_nothing_is_guessed_where_only_attempts_of_unknown_input_were_ended(database: Database) -> None:
    told(database, *BY_INPUT, replace(KILLED, peak=3200 * MIB))
    needs = Needs(database, learned=True)
    assert needs.at_submit("sort", 1, 800 * MIB, 64 * MIB) > 2400 * MIB
    assert needs.at_submit("sort", 1, None, 64 * MIB) == 64 * MIB
