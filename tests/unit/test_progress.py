"""Percent never goes back while a job goes forward, and never leaves 0..100."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ncr_worker.progress import Progress, percent

STAGES = st.lists(st.floats(0.01, 1000), min_size=1, max_size=8).map(
    lambda weights: [(f"stage{number}", weight) for number, weight in enumerate(weights)]
)
FRACTIONS = st.lists(st.floats(0, 1), min_size=1, max_size=5).map(sorted)


@given(STAGES, FRACTIONS)
def test_percent_is_monotone_over_a_whole_run(weights: list[tuple[str, float]], fractions: list[float]) -> None:
    seen = [percent(weights, name, fraction) for name, _ in weights for fraction in fractions]
    assert seen == sorted(seen)
    assert all(0 <= value <= 100 for value in seen)


@given(STAGES)
def test_percent_begins_at_0_and_ends_at_100(weights: list[tuple[str, float]]) -> None:
    assert percent(weights, weights[0][0], 0) == 0
    assert percent(weights, weights[-1][0], 1) == 100


@given(STAGES, st.floats(allow_nan=False))
def test_a_fraction_out_of_range_counts_as_the_nearest_end(weights: list[tuple[str, float]], fraction: float) -> None:
    assert 0 <= percent(weights, weights[0][0], fraction) <= 100


def test_stages_count_by_their_weight() -> None:
    weights = [("plan", 1), ("fetch", 5), ("upload", 4)]
    assert percent(weights, "fetch", 0.5) == 35
    assert percent(weights, "upload", 0) == 60


@pytest.mark.parametrize("stage", [None, "unknown"])
def test_an_unknown_stage_is_0(stage: str | None) -> None:
    assert percent([("plan", 1)], stage, 1) == 0


def test_fraction_goes_by_bytes_where_known_else_by_files() -> None:
    assert Progress(files=1, total_files=4, bytes_done=3, bytes_total=4).fraction == 0.75
    assert Progress(files=1, total_files=4).fraction == 0.25
    assert Progress().fraction == 0


def test_rate_and_time_left() -> None:
    progress = Progress(bytes_done=100, bytes_total=300, seconds=2)
    assert progress.rate == 50
    assert progress.eta == 4


@pytest.mark.parametrize("progress", [Progress(), Progress(bytes_total=9, seconds=1), Progress(bytes_done=9)])
def test_time_left_is_unknown_before_there_is_a_rate(progress: Progress) -> None:
    assert progress.eta is None


@given(st.integers(0), st.integers(0), st.integers(0), st.integers(0))
def test_fraction_stays_in_range_whatever_was_reported(files: int, total: int, done: int, size: int) -> None:
    assert 0 <= Progress(files=files, total_files=total, bytes_done=done, bytes_total=size).fraction <= 1
