"""What the stuck report says of a job: why it does not get on, and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from ncr_worker.job import Reason, State
from ncr_worker.ledger import Host, HostFigures
from ncr_worker.ledger.pauses import Pause, Scope
from ncr_worker.pipeline import MIB
from ncr_worker.pipelines.stuck_report import findings
from ncr_worker.stuck import Scene, Stuck

HOST = Host("h1", "life", "up", HostFigures(1000 * MIB, "host", 800 * MIB, 0, 0, 4, 0), 1.0)
PAUSED = Pause(Scope.WORK, "ann", "", 0.0)


def stuck(**changes: Any) -> Stuck:
    usual: dict[str, Any] = {"job_id": "j1", "ref": "A-1", "kind": "deliver", "state": State.QUEUED, "reason": "new"}
    return Stuck(**usual | {"batch_id": None, "host": None, "need": MIB, "seconds": 4000.4} | changes)


def scene(**changes: Any) -> Scene:
    usual: dict[str, Any] = {"lost": (), "overdue": (), "total_lost": 0, "total_overdue": 0}
    return Scene(**usual | {"hosts": (HOST,), "pauses": ()} | changes)


@pytest.mark.parametrize(
    ("job", "around", "reason", "remedy"),
    [
        (stuck(), {"pauses": (PAUSED,), "hosts": ()}, "paused by ann", "ncr resume --work"),
        (stuck(), {"pauses": (Pause(Scope.INTAKE, "ann", "", 0.0),)}, "waits for its turn", "add worker hosts"),
        (stuck(), {"hosts": ()}, "no worker is up", "ncr worker"),
        (stuck(reason=Reason.NO_MEMORY, need=900 * MIB), {}, "needs 943,718,400 bytes", "more memory"),
        (stuck(reason=Reason.YIELDED), {}, "may use 838,860,800", "more memory"),
        (stuck(batch_id="b"), {}, "waits for its turn", "BATCH_SIZE"),
        (stuck(reason=Reason.RETRY, batch_id="b"), {}, "will be tried again", "CELERY_WORKER_CONCURRENCY"),
        (stuck(reason=None), {}, "waits for its turn", "CELERY_WORKER_CONCURRENCY"),
    ],
)
def test_a_waiting_job_has_its_reason_and_a_remedy(
    job: Stuck, around: dict[str, Any], reason: str, remedy: str
) -> None:
    [finding] = findings(scene(overdue=(job,), **around))
    assert reason in finding.reason
    assert remedy.lower() in finding.remedy.lower()
    assert (finding.task_id, finding.job_id, finding.seconds) == ("j1", "A-1", 4000)


@pytest.mark.parametrize(("seconds", "said"), [(75.0, "no heartbeat for 75 s"), (None, "is unknown")])
def test_a_lost_job_names_its_host(seconds: float | None, said: str) -> None:
    [finding] = findings(scene(lost=(stuck(state=State.RUNNING, reason=None, host="h9", seconds=seconds),)))
    assert said in finding.reason
    assert "h9" in finding.reason
    assert finding.remedy.startswith("Start h9 again")
