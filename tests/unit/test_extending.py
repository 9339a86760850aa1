"""The pipeline in EXTENDING.md is a whole one: taken from the page and run."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ncr_worker.pipeline import Pipeline

PAGE = Path(__file__).parents[2] / "EXTENDING.md"


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline[Any]]:
    match = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert match, "EXTENDING.md shows a pipeline"
    (tmp_path / "hello_of_the_page.py").write_text(match[1], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    found = importlib.import_module("hello_of_the_page").PIPELINE
    assert isinstance(found, Pipeline)
    yield found
    del sys.modules["hello_of_the_page"]


def test_its_arguments_are_checked(pipeline: Pipeline[Any]) -> None:
    with pytest.raises(ValidationError, match="name"):
        pipeline.args.model_validate({})


def test_its_stages_turn_arguments_into_a_result(pipeline: Pipeline[Any]) -> None:
    parcel = pipeline.start(pipeline.args.model_validate({"name": "world"}))
    for stage in pipeline.stages:
        parcel = stage.function(None, parcel)
    assert parcel.text == "hello world"
    assert type(parcel).model_validate_json(parcel.model_dump_json()) == parcel
