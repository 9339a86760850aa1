"""Why a job waits, what it needs, and what would have to end before it starts. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel

from ncr_worker.history import Batch
from ncr_worker.job import OUT, Job, Reason, State
from ncr_worker.ledger import Host
from ncr_worker.ledger.pauses import Scope
from ncr_worker.memory.admission import Scene
from ncr_worker.memory.drain import Work, about
from ncr_worker.views.job import WAITS
from ncr_worker.views.models import HOST, TASK, TIME, example
from ncr_worker.views.prediction import PREDICTION, NeedExplanation

OTHER = "1c1f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c"


class MustEnd(BaseModel):
    """A running job that has to end first. `ends_in_seconds`: by how long its kind takes; null: nobody knows yet."""

    task_id: str
    job_id: str
    kind: str
    stage: str | None
    bytes: int
    ends_in_seconds: float | None


class Place(BaseModel):
    """A worker host, for a job of this need. `fits`: `now`; `later`, once all of `must_end` have ended, in this order;
    or `never`. `free_bytes`: of its budget."""

    host: str
    state: str
    limit_bytes: int
    budget_bytes: int
    free_bytes: int
    free_slots: int
    fits: Literal["now", "later", "never"]
    must_end: list[MustEnd]
    fits_in_seconds: float | None


PLACE: dict[str, Any] = {
    "host": HOST,
    "state": "up",
    "limit_bytes": 8_589_934_592,
    "budget_bytes": 6_442_450_944,
    "free_bytes": 322_122_547,
    "free_slots": 2,
    "fits": "later",
    "must_end": [
        {
            "task_id": OTHER,
            "job_id": "4712",
            "kind": "deliver",
            "stage": "upload",
            "bytes": 1_073_741_824,
            "ends_in_seconds": 12.5,
        }
    ],
    "fits_in_seconds": 12.5,
}


class Obstacle(BaseModel):
    """`code`: as in `reason` of a job, or paused, no_worker, batch_full, never_fits, no_slot, held_up, turn, next."""

    code: str
    text: str


class MemoryFacts(BaseModel):
    """`predicted`: when it was submitted; `need`: what it asks for now; `reserved`: what it has, or had last; `peak`:
    what it used. `runs`: earlier ones of its kind, as far as remembered; of their peaks the median and the largest."""

    predicted_bytes: int | None
    need_bytes: int
    reserved_bytes: int | None
    peak_bytes: int | None
    runs: int
    usual_peak_bytes: int | None
    largest_peak_bytes: int | None


class JobExplanation(BaseModel):
    """`waits`: whether it is queued. `reasons`: all that stands before it, the first thing first. `ahead`: jobs of the
    same user that come before it. `starts_in_seconds`: an estimate; null: nobody knows. `prediction`: what such a job
    is expected to need by what is known now, and why."""

    task_id: str
    job_id: str
    kind: str
    user: str
    state: str
    waits: bool
    reasons: list[Obstacle]
    memory: MemoryFacts
    ahead: int
    starts_in_seconds: float | None
    hosts: list[Place]
    prediction: NeedExplanation
    timestamp: datetime

    model_config = example(
        task_id=TASK,
        job_id="4711",
        kind="deliver",
        user="ann",
        state="queued",
        waits=True,
        reasons=[{"code": "no_memory", "text": "needs 1,000,000,000 bytes; worker-1 has 322,122,547 free"}],
        memory={
            "predicted_bytes": 900_000_000,
            "need_bytes": 1_000_000_000,
            "reserved_bytes": None,
            "peak_bytes": None,
            "runs": 200,
            "usual_peak_bytes": 410_000_000,
            "largest_peak_bytes": 1_200_000_000,
        },
        ahead=0,
        starts_in_seconds=12.5,
        hosts=[PLACE],
        prediction=PREDICTION,
        timestamp=TIME,
    )


@dataclass(frozen=True, slots=True)
class Present:
    """What the hosts are busy with. `running`: jobs that are on one. `bytes_now`: job id -> what it is charged now,
    where that is known. `now`: epoch seconds."""

    scene: Scene
    running: Sequence[Job] = ()
    bytes_now: Mapping[str, int] = field(default_factory=dict)
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the explanation of a job rests on. `ahead`: what comes before it in its user's line. `batch`: its own.
    `held_by`: a job that was passed so often that nothing starts before it. `noted`: the last line of its audit trail.
    `prediction`: by what is known of its kind now."""

    job: Job
    present: Present
    prediction: NeedExplanation
    ahead: Sequence[Work] = ()
    batch: Batch | None = None
    held_by: str | None = None
    noted: str | None = None

    @property
    def jobs_ahead(self) -> int:
        return sum(work.jobs for work in self.ahead)

    @property
    def due_in(self) -> float:
        return self.job.next_run_at - self.present.now


