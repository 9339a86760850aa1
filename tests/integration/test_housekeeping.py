"""Housekeeping and the stuck report as jobs of a real runner, and what a user sees of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine import WorkerHost, worker_host
from ledgers import alter

from ncr_worker.app import App
from ncr_worker.job import Job, Reason, State
from ncr_worker.pipeline import MIB
from ncr_worker.runner import Runner
from ncr_worker.views.models import JobRecord


class Keeper:
    """A worker host that runs what beat submits."""

    def __init__(self, host: WorkerHost, app: App, runner: Runner) -> None:
        self.host = host
        self.app = app
        self.runner = runner

    def run(self, kind: str) -> Job:
        pipeline = self.app.pipeline(kind)
        stored = self.app.submit_tick(kind, pipeline.args(), key=f"schedule:{kind}:now")
        picked = self.host.pick()
        assert picked.job_id == stored.job_ids[0]
        self.runner.run(kind, picked.job_id, picked.token, 0)
        return self.host.ledger.reads.job(picked.job_id)

    def record(self, job: Job) -> JobRecord:
        return self.app.look.record(job.id)

    def ended(self, days: float, **changes: Any) -> str:
        job_id = self.host.submit(kind="deliver", **changes)
        over = self.host.ledger.reads.job(job_id).created_at - days * 86400
        alter(self.host.ledger, job_id, state=State.FAILED.value, finished_at=over)
        return job_id


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    with worker_host(tmp_path, retention_days=10, idempotency_hours=48, stuck_after=60) as host:
        app = App(host.settings)
        runner = Runner(host.settings, host.ledger, host.board, app.pipelines, host.slots)
        yield Keeper(host, app, runner)
        runner.connectors.close()
        app.close()


def test_housekeeping_removes_what_the_settings_say_and_tells_how_much(keeper: Keeper) -> None:
    gone = [keeper.ended(11) for _ in range(3)]
    kept = keeper.ended(9)
    job = keeper.run("housekeeping")
    assert (job.state, job.error) == (State.SUCCEEDED, None)
    assert keeper.record(job).result == {"jobs": 3, "batches": 0, "keys": 0, "observations": 0}
    assert [found.id for found in keeper.host.ledger.reads.jobs([*gone, kept])] == [kept]


def test_a_delivery_with_a_receipt_is_kept_for_longer(keeper: Keeper) -> None:
    delivered = keeper.ended(300)
    alter(keeper.host.ledger, delivered, state=State.SUCCEEDED.value)
    assert keeper.record(keeper.run("housekeeping")).result == {"jobs": 0, "batches": 0, "keys": 0, "observations": 0}
    assert keeper.host.ledger.reads.job(delivered).state is State.SUCCEEDED


def test_one_housekeeping_runs_at_a_time(keeper: Keeper) -> None:
    pipeline = keeper.app.pipeline("housekeeping")
    assert pipeline.exclusive(pipeline.args()) == "housekeeping"


def test_nothing_stuck_is_an_empty_report(keeper: Keeper) -> None:
    assert keeper.record(keeper.run("stuck_report")).result == {"findings": [], "total": 0}


def found(keeper: Keeper) -> dict[str, tuple[str, str]]:
    """task id -> reason and remedy, of a new report."""
    result = keeper.record(keeper.run("stuck_report")).result
    assert result is not None
    assert result["total"] == len(result["findings"])
    return {one["task_id"]: (one["reason"], one["remedy"]) for one in result["findings"]}


def overdue(keeper: Keeper, **changes: Any) -> str:
    job_id = keeper.host.submit(kind="deliver", **changes)
    alter(keeper.host.ledger, job_id, next_run_at=keeper.host.ledger.reads.job(job_id).next_run_at - 120)
    return job_id


def test_each_finding_is_one_line_with_what_to_do_and_is_kept(keeper: Keeper, caplog: pytest.LogCaptureFixture) -> None:
    lost = keeper.host.submit(kind="deliver", ref="A-7")
    alter(keeper.host.ledger, lost, state=State.RUNNING.value, host="h9", token=7)
    waiting = overdue(keeper)
    hungry = overdue(keeper, need=900 * MIB)
    alter(keeper.host.ledger, hungry, reason=Reason.NO_MEMORY.value)
    with caplog.at_level(logging.INFO):
        findings = found(keeper)
    assert findings.keys() == {lost, waiting, hungry}
    assert "host h9 is unknown" in findings[lost][0]
    assert "Start h9 again" in findings[lost][1]
    assert "CELERY_WORKER_CONCURRENCY" in findings[waiting][1]
    assert findings[hungry][0].startswith("needs 943,718,400 bytes, the freest worker host may use")
    lines = {getattr(record, "stuck_task_id", None): record for record in caplog.records}
    assert lines.keys() - {None} == findings.keys()
    assert lines[lost].__dict__["stuck_job_id"] == "A-7"
    for job_id, (reason, remedy) in findings.items():
        assert lines[job_id].levelno == logging.WARNING
        assert reason in lines[job_id].getMessage()
        assert lines[job_id].__dict__["stuck_remedy"] == remedy
