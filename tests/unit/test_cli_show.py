"""What the command line shows: times, lines about progress, and the patience of those who watch."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ncr_worker.cli.follow import Lines, Row, watch
from ncr_worker.cli.options import moment
from ncr_worker.cli.show import clean, duration
from ncr_worker.sql import DatabaseAway


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-0.2, "0.0 s"), (0.84, "0.8 s"), (42.4, "42 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("text", "ago"), [("90s", 90), ("15m", 900), ("2h", 7200), ("7d", 7 * 86400)])
def test_a_time_may_be_how_long_ago(text: str, ago: float) -> None:
    assert abs(datetime.now().astimezone() - moment(text) - timedelta(seconds=ago)) < timedelta(minutes=5)


def test_a_time_without_a_zone_is_local() -> None:
    assert moment("2026-11-22T09:30") == datetime(2026, 11, 22, 9, 30).astimezone()
    assert moment("2026-11-22") == datetime(2026, 11, 22).astimezone()
    assert moment("2026-11-22T09:30:00Z") == moment("2026-11-22T10:30:00+01:00")


@given(st.text(max_size=30))
def test_any_text_is_a_time_or_wrong_usage(text: str) -> None:
    try:
        found: object = moment(text).tzinfo
    except typer.BadParameter as wrong:
        found = "write it like" in wrong.message
    assert found


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    assert all(char.isprintable() or char in "\n\t" for char in clean(text))


def test_who_watches_waits_for_a_database_that_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    answers: Iterator[int | DatabaseAway] = iter(
        [1, DatabaseAway("it is away"), DatabaseAway("it is away"), 2, DatabaseAway("it is away"), 3]
    )

    def look() -> int:
        answer = next(answers)
        if isinstance(answer, DatabaseAway):
            raise answer
        return answer

    assert list(islice(watch(look, every=0), 3)) == [1, 2, 3]
    assert capsys.readouterr().err.count("ncr: it is away; waiting until it does") == 2, "once for each outage"


def test_plain_lines_tell_changes_of_status_and_not_each_figure() -> None:
    out = io.StringIO()
    lines = Lines(Console(file=out, width=200))
    lines.show([Row("1", "4711", "pending", 0.0), Row("2", "4712", "pending", 0.0)])
    lines.show([Row("1", "4711", "processing", 10.0, "fetch 1/9 files"), Row("2", "4712", "pending", 0.0)])
    lines.show([Row("1", "4711", "processing", 11.0, "fetch 2/9 files"), Row("2", "4712", "pending", 0.0)])
    said = [line.split(maxsplit=1)[1] for line in out.getvalue().splitlines()]
    assert said == ["4711  pending    0 %", "4712  pending    0 %", "4711  processing   10 %  fetch 1/9 files"]
