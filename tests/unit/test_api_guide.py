"""docs/api.md shows every route, and no other; its Python is Python."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from ncr_worker.api.application import create_app
from ncr_worker.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_guide_shows_every_route() -> None:
    shown = {path for _, path in re.findall(r"(\$API|GET )(/[^\s\"'?)`]*)", PAGE)}
    shown = {
        path.replace("$TASK", "{task_id}").replace("$BATCH", "{batch_id}").replace("$HOST", "{host}") for path in shown
    }
    assert shown == set(create_app(Settings(_env_file=None)).openapi()["paths"]) - {"/"}


def test_its_python_can_be_read() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)
