"""What routes ask for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, cast

from fastapi import Depends, Path, Request

from ncr_worker.app import App
from ncr_worker.worker.inspection import Inspector


async def _app(request: Request) -> App:
    return cast(App, request.app.state.app)


async def _inspector(request: Request) -> Inspector:
    return cast(Inspector, request.app.state.inspector)


async def _now() -> datetime:
    return datetime.now(UTC)


TheApp = Annotated[App, Depends(_app)]
TheInspector = Annotated[Inspector, Depends(_inspector)]
Now = Annotated[datetime, Depends(_now)]
Id = Annotated[str, Path(max_length=36, pattern="^[A-Za-z0-9-]+$", examples=["0b0f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c"])]