def explanation(at: Situation, timestamp: datetime) -> JobExplanation:
    job = at.job
    waits = job.state is State.QUEUED
    hosts = places(job.need, at.present) if waits else []
    return JobExplanation(
        task_id=job.id,
        job_id=job.ref,
        kind=job.kind,
        user=job.tenant,
        state=job.state,
        waits=waits,
        reasons=list(_obstacles(at, hosts) if waits else _no_wait(job)),
        memory=_memory(at),
        ahead=at.jobs_ahead if waits else 0,
        starts_in_seconds=_starts_in(at, hosts) if waits else None,
        hosts=hosts,
        prediction=at.prediction,
        timestamp=timestamp,
    )


def places(need: int, at: Present) -> list[Place]:
    """The hosts for a job of `need` bytes, the soonest first."""
    found = [_place(host, need, at) for host in at.scene.hosts]
    return sorted(found, key=lambda place: (place.fits == "never", _or_last(place.fits_in_seconds), place.host))


def _place(host: Host, need: int, at: Present) -> Place:
    figures = host.figures
    there = sorted((_must_end(job, at) for job in at.running if job.host == host.id), key=_by_end)
    room = free = figures.budget - sum(one.bytes for one in there)  # below 0: one that was alone had more
    slots, ended = figures.slots - len(there), 0
    while (slots + ended < 1 or need > max(room, 0)) and ended < len(there):
        room += there[ended].bytes
        ended += 1
    never = host.state != "up" or need > figures.limit_bytes  # alone it may have more than the budget
    must_end = [] if never else there[:ended]
    return Place(
        host=host.id,
        state=host.state,
        limit_bytes=figures.limit_bytes,
        budget_bytes=figures.budget,
        free_bytes=max(free, 0),
        free_slots=max(slots, 0),
        fits="never" if never else "later" if must_end else "now",
        must_end=must_end,
        fits_in_seconds=None if never else must_end[-1].ends_in_seconds if must_end else 0.0,
    )


def _must_end(job: Job, at: Present) -> MustEnd:
    mean, left = at.scene.drain.seconds.get(job.kind), None
    if mean is not None:
        ran = max(at.now - job.started_at, 0.0) if job.started_at and job.state is not State.DISPATCHED else 0.0
        # Who takes longer than usual already: nobody knows how much longer. As much again is as good a guess as any.
        left = round(mean - ran if ran < mean else ran, 1)
    size = at.bytes_now.get(job.id, job.reserved)
    return MustEnd(task_id=job.id, job_id=job.ref, kind=job.kind, stage=job.stage, bytes=size, ends_in_seconds=left)


