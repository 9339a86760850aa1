"""For operators: stop the intake of jobs or the start of waiting ones, and go on."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body

from ncr_worker.api.dependencies import Caller, TheApp
from ncr_worker.api.problems import documented
from ncr_worker.api.schemas import PauseOrder, ResumeOrder
from ncr_worker.views.answers import PauseList, pause_list

router = APIRouter(tags=["control"])

_PAUSE = {"scope": "intake", "note": "moving the bucket"}


@router.get("/pauses", summary="What people have stopped", responses=documented(503))
def list_pauses(app: TheApp) -> PauseList:
    """Empty: nothing is paused."""
    return pause_list(app.pauses.active())


@router.post("/pause", summary="Stop the intake, or the start of jobs", responses=documented(400, 413, 422, 503))
def pause(order: Annotated[PauseOrder, Body(examples=[_PAUSE])], app: TheApp, caller: Caller) -> PauseList:
    """`intake`: new jobs are refused with 503. `work`: jobs are taken in, none is started; what runs goes on.

    Of what is paused already the note is replaced. The answer is all that is paused now.
    """
    app.pause(order.scope, actor=caller, note=order.note)
    return pause_list(app.pauses.active())


@router.post("/resume", summary="Go on", responses=documented(400, 413, 422, 503))
def resume(
    order: Annotated[ResumeOrder, Body(examples=[{"scope": "intake"}])], app: TheApp, caller: Caller
) -> PauseList:
    """Of what was not paused it does no harm. The answer is all that is paused now."""
    app.resume(order.scope, actor=caller)
    return pause_list(app.pauses.active())
