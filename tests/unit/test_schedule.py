"""The moments of a schedule: each is computed from the crontab alone, so that every beat finds the same ones."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from ncr_worker.errors import ConfigError
from ncr_worker.settings import Settings
from ncr_worker.worker.schedule import ENTRIES, name_of, parse_crontab, ticks

APP = Celery("test", set_as_current=False)
MOMENTS = st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
CRONTABS = st.builds(
    "{} {} {} * {}".format,
    st.sampled_from(["0", "15", "*/7", "59", "1,2,40-50"]),
    st.sampled_from(["*", "3", "*/5", "0,23"]),
    st.sampled_from(["*", "1", "31", "10-20"]),
    st.sampled_from(["*", "0", "mon-fri"]),
)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def first(text: str, after: str, number: int) -> list[str]:
    return [name_of(tick) for tick in islice(ticks(parse_crontab("AT", text, APP), at(after)), number)]


def test_ticks_are_those_of_the_crontab_in_utc() -> None:
    half_hours = ["2026-03-29T00:30Z", "2026-03-29T01:00Z", "2026-03-29T01:30Z"]
    assert first("*/30 * * * *", "2026-03-29T00:00:00", 3) == half_hours
    assert first("*/30 * * * *", "2026-03-29T00:29:59.9", 1) == ["2026-03-29T00:30Z"]
    assert first("15 3 * * *", "2026-02-28T03:15", 2) == ["2026-03-01T03:15Z", "2026-03-02T03:15Z"]
    assert first("0 2 1 4 *", "2026-04-01T02:00", 2) == ["2027-04-01T02:00Z", "2028-04-01T02:00Z"]
    assert first("0 6 * * mon", "2026-11-22T05:00", 1) == ["2026-11-23T06:00Z"]


@given(CRONTABS, MOMENTS, st.integers(0, 20_000))
def test_the_ticks_do_not_depend_on_where_one_begins_to_count(text: str, begin: datetime, minutes: int) -> None:
    cron = parse_crontab("AT", text, APP)
    later = begin + timedelta(minutes=minutes)
    known = list(islice(ticks(cron, begin), 50))
    assert all(one < other for one, other in pairwise(known))
    assert known[0] > begin
    behind = [tick for tick in known if tick > later]
    assert list(islice(ticks(cron, later), len(behind))) == behind


@pytest.mark.parametrize("text", ["", "daily", "* * * *", "61 * * * *", "0 0 30 2 *", "a b c d e", "*/0 * * * *"])
def test_what_is_no_crontab_is_refused_naming_the_setting(text: str) -> None:
    with pytest.raises(ConfigError, match="HOUSEKEEPING_AT") as error:
        parse_crontab("HOUSEKEEPING_AT", text, APP)
    assert "15 3 * * *" in error.value.remedy


@given(st.text(max_size=40))
def test_any_text_is_a_crontab_or_a_config_error(text: str) -> None:
    with suppress(ConfigError):
        parse_crontab("AT", text, APP)


def test_the_built_in_times_are_crontabs() -> None:
    for entry in ENTRIES:
        parse_crontab(entry.at, Settings.model_fields[entry.at].default, APP)
