"""Why a job gets so much memory, as people see it: in words, and as a plot in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.filesize import decimal

from ncr_worker.cli.gauge import prediction_view
from ncr_worker.cli.plot import Axis
from ncr_worker.memory.needs import Basis
from ncr_worker.memory.predictor import NOISE, Fit, Observation
from ncr_worker.pipeline import GIB, MIB
from ncr_worker.views.explain import MemoryFacts
from ncr_worker.views.prediction import NeedExplanation, explained

RISING = [Observation(size * MIB, size * MIB // 2, 9.0) for size in range(100, 2100, 100)]
STEP = [Observation(size * MIB, (100 if size < 1000 else 700) * MIB, 9.0) for size in range(100, 2100, 50)]
EVEN = [Observation(size * MIB, (400 + size % 7) * MIB, 9.0) for size in range(100, 2100, 100)]
FALLING = [Observation(2100 * MIB - (one.input_bytes or 0), one.peak, 9.0) for one in RISING]
KILLED = Observation(2000 * MIB, 300 * MIB, 9.0, killed=True)
BLIND = [Observation(None, peak * MIB, 9.0) for peak in (40, 50, 60)]
VERSION = 2


def found(
    own: Sequence[Observation],
    earlier: Sequence[Observation] = (),
    *,
    size: int | None = None,
    measure: str | None = "input_bytes",
) -> NeedExplanation:
    fit = Fit(own, earlier)
    return explained(Basis(fit.predict(size, 64 * MIB), fit, measure, size), VERSION, {})


def shown(found: NeedExplanation, width: int = 80, *, had: int | None = None, used: int | None = None) -> list[str]:
    facts = MemoryFacts(
        predicted_bytes=None,
        need_bytes=had or 1,
        reserved_bytes=had,
        peak_bytes=used,
        runs=0,
        usual_peak_bytes=None,
        largest_peak_bytes=None,
    )
    lines = prediction_view(found, width, facts if had else None)
    return [line for text in lines for line in str(text).splitlines()]


def rows(lines: Sequence[str]) -> list[str]:
    """Of the plot, the topmost first, without what stands at its left."""
    return [line[10:] for line in lines if line[9:10] in ("│", "┤")]


def place(lines: Sequence[str], mark: str) -> tuple[float, float]:
    """Where in the plot a mark stands: shares of its width and height."""
    plot = rows(lines)
    [(row, column)] = [(row, line.index(mark)) for row, line in enumerate(plot) if mark in line]
    return column / len(plot[0]), 1 - row / (len(plot) - 1)


# --- in words ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "text"),
    [
        (found(RISING, size=500 * MIB), "it grows with the input, by a line, with TOP: enough for 20 of 20 that ended"),
        (found(FALLING, size=MIB), "it falls as the input grows, by a line, with TOP: enough for 20 of 20 that ended"),
        (found(RISING, size=1, measure="declared"), "it grows with the declared need, by a line, with TOP: enough for"),
        (found(STEP, size=MIB), "it is the largest peak of the jobs with the nearest input, times a factor, with TOP:"),
        (found(EVEN, size=MIB), "the input tells nothing, so it is the same for all, with TOP: enough for 20 of 20"),
        (
            found(BLIND, measure=None),
            "nothing is known of their input, so it is the same for all, with TOP: enough for",
        ),
        (found(BLIND[:1], measure=None), "it is the peak of the only job so far, with TOP"),
        (found([*BLIND, RISING[0]], size=MIB), "it is the peak of the only job so far whose input is known, with TOP"),
        (found([]), "it is declared by its pipeline (no job of this kind has ended yet)"),
    ],
)
def test_the_reason_is_told_in_words(given: NeedExplanation, text: str) -> None:
    percent = f"{given.margin_percent:g} % and " if given.margin_percent else ""
    assert given.text.startswith(text.replace("TOP", f"{percent}{decimal(NOISE)} on top"))


def test_an_input_that_is_not_known_yet_is_told() -> None:
    text = found(RISING).text
    assert text.startswith("it grows with the input, by a line, ")
    assert ". As long as the input is not known it is the same for all, with " in text
    assert "not known" not in found(RISING, size=MIB).text


def test_for_how_many_it_would_have_been_enough_is_told() -> None:
    high = Observation(1000 * MIB, 900 * MIB, 0.01)  # so short that nothing is to be saved with it
    given = found([*RISING, high, KILLED], size=500 * MIB)
    assert (given.jobs, given.enough_for, len(given.points)) == (21, 20, 22)
    assert given.text.endswith("enough for 20 of 21 that ended")


def test_a_guess_and_a_limit_are_told() -> None:
    guess = replace(KILLED, peak=1500 * MIB)
    assert found([*RISING, guess], size=MIB).text.endswith("are taken to have needed twice what they used")
    assert "twice" not in found([*RISING, KILLED], size=MIB).text, "a job has ended that needed as much"
    fit = Fit(RISING)
    capped = replace(fit.predict(2000 * MIB, 0), need=1000 * MIB)
    text = explained(Basis(capped, fit, "input_bytes", 2000 * MIB), VERSION, {}).text
    assert text.endswith(". It is no more than the largest worker host has")


def test_jobs_of_this_version_and_of_those_before_are_told_apart() -> None:
    mixed = found(RISING[:3], RISING[3:])
    assert (mixed.own, len(mixed.points), mixed.points[-1].size_bytes) == (3, 20, RISING[2].input_bytes)
    assert "rests on  20 jobs of version 2 (3) and of those before (17)" in shown(mixed)
    assert "rests on  20 jobs of versions before 2" in shown(found([], RISING))
    assert "rests on  1 job of version 2" in shown(found(RISING[:1]))
    assert "rests on  21 jobs of version 2; 1 ran out of memory" in shown(found([*RISING, KILLED]))


def test_small_typical_and_large_inputs_are_told_what_they_would_get() -> None:
    given, fit = found(RISING), Fit(RISING)
    sizes = {"smallest": 100 * MIB, "typical": 1000 * MIB, "largest": 2000 * MIB}
    needs = [fit.predict(size, 0).need for size in sizes.values()]
    assert {each.name: each.size_bytes for each in given.sizes} == sizes
    assert [each.need_bytes for each in given.sizes] == needs
    assert f"typical   input so far, 1.0 GB: gets {decimal(needs[1])}" in shown(given)


# --- as figures ----------------------------------------------------------------------------------------
def test_the_curve_reaches_from_the_smallest_to_the_largest_or_to_this_job() -> None:
    sizes = [each.size_bytes for each in found(RISING).curve]
    assert (sizes[0], sizes[-1]) == (100 * MIB, 2000 * MIB)
    assert found(RISING, size=3000 * MIB).curve[-1].size_bytes == 3000 * MIB
    assert found(RISING, size=0).curve[0].size_bytes == 0
    curve = found(RISING, size=500 * MIB).curve
    assert len(curve) == 21
    assert all(one.line_bytes < one.need_bytes for one in curve)


@pytest.mark.parametrize(
    "given",
    [found([]), found(RISING[:1]), found(BLIND, measure=None), found([RISING[0]] * 5, size=RISING[0].input_bytes)],
    ids=["nothing", "one", "no input", "one input"],
)
def test_where_nothing_is_to_draw_there_is_no_plot(given: NeedExplanation) -> None:
    assert (given.curve, given.sizes, rows(shown(given))) == ([], [], [])


# --- as a plot -----------------------------------------------------------------------------------------
def test_the_plot_shows_jobs_line_and_this_job_where_they_are() -> None:
    lines = shown(found([*RISING, KILLED], size=1000 * MIB), had=560 * MIB, used=200 * MIB)
    assert place(lines, "◇") == pytest.approx((0.5, 0.52), abs=0.09), "its need is half of the largest"
    assert place(lines, "◆") == pytest.approx((0.5, 0.19), abs=0.09)
    assert place(lines, "✕") == pytest.approx((1.0, 0.28), abs=0.09)
    assert sum(line.count("•") for line in rows(lines)) >= 15
    assert " ".join(lines[-2].split()) == "• a job ✕ ran out of memory ◇ its reservation ◆ its peak"
    assert "⠤⠤ what a job gets  ⠄⠠ the same without its margin" in lines[-1]


def test_what_is_not_there_is_not_explained() -> None:
    assert not any(mark in "".join(shown(found(RISING))) for mark in "✕◇◆")


def test_a_few_huge_ones_do_not_press_the_others_into_a_corner() -> None:
    sizes = [2**power * MIB for power in range(12)]
    lines = shown(found([Observation(size, 2 * size, 9.0) for size in sizes]))
    assert sum(line.count("•") for line in rows(lines)) == len(sizes)
    assert sum("equal steps: equal ratios" in line for line in lines) == 2


@pytest.mark.parametrize("ratios", [False, True])
def test_an_axis_goes_from_end_to_end(ratios: bool) -> None:
    axis = Axis(1, 1000, 50, ratios)
    dots = [axis.dot(value) for value in range(1, 1001)]
    assert (dots[0], dots[-1], dots) == (0, 49, sorted(dots))


jobs = st.builds(
    Observation,
    st.one_of(st.just(7), st.integers(0, 2**50)),
    st.integers(0, 2**45),
    st.floats(0, 1e5),
    killed=st.booleans(),
)


@given(
    st.lists(jobs, max_size=30),
    st.one_of(st.none(), st.integers(0, 2**50)),
    st.integers(20, 200),
    st.integers(1, 2**45),
    st.one_of(st.none(), st.integers(0, 2**45)),
)
def test_whatever_was_learned_fits_the_terminal(
    history: list[Observation], size: int | None, width: int, had: int, used: int | None
) -> None:
    given = found(history, size=size)
    lines = shown(given, width, had=had, used=used)
    plot = rows(lines)
    assert bool(plot) == bool(given.curve)
    assert len({len(row) for row in plot}) <= 1
    assert all(len(row) + 10 <= max(min(width, 80), 19) for row in plot)


def test_jobs_of_unknown_input_do_not_make_the_words_contradict_the_figures() -> None:
    mixed = [*EVEN, *(replace(one, peak=GIB) for one in BLIND)]
    known, unknown = found(mixed, size=500 * MIB), found(mixed)
    assert known.enough_for == 23
    assert "enough for 23 of 23 that ended" in known.text
    assert unknown.need_bytes > GIB
    assert unknown.text.startswith("it is the same for all whose input is known, with ")
    assert ". As long as the input is not known it is the same for all, with " in unknown.text
