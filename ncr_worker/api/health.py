"""Who we are, and whether all is well."""

from __future__ import annotations

from fastapi import APIRouter, Response

from ncr_worker import __version__
from ncr_worker.api.dependencies import Now, TheApp
from ncr_worker.api.problems import documented
from ncr_worker.api.schemas import NAME, Probe, Service
from ncr_worker.ledger import schema
from ncr_worker.views import answers

router = APIRouter(tags=["service"])

LINKS = {
    "docs": "/docs",
    "redoc": "/redoc",
    "openapi": "/openapi.json",
    "health": "/health",
    "metrics": "/metrics",
    "jobs": "/jobs",
    "batches": "/batches",
}


@router.get("/", summary="Name, version, links", responses=documented())
async def root() -> Service:
    """Where to go from here."""
    return Service(name=NAME, version=__version__, links=LINKS)


@router.get(
    "/health",
    summary="Whether all parts work",
    responses=documented() | {503: {"model": answers.Health, "description": "Jobs cannot be stored"}},
)
def health(app: TheApp, response: Response, now: Now) -> answers.Health:
    """Unhealthy (503): the database is away or not migrated. Degraded (200): Redis is away, or no worker is up."""
    found = answers.health(app.ledger, app.board, now)
    if found.status == "unhealthy":
        response.status_code = 503
    return found


@router.get("/health/live", summary="Probe: the process answers", responses=documented())
async def live() -> Probe:
    """For a liveness probe: asks nothing else, so an outage elsewhere never restarts the API."""
    return Probe(status="ok")


@router.get("/health/ready", summary="Probe: jobs can be stored", responses=documented(503))
def ready(app: TheApp) -> Probe:
    """For a readiness probe: the database answers and its schema is current."""
    schema.require_current(app.database)
    return Probe(status="ok")
