"""Who we are, and whether all is well."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from ncr_worker import __version__
from ncr_worker.api.dependencies import Now, TheApp
from ncr_worker.api.problems import documented
from ncr_worker.api.schemas import NAME, Health, Probe, Service
from ncr_worker.errors import ConfigError
from ncr_worker.ledger import schema
from ncr_worker.sql import DatabaseAway

router = APIRouter(tags=["service"])


@router.get("/", summary="Name, version, links", responses=documented())
async def root(request: Request) -> Service:
    """Where to go from here."""
    links = {"docs": "/docs", "redoc": "/redoc", "openapi": request.app.openapi_url, "health": "/health"}
    return Service(name=NAME, version=__version__, links=links)


@router.get(
    "/health",
    summary="Whether all parts work",
    responses=documented() | {503: {"model": Health, "description": "Jobs cannot be stored"}},
)
def health(app: TheApp, response: Response, now: Now) -> Health:
    """Unhealthy (503): the database is away or not migrated. Degraded (200): Redis is away, or no worker is up."""
    redis: Literal["connected", "disconnected"] = "connected" if app.board.ping() else "disconnected"
    try:
        schema.require_current(app.database)
        workers = len(app.ledger.hosts.live())
    except ConfigError:
        response.status_code = 503
        return Health(status="unhealthy", redis=redis, database="not_migrated", workers=0, timestamp=now)
    except (DatabaseAway, SQLAlchemyError):
        response.status_code = 503
        return Health(status="unhealthy", redis=redis, database="disconnected", workers=0, timestamp=now)
    all_well = redis == "connected" and workers > 0
    return Health(
        status="healthy" if all_well else "degraded", redis=redis, database="connected", workers=workers, timestamp=now
    )


@router.get("/health/live", summary="Probe: the process answers", responses=documented())
async def live() -> Probe:
    """For a liveness probe: asks nothing else, so an outage elsewhere never restarts the API."""
    return Probe(status="ok")


@router.get("/health/ready", summary="Probe: jobs can be stored", responses=documented(503))
def ready(app: TheApp) -> Probe:
    """For a readiness probe: the database answers and its schema is current."""
    schema.require_current(app.database)
    return Probe(status="ok")