def _obstacles(at: Situation, hosts: Sequence[Place]) -> Iterator[Obstacle]:
    """What stands before a queued job, as the feeders ask for it."""
    job, due_in = at.job, at.due_in
    for pause in at.present.scene.pauses:
        if pause.scope is Scope.WORK:
            note = f" ({pause.note})" if pause.note else ""
            yield Obstacle(code="paused", text=f"nothing is started now: paused by {pause.actor}{note}")
    if not any(place.state == "up" for place in hosts):
        yield Obstacle(code="no_worker", text="all worker hosts are stopping" if hosts else "no worker is up")
    if due_in > 0:
        why = (job.error if job.reason == Reason.SERVICE_DOWN else None) or at.noted
        text = f"{WAITS.get(job.reason or '', 'will be tried again')}; due in {about(due_in)}"
        yield Obstacle(code=job.reason or Reason.RETRY, text=f"{text}: {why}" if why and why != job.reason else text)
    if at.batch and (out := sum(at.batch.counts.get(state, 0) for state in OUT)) >= at.batch.size:
        yield Obstacle(code="batch_full", text=f"{out} jobs of its batch run, no more may at once (BATCH_SIZE)")
    yield from _room(job, hosts)
    if at.held_by:
        text = f"job {at.held_by} waits for memory and was passed too often: nothing starts before it (OVERTAKE_LIMIT)"
        yield Obstacle(code="held_up", text=text)
    yield from _turn(at, due_in <= 0 and any(place.fits == "now" for place in hosts))


def _room(job: Job, hosts: Sequence[Place]) -> Iterator[Obstacle]:
    up = [place for place in hosts if place.state == "up"]
    if not up or any(place.fits == "now" for place in up):
        return
    if all(place.fits == "never" for place in up):
        largest = max(up, key=lambda place: place.limit_bytes)
        text = f"needs {job.need:,} bytes, the largest worker host ({largest.host}) has {largest.limit_bytes:,}"
        yield Obstacle(code="never_fits", text=text)
    elif any(place.free_bytes >= job.need for place in up):
        yield Obstacle(code="no_slot", text="hosts with enough memory have no slot free (CELERY_WORKER_CONCURRENCY)")
    else:
        most = max(up, key=lambda place: place.free_bytes)
        text = f"needs {job.need:,} bytes; {most.host} has {most.free_bytes:,} free, and no other has more"
        yield Obstacle(code=Reason.NO_MEMORY, text=text)


def _turn(at: Situation, ready: bool) -> Iterator[Obstacle]:
    tenant = at.job.tenant
    others = sum(1 for name in at.present.scene.drain.costs if name != tenant) if at.jobs_ahead else 0
    if at.jobs_ahead:
        text = f"{at.jobs_ahead:,} jobs of {tenant or 'the same user'} come first"
        yield Obstacle(code="turn", text=text + (f", in turns with {others} other user(s)" if others else ""))
    elif ready:
        yield Obstacle(code="next", text="it is about to start: workers look for jobs each second")


def _no_wait(job: Job) -> Iterator[Obstacle]:
    if job.terminal:
        yield Obstacle(code=job.state, text=f"it has ended: {job.error or job.state}")
    else:
        yield Obstacle(code=job.state, text=f"it is on {job.host}" + (f", step {job.stage}" if job.stage else ""))


def _memory(at: Situation) -> MemoryFacts:
    job, peaks = at.job, [one.peak_bytes for one in at.prediction.points]
    return MemoryFacts(
        predicted_bytes=job.predicted,
        need_bytes=job.need,
        reserved_bytes=job.reserved or job.granted,
        peak_bytes=job.peak,
        runs=len(peaks),
        usual_peak_bytes=int(median(peaks)) if peaks else None,
        largest_peak_bytes=max(peaks, default=None),
    )


def _starts_in(at: Situation, hosts: Sequence[Place]) -> float | None:
    """Its turn, its time and its room have to come; whichever is last."""
    possible = [place.fits_in_seconds for place in hosts if place.fits != "never"]
    paused = any(pause.scope is Scope.WORK for pause in at.present.scene.pauses)
    if paused or not possible or (soonest := min(possible, key=_or_last)) is None:
        return None
    drain = at.present.scene.drain
    mine = sum(drain.cost(work.kind, work.jobs, work.need // work.jobs) for work in at.ahead)
    return round(max(soonest, at.due_in, drain.until(at.job.tenant, mine), 0.0), 1)


def _by_end(one: MustEnd) -> tuple[float, int]:
    return _or_last(one.ends_in_seconds), -one.bytes


def _or_last(seconds: float | None) -> float:
    return float("inf") if seconds is None else seconds
