"""The pipeline in docs/memory.md that tells its own needs is a whole one: taken from the page and run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import pipeline_of_page

from ncr_worker.pipeline import GIB, MIB, Pipeline

PAGE = Path(__file__).parents[2] / "docs" / "memory.md"


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline[Any]]:
    with pipeline_of_page(PAGE, tmp_path, "sort_of_the_page") as found:
        yield found


def test_it_declares_by_its_input_if_that_is_known(pipeline: Pipeline[Any]) -> None:
    known, unknown = (pipeline.args.model_validate({"path": "x", **more}) for more in ({"bytes": 100 * MIB}, {}))
    assert (known.size, pipeline.declared(known)) == (100 * MIB, 332 * MIB)
    assert (unknown.size, pipeline.declared(unknown)) == (None, 1 * GIB)


def test_each_stage_says_what_it_needs_once_the_input_is_found(pipeline: Pipeline[Any], tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(b"b\na\n" * MIB)
    look, sort = pipeline.stages
    parcel = pipeline.start(pipeline.args.model_validate({"path": path}))
    assert (pipeline.need(look, parcel), pipeline.need(sort, parcel)) == (32 * MIB, 1 * GIB)
    parcel = look.function(None, parcel)
    assert (parcel.size, pipeline.need(sort, parcel)) == (4 * MIB, 44 * MIB)
    sort.function(None, parcel)
    assert path.with_suffix(".sorted").read_bytes() == b"a\n" * MIB + b"b\n" * MIB
