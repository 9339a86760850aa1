"""The pipeline in EXTENDING.md is a whole one: taken from the page and run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import pipeline_of_page
from pydantic import ValidationError

from ncr_worker.pipeline import Pipeline

PAGE = Path(__file__).parents[2] / "EXTENDING.md"


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline[Any]]:
    with pipeline_of_page(PAGE, tmp_path, "hello_of_the_page") as found:
        yield found


def test_its_arguments_are_checked(pipeline: Pipeline[Any]) -> None:
    with pytest.raises(ValidationError, match="name"):
        pipeline.args.model_validate({})


def test_its_stages_turn_arguments_into_a_result(pipeline: Pipeline[Any]) -> None:
    parcel = pipeline.start(pipeline.args.model_validate({"name": "world"}))
    for stage in pipeline.stages:
        parcel = stage.function(None, parcel)
    assert parcel.text == "hello world"
    assert type(parcel).model_validate_json(parcel.model_dump_json()) == parcel
