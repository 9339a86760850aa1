"""Pipelines as data: what is refused, what a parcel keeps, which words the public sees."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ncr_worker.job import State
from ncr_worker.pipeline import MIB, Args, Parcel, Pipeline, Run, Stage, stage


class CountArgs(Args):
    upto: int


class Count(Parcel):
    args: CountArgs
    seen: tuple[int, ...] = ()


@stage(weight=2, attempts=7, local=True, memory=lambda parcel: parcel.args.upto * MIB)
def big(_run: Run, parcel: Count) -> Count:
    return parcel.evolve(seen=(*parcel.seen, parcel.args.upto))


@stage()
def small(_run: Run, parcel: Count) -> Count:
    return parcel


def count(**options: Any) -> Pipeline[Count]:
    return Pipeline("count", CountArgs, Count, (big, small), **options)


class Mean(Parcel):
    args: CountArgs
    value: float


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.5])
def test_every_number_comes_back_from_a_checkpoint(value: float) -> None:
    written = Mean(args=CountArgs(upto=1), value=value).model_dump_json()
    assert repr(Mean.model_validate_json(written).value) == repr(value)


def test_a_stage_is_its_function_with_its_options() -> None:
    assert isinstance(big, Stage)
    assert (big.name, big.weight, big.attempts, big.local) == ("big", 2, 7, True)
    assert (small.name, small.weight, small.local, small.memory) == ("small", 1, False, None)


def test_a_stage_needs_its_own_estimate_or_else_the_pipelines() -> None:
    pipeline = count(memory=32 * MIB)
    parcel = pipeline.start(CountArgs(upto=3))
    assert pipeline.need(big, parcel) == 3 * MIB
    assert pipeline.need(small, parcel) == 32 * MIB


@pytest.mark.parametrize("stages", [(), (small, small), (big, small, big)])
def test_a_pipeline_without_stages_or_with_one_twice_is_refused(stages: tuple[Stage[Count], ...]) -> None:
    with pytest.raises(ValueError, match="count: stages"):
        Pipeline("count", CountArgs, Count, stages)


def test_a_word_for_an_unknown_stage_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="medium"):
        count(words={"big": "busy", "medium": "hm"})


@pytest.mark.parametrize("state", State)
def test_every_state_has_a_public_word(state: State) -> None:
    assert count().word(state, None)


def test_words_of_a_stage_show_only_while_it_runs() -> None:
    pipeline = count(words={"big": "lifting", "failed": "broken"})
    assert pipeline.word(State.RUNNING, "big") == "lifting"
    assert pipeline.word(State.CANCELLING, "big") == "lifting"
    assert pipeline.word(State.RUNNING, "small") == "processing"
    assert pipeline.word(State.QUEUED, "big") == "pending"
    assert pipeline.word(State.FAILED, "big") == "broken"


def test_arguments_are_checked_at_the_edge() -> None:
    with pytest.raises(ValidationError):
        CountArgs.model_validate({"upto": 1, "surprise": True})
    with pytest.raises(ValidationError):
        CountArgs.model_validate({})


def test_evolve_leaves_the_parcel_alone() -> None:
    parcel = count().start(CountArgs(upto=1))
    assert parcel.evolve(seen=(5,)).seen == (5,)
    assert parcel.seen == ()
    with pytest.raises(ValidationError):
        parcel.seen = (6,)  # type: ignore[misc]


@given(upto=st.integers(), seen=st.lists(st.integers()).map(tuple))
def test_a_checkpoint_gives_back_the_same_parcel(upto: int, seen: tuple[int, ...]) -> None:
    parcel = Count(args=CountArgs(upto=upto), seen=seen)
    assert Count.model_validate_json(parcel.model_dump_json()) == parcel
