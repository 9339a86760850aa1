"""What Prometheus reads: requests that this API answered, what the ledger says, what every worker host has counted."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from ncr_worker import __version__
from ncr_worker.api.dependencies import TheApp
from ncr_worker.api.problems import documented
from ncr_worker.app import App
from ncr_worker.job import State
from ncr_worker.ledger.pauses import Scope
from ncr_worker.memory.drain import Asked
from ncr_worker.metrics import Reports
from ncr_worker.sql import DatabaseAway

FRESH = 2.0
"""Seconds for which what was read of the ledger serves further scrapes."""
LATENCIES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
EXAMPLE = """# HELP ncr_jobs Jobs that the ledger holds
# TYPE ncr_jobs gauge
ncr_jobs{kind="deliver",state="running"} 4.0
"""

Labels = TypeVar("Labels", bound=tuple[str, ...])

router = APIRouter(tags=["statistics"])


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=PlainTextResponse,
    responses=documented() | {200: {"content": {"text/plain": {"example": EXAMPLE}}}},
)
def metrics(request: Request, app: TheApp) -> Response:
    """Of this API, of the ledger, and of all worker hosts: one place to scrape. Without the database it answers with
    what is known here, and `ncr_ledger_up 0`."""
    found = cast(Exposition, request.app.state.exposition).text(app)
    return Response(found, media_type=CONTENT_TYPE_PLAIN_0_0_4)


class Exposition:
    """One for each API process; safe to share between threads.

    With several processes each counts for itself, unless PROMETHEUS_MULTIPROC_DIR names a folder that they share.
    """

    def __init__(self) -> None:
        # Else each counter has one more series, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "ncr_http_requests", "Requests answered", ["route", "method", "status"], registry=self._registry
        )
        self._latencies = Histogram(
            "ncr_http_request_seconds",
            "Time until the answer began",
            ["route", "method"],
            registry=self._registry,
            buckets=LATENCIES,
        )
        self._lock = threading.Lock()
        self._ledger: Sequence[Metric] = ()
        self._read_at = -FRESH

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """`route`: the template, never the path that a client sent: there are endlessly many of these."""
        method = method if method in METHODS else "other"
        self._requests.labels(route, method, str(status)).inc()
        self._latencies.labels(route, method).observe(seconds)

    def text(self, app: App) -> bytes:
        return generate_latest(_Families([*self._http(), *self._of_ledger(app)]))

    def _http(self) -> Iterable[Metric]:
        if values.ValueClass._multiprocess:
            found: Iterable[Metric] = MultiProcessCollector(None).collect()  # type: ignore[no-untyped-call]
            return found
        return self._registry.collect()

    def _of_ledger(self, app: App) -> Sequence[Metric]:
        with self._lock:  # scrapers that come together wait for one answer
            if time.monotonic() - self._read_at >= FRESH:
                self._ledger, self._read_at = _read(app), time.monotonic()
            return self._ledger


class _Families(Collector):
    """Families that are there already, as generate_latest asks for them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def with_hosts(reports: Mapping[str, str]) -> list[Metric]:
    """The families of all hosts' texts, each sample with the host that it is from."""
    families: dict[str, Metric] = {}
    for host, text in reports.items():
        for family in text_string_to_metric_families(text):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            whole.samples += [sample._replace(labels={**sample.labels, "host": host}) for sample in family.samples]
    return list(families.values())


def _read(app: App) -> list[Metric]:
    build = {(__version__, platform.python_version()): 1}
    known = [
        _gauge("ncr_build_info", "The API's version", ["version", "python"], build),
        _gauge("ncr_redis_up", "Whether Redis answers", [], {(): app.board.ping()}),
    ]
    try:
        found = [*_jobs(app), *_intake(app), *_hosts(app)]
    except (DatabaseAway, SQLAlchemyError):
        return [*known, _gauge("ncr_ledger_up", "Whether the database answers", [], {(): 0})]
    return [*known, _gauge("ncr_ledger_up", "Whether the database answers", [], {(): 1}), *found]


def _jobs(app: App) -> list[Metric]:
    none = {(kind, state): 0 for kind in app.pipelines for state in State}
    backlog = {(entry.kind, entry.reason): entry for entry in app.history.backlog()}
    waiting = {at: entry.jobs for at, entry in backlog.items()}
    later = {at: entry.scheduled for at, entry in backlog.items()}
    need = {at: entry.need for at, entry in backlog.items()}
    by = ["kind", "reason"]
    return [
        _gauge("ncr_jobs", "Jobs that the ledger holds", ["kind", "state"], none | app.history.counts()),
        _gauge("ncr_backlog_jobs", "Jobs that wait", by, waiting),
        _gauge("ncr_backlog_scheduled_jobs", "Those of them that are due later, such as retries", by, later),
        _gauge("ncr_backlog_need_bytes", "Memory that waiting jobs need, all together", by, need),
    ]


def _intake(app: App) -> list[Metric]:
    paused = {pause.scope for pause in app.pauses.active()}
    accepting = {(kind,): _accepts(app, kind, pipeline.memory) for kind, pipeline in app.pipelines.items()}
    return [
        _gauge("ncr_intake_paused", "Whether a person has paused the intake", [], {(): Scope.INTAKE in paused}),
        _gauge("ncr_work_paused", "Whether a person has paused the start of jobs", [], {(): Scope.WORK in paused}),
        _gauge("ncr_accepting_jobs", "Whether a job would be taken in now", ["kind"], accepting),
    ]


def _accepts(app: App, kind: str, need: int) -> bool:
    return app.admission.explain(Asked(kind, need), fresh=False).accepting


def _hosts(app: App) -> list[Metric]:
    hosts = app.ledger.hosts.live()
    reports = Reports(app.database).read()

    def gauge(name: str, text: str, figures: Sequence[float]) -> Metric:
        each = {(host.id,): figure for host, figure in zip(hosts, figures, strict=True)}
        return _gauge(f"ncr_host_{name}", text, ["host"], each)

    return [
        _gauge("ncr_hosts", "Worker hosts that are alive", [], {(): len(hosts)}),
        gauge("draining", "Whether it takes no more jobs", [host.state == "draining" for host in hosts]),
        gauge("limit_bytes", "Its memory limit", [host.figures.limit_bytes for host in hosts]),
        gauge("budget_bytes", "Memory that jobs may use", [host.figures.budget for host in hosts]),
        gauge("others_bytes", "Anonymous memory of other programs", [host.figures.others for host in hosts]),
        gauge("reserved_bytes", "Memory that running jobs hold", [host.figures.reserved for host in hosts]),
        gauge("slots", "Jobs that may run at once", [host.figures.slots for host in hosts]),
        gauge("running_jobs", "Jobs that are on it", [host.figures.running for host in hosts]),
        gauge("heartbeat_age_seconds", "Time since its heartbeat", [host.seconds_since_seen for host in hosts]),
        *with_hosts({host.id: reports[host.id] for host in hosts if host.id in reports}),
    ]


def _gauge(name: str, text: str, labels: Sequence[str], figures: Mapping[Labels, float]) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=labels)
    for at, figure in figures.items():
        gauge.add_metric(at, figure)
    return gauge
