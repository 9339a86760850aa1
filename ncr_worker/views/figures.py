"""What is told about memory. Times are RFC 3339 UTC, sizes are bytes, percentages are 0..100."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from ncr_worker.memory.live import EVERY
from ncr_worker.views.explain import PLACE, Place
from ncr_worker.views.models import HOST, TASK, TIME, example
from ncr_worker.views.prediction import PREDICTION, NeedExplanation

_GIB = 1024**3


class ProcessMemory(BaseModel):
    """Of the process that answers."""

    pid: int
    rss_bytes: int
    anonymous_bytes: int


class SystemMemory(BaseModel):
    """Memory where the answer comes from. `used_bytes` is anonymous memory: page cache is given back when needed.

    `pressure_percent`: of the last ten seconds in which some process waited for memory; null: not measured here.
    """

    limit_bytes: int
    limit_source: str
    used_bytes: int
    used_percent: float
    swap_bytes: int
    pressure_percent: float | None


class Waiting(BaseModel):
    """Jobs that wait for memory, and what they need together."""

    jobs: int
    bytes: int


class JobMemory(BaseModel):
    """A job on a host. `predicted`: when it was submitted. `observed`: what it uses; `peak`: the most in this step;
    null while its host does not show it."""

    task_id: str
    job_id: str
    kind: str
    stage: str | None
    predicted_bytes: int | None
    reserved_bytes: int
    observed_bytes: int | None
    peak_bytes: int | None


class HostMemory(BaseModel):
    """A worker host. `budget`: what its jobs may use together; `used`: by other programs; `reserved`: for its jobs, or
    observed where that is more; `observed`: what they use.

    `waiting`: jobs that wait for memory; the first host with enough takes them. `swap`, `pressure`: null while it does
    not show them, through Redis; then the other figures are as old as its heartbeat.
    """

    host: str
    state: str
    limit_bytes: int
    limit_source: str
    budget_bytes: int
    used_bytes: int
    reserved_bytes: int
    observed_bytes: int
    swap_bytes: int | None
    pressure_percent: float | None
    waiting: Waiting
    slots: int
    running_jobs: int
    recommended_concurrency: int
    seconds_since_heartbeat: float
    jobs: list[JobMemory]


class MemoryStats(BaseModel):
    """`recommended_concurrency`: how many deliveries fit into the memory of the machine that answers.

    `accepting_jobs`: whether a delivery is taken in of a user who has as much waiting as anybody; others may be.
    """

    process: ProcessMemory
    system: SystemMemory
    recommended_concurrency: int
    accepting_jobs: bool
    reason: str
    hosts: list[HostMemory]
    timestamp: datetime

    model_config = example(
        process={"pid": 4321, "rss_bytes": 95_000_000, "anonymous_bytes": 70_000_000},
        system={
            "limit_bytes": 8 * _GIB,
            "limit_source": "cgroup v2",
            "used_bytes": 2 * _GIB,
            "used_percent": 25.0,
            "swap_bytes": 0,
            "pressure_percent": 0.0,
        },
        recommended_concurrency=46,
        accepting_jobs=True,
        reason="1 worker host(s) up",
        hosts=[
            {
                "host": HOST,
                "state": "up",
                "limit_bytes": 8 * _GIB,
                "limit_source": "cgroup v2",
                "budget_bytes": 6 * _GIB,
                "used_bytes": 400_000_000,
                "reserved_bytes": 201_326_592,
                "observed_bytes": 150_000_000,
                "swap_bytes": 0,
                "pressure_percent": 0.0,
                "waiting": {"jobs": 0, "bytes": 0},
                "slots": 4,
                "running_jobs": 1,
                "recommended_concurrency": 64,
                "seconds_since_heartbeat": 3.2,
                "jobs": [
                    {
                        "task_id": TASK,
                        "job_id": "4711",
                        "kind": "deliver",
                        "stage": "pack",
                        "predicted_bytes": 201_326_592,
                        "reserved_bytes": 201_326_592,
                        "observed_bytes": 150_000_000,
                        "peak_bytes": 160_000_000,
                    }
                ],
            }
        ],
        timestamp=TIME,
    )


class MemorySample(BaseModel):
    """As in `/memory-stats`, at one moment."""

    at: datetime
    limit_bytes: int
    budget_bytes: int
    used_bytes: int
    reserved_bytes: int
    observed_bytes: int
    swap_bytes: int
    pressure_percent: float | None
    running_jobs: int


class MemoryHistory(BaseModel):
    """The last hour of a worker host, the oldest first; as much of it as Redis has kept."""

    host: str
    every_seconds: float
    samples: list[MemorySample]

    model_config = example(
        host=HOST,
        every_seconds=EVERY,
        samples=[
            {
                "at": TIME,
                "limit_bytes": 8 * _GIB,
                "budget_bytes": 6 * _GIB,
                "used_bytes": 400_000_000,
                "reserved_bytes": 201_326_592,
                "observed_bytes": 150_000_000,
                "swap_bytes": 0,
                "pressure_percent": 0.0,
                "running_jobs": 1,
            }
        ],
    )


class AdmissionExplanation(BaseModel):
    """Whether a job of this kind, need and user would be taken in now. Without a user: of one who has as much waiting
    as anybody.

    `wait_seconds`: until all that has to go first has run; `drain_seconds`: until all has that waits now; both are
    estimates, `run_seconds` is what the newest runs of the kind took, null: there were none. `prediction`: why a job of
    the kind, of whose input nothing is known, is expected to need so much.
    """

    accepting_jobs: bool
    code: str | None
    reason: str
    retry_after_seconds: float | None
    kind: str
    user: str | None
    need_bytes: int
    wait_seconds: float
    drain_seconds: float
    run_seconds: float | None
    waiting_jobs: int
    max_waiting_jobs: int
    max_wait_seconds: float
    hosts: list[Place]
    prediction: NeedExplanation
    timestamp: datetime

    model_config = example(
        accepting_jobs=False,
        code="overloaded",
        reason="the jobs that ann has waiting take about 7 h, 6 h may be (ADMISSION_MAX_WAIT); send this later",
        retry_after_seconds=7920.0,
        kind="deliver",
        user="ann",
        need_bytes=100_663_296,
        wait_seconds=25_200.0,
        drain_seconds=25_200.0,
        run_seconds=41.5,
        waiting_jobs=2430,
        max_waiting_jobs=100_000,
        max_wait_seconds=21_600,
        hosts=[PLACE],
        prediction=PREDICTION,
        timestamp=TIME,
    )
