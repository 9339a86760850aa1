"""What routes ask for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, cast

from anyio import CapacityLimiter
from fastapi import Depends, Header, Path, Request

from ncr_worker.api.authentication import ANYBODY
from ncr_worker.app import App
from ncr_worker.views.models import BATCH, TASK
from ncr_worker.worker.inspection import Inspector


async def _app(request: Request) -> App:
    return cast(App, request.app.state.app)


async def _inspector(request: Request) -> Inspector:
    return cast(Inspector, request.app.state.inspector)


async def _watching(request: Request) -> CapacityLimiter:
    return cast(CapacityLimiter, request.app.state.watching)


async def _now() -> datetime:
    return datetime.now(UTC)


async def _caller(request: Request) -> str:
    name: str = getattr(request.state, "caller", ANYBODY)
    return name


TheApp = Annotated[App, Depends(_app)]
TheInspector = Annotated[Inspector, Depends(_inspector)]
Watching = Annotated[CapacityLimiter, Depends(_watching)]
Now = Annotated[datetime, Depends(_now)]
Caller = Annotated[str, Depends(_caller)]
"""Who calls, as the audit trail names him."""

_ID = "^[A-Za-z0-9-]+$"
Id = Annotated[str, Path(max_length=36, pattern=_ID, description="The `task_id` of the submit", examples=[TASK])]
BatchId = Annotated[str, Path(max_length=36, pattern=_ID, description="Of the submit", examples=[BATCH])]


async def _idempotency_key(
    caller: Caller,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=200,
            pattern="^[ -~]+$",
            description="Your word that a second request with the same key is the same request: send it again when "
            "you do not know whether the first arrived, and you get its answer. Take a new one for each new request.",
            examples=["3f1c9a52-4711"],
        ),
    ] = None,
) -> str | None:
    return None if key is None else f"{caller}/{key}"


IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]
"""The client's key, apart from those of other callers."""
