"""Pipeline `stuck_report`: says which jobs do not get on, why, and what to do. Beat submits it (STUCK_REPORT_AT).

Each finding is a line in the log, and is kept as the job's result.
"""

from __future__ import annotations

import logging

from pydantic import BaseModel, ConfigDict

from ncr_worker.job import Reason
from ncr_worker.ledger.pauses import Scope
from ncr_worker.pipeline import MIB, Args, Parcel, Pipeline, Run, stage
from ncr_worker.stuck import Scene, Stuck, watch
from ncr_worker.views.job import FOR_MEMORY, WAITS

KIND = "stuck_report"
log = logging.getLogger(__name__)


class StuckReportArgs(Args):
    @property
    def ref(self) -> str:
        return KIND


class Finding(BaseModel):
    """One job. `reason`: why it does not get on. `seconds`: since its host's last heartbeat, or since it was due."""

    model_config = ConfigDict(frozen=True)

    task_id: str
    job_id: str
    kind: str
    state: str
    host: str | None
    seconds: float | None
    reason: str
    remedy: str


class StuckReport(Parcel):
    """`findings`: the oldest jobs; `total`: how many there are in all."""

    args: StuckReportArgs
    findings: tuple[Finding, ...] = ()
    total: int = 0


@stage()
def report(run: Run, parcel: StuckReport) -> StuckReport:
    scene = run.use(watch).look(run.settings.stuck_after)
    found = findings(scene)
    for finding in found:
        # "stuck_…": job_id and the like are this report's own.
        fields = {f"stuck_{name}": value for name, value in finding.model_dump().items()}
        log.warning("job %s does not get on: %s. %s", finding.task_id, finding.reason, finding.remedy, extra=fields)
    total = scene.total_lost + scene.total_overdue
    log.info("%d jobs do not get on", total)
    return parcel.evolve(findings=found, total=total)


def findings(scene: Scene) -> tuple[Finding, ...]:
    lost = [_finding(stuck, *_why_lost(stuck)) for stuck in scene.lost]
    return (*lost, *(_finding(stuck, *_why_overdue(stuck, scene)) for stuck in scene.overdue))


def _finding(stuck: Stuck, reason: str, remedy: str) -> Finding:
    return Finding(
        task_id=stuck.job_id,
        job_id=stuck.ref,
        kind=stuck.kind,
        state=stuck.state,
        host=stuck.host,
        seconds=None if stuck.seconds is None else round(stuck.seconds),
        reason=reason,
        remedy=remedy,
    )


def _why_lost(stuck: Stuck) -> tuple[str, str]:
    silence = "is unknown" if stuck.seconds is None else f"has sent no heartbeat for {stuck.seconds:.0f} s"
    remedy = f"Start {stuck.host} again; a live worker host takes the job over too, see its log if it does not"
    return f"its host {stuck.host} {silence}", remedy


def _why_overdue(stuck: Stuck, scene: Scene) -> tuple[str, str]:
    for pause in scene.pauses:
        if pause.scope is Scope.WORK:
            return f"nothing is started now: paused by {pause.actor}", "Run: ncr resume --work"
    if not scene.hosts:
        return "no worker is up", "Start one: ncr worker"
    if stuck.reason in FOR_MEMORY:
        most = max(host.figures.budget for host in scene.hosts)
        reason = f"needs {stuck.need:,} bytes, the freest worker host may use {most:,}"
        return reason, "Wait for the jobs that run, or give a worker host more memory (MAX_MEMORY_USAGE_PERCENT)"
    waits = WAITS.get(stuck.reason or Reason.NEW, str(stuck.reason))
    if stuck.reason == Reason.NEW and stuck.batch_id:
        return waits, "Its batch runs BATCH_SIZE jobs at once; raise that for new ones, or add worker hosts"
    return waits, "Add worker hosts, or raise CELERY_WORKER_CONCURRENCY"


PIPELINE = Pipeline(KIND, StuckReportArgs, StuckReport, (report,), memory=32 * MIB, exclusive=lambda _args: KIND)
