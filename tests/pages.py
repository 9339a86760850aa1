"""What the pages of the documentation show, tried."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ncr_worker.pipeline import Pipeline


@contextmanager
def pipeline_of_page(page: Path, folder: Path, name: str) -> Iterator[Pipeline[Any]]:
    """The pipeline that a page shows as a whole module, imported as `name` from `folder`."""
    match = re.search(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert match, f"{page.name} shows a pipeline"
    (folder / f"{name}.py").write_text(match[1], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        found = importlib.import_module(name).PIPELINE
        assert isinstance(found, Pipeline)
        yield found
    del sys.modules[name]
