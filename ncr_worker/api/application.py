"""Builds the FastAPI application: middleware, routers, problems, one `App` for as long as it serves."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute

from ncr_worker import __version__
from ncr_worker.api import (
    authentication,
    batches,
    control,
    delivery,
    health,
    jobs,
    memory,
    metrics,
    openapi,
    problems,
    stats,
)
from ncr_worker.api.events import WATCHERS
from ncr_worker.api.metrics import Exposition
from ncr_worker.api.middleware import REQUEST_ID, BodyLimit, Measured, RequestContext
from ncr_worker.api.schemas import NAME
from ncr_worker.app import App
from ncr_worker.checks import Process, guard
from ncr_worker.settings import Settings, load_settings
from ncr_worker.worker.inspection import Inspector

log = logging.getLogger(__name__)

DESCRIPTION = """
Takes jobs in and tells how they are doing. A job that was answered with 202 is stored and is not lost.

Errors are `application/problem+json` (RFC 9457) with a stable `code`, a `detail` to act on, and a `request_id` that
is also in the header `X-Request-ID` and in the log. Where waiting helps there is a `Retry-After`.

A submit may carry an `Idempotency-Key`: sent again with the same body it stores nothing and has the first answer
(`Idempotency-Replayed: true`); with another body it is a 422, and a 409 while the first is not answered yet.

A delivery is `pending`, `waiting` (for memory), `processing`, `validation_passed`, `uploading`, then `completed`,
`validation_failed`, `failed` or `cancelled`. Times are RFC 3339 UTC, ids are opaque, sizes are bytes.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Nothing is connected before it serves. Raises ConfigError, also at the start of serving (old schema)."""
    settings = settings or load_settings()
    api = FastAPI(
        title=NAME,
        version=__version__,
        description=DESCRIPTION,
        lifespan=_lifespan(settings),
        generate_unique_id_function=_operation_id,
        license_info={"name": "MIT"},
    )
    locked = settings.auth == "keys"
    for part in (delivery, jobs, batches, control, memory, stats, metrics):
        api.include_router(part.router, **(authentication.DOCUMENTED if locked else {}))
    api.include_router(health.router)
    problems.install(api)
    openapi.complete(api)
    api.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    if locked:
        api.add_middleware(authentication.Authentication, callers=settings.callers)
    api.add_middleware(RequestContext)
    api.state.exposition = Exposition()
    api.add_middleware(Measured, answered=api.state.exposition.answered)
    if settings.cors_origins:  # outermost, so that browsers may read errors too
        api.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID, "Location", "Retry-After", delivery.REPLAYED],
        )
    return api


def _lifespan(settings: Settings) -> Any:
    @asynccontextmanager
    async def serve(api: FastAPI) -> AsyncIterator[None]:
        app = App(settings)
        inspector = Inspector(settings.broker_url)
        try:
            api.state.app, api.state.inspector = app, inspector
            api.state.watching = CapacityLimiter(WATCHERS)
            await run_in_threadpool(_check, app)
            yield
        finally:
            inspector.close()
            app.close()

    return serve


def _check(app: App) -> None:
    """What is away may come back; an old schema will not mend itself. Raises ConfigError."""
    log.info("kinds of jobs: %s", ", ".join(sorted(app.pipelines)))
    for note in guard(app.settings, Process.API):
        log.warning("starting all the same: %s", note)


def _operation_id(route: APIRoute) -> str:
    return route.name
