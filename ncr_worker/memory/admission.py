"""Whether jobs may be taken in now. Our own reservations are not pressure: a queued job costs no memory.

They are refused when other programs leave too little memory on every host, and when what the user has waiting takes
longer than anybody should wait. Once refused, a little more than what was missing has to be there before jobs are taken
in again: else every second request would be refused.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from ncr_worker.errors import Busy, NeverFits
from ncr_worker.ledger import Host, Ledger
from ncr_worker.ledger.pauses import Pause, Pauses, Scope
from ncr_worker.memory.drain import Drain, Sized, about
from ncr_worker.memory.workload import Workload

FRESH = 0.5
"""Seconds for which what was read of the ledger serves further submits: it would cost more than the submit."""
RARELY = 20
"""Reading it takes a share of 1 / RARELY of the time at most, however long the backlog is."""
LOW = 0.8
"""Once refused, jobs are taken in again at this share of what may be used, or waited for."""
AGAIN = 15.0
"""Seconds after which to ask again for memory that others use: nobody knows when they leave, hosts look every 10."""
UNKNOWN = 30.0
"""Seconds after which to ask again for room in the backlog, as long as nobody knows how long its jobs take."""
SHORT = "memory_short"
OVERLOADED = "overloaded"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`accepting`: whether the jobs are taken in. `reason`: in plain words. `wait`: seconds until all that has to go
    first has run, estimated. Of a no: `code`, and `retry_in`: seconds until it would be a yes."""

    accepting: bool
    reason: str
    hosts: tuple[Host, ...]
    wait: float = 0.0
    code: str = ""
    retry_in: float = 0.0


@dataclass(frozen=True, slots=True)
class Scene:
    """What a verdict is based on. `queued`: jobs that wait. `at`: monotonic seconds; `took`: seconds to find it out."""

    hosts: tuple[Host, ...]
    pauses: tuple[Pause, ...]
    queued: int
    drain: Drain
    at: float
    took: float

    @property
    def budget(self) -> int:
        """Bytes for jobs on the host that has most of them."""
        return max((host.figures.budget for host in self.hosts), default=0)


@dataclass(frozen=True, slots=True)
class Limits:
    """`backlog`: jobs that may wait. `wait`: seconds that a job may have to wait; 0: for ever."""

    backlog: int
    wait: float = 0.0


@dataclass(slots=True)
class Refused:
    """Who was refused, and not taken in since. `short`: kind -> when there was not enough memory, monotonic seconds;
    `waiting`: users who had too much waiting."""

    short: dict[str, float] = field(default_factory=dict)
    waiting: set[str | None] = field(default_factory=set)


class Admission:
    """Safe to share between threads."""

    def __init__(self, ledger: Ledger, pauses: Pauses, limits: Limits) -> None:
        self.ledger = ledger
        self.workload = Workload(ledger.database)
        self.pauses = pauses
        self.limits = limits
        self._scene: Scene | None = None
        self._refused = Refused()
        self._lock = threading.Lock()
        self._looking = threading.Lock()

    def judge(self, jobs: Sequence[Sized]) -> Verdict:
        """All of them (at least one) or none. Raises Busy, NeverFits, DatabaseAway."""
        scene = self.look()
        with self._lock:
            verdict = assess(scene, jobs, self.limits, self._refused)
            self._remember(verdict, scene, jobs)
            if verdict.accepting and self._scene is scene:  # or a burst would pass unseen until the next look
                self._scene = replace(scene, queued=scene.queued + len(jobs), drain=scene.drain.plus(jobs))
        if verdict.accepting:
            return verdict
        if verdict.code == NeverFits.code:
            raise NeverFits(verdict.reason)
        raise Busy(verdict.reason, code=verdict.code, retry_in=verdict.retry_in)

    def explain(self, job: Sized, *, fresh: bool = True) -> Verdict:
        """The same without raising; nothing is counted. `fresh`: the ledger is asked anew. Raises DatabaseAway."""
        if fresh:
            self.forget()
        scene = self.look()
        with self._lock:
            return assess(scene, [job], self.limits, self._refused)

    def forget(self) -> None:
        """What was read is known to be old."""
        self._scene = None

    def look(self) -> Scene:
        """What was read a moment ago serves. Raises DatabaseAway."""
        scene = self._scene
        if scene is not None and time.monotonic() - scene.at < max(FRESH, RARELY * scene.took):
            return scene
        if not self._looking.acquire(blocking=scene is None) and scene is not None:
            return scene  # somebody is reading already
        try:
            if scene is None and self._scene is not None:
                return self._scene  # that was being read
            began = time.monotonic()
            hosts, pauses, works = tuple(self.ledger.hosts.live()), tuple(self.pauses.active()), self.workload.now()
            drain = Drain.of(works, hosts, self.workload.seconds({work.kind for work in works}))
            queued, now = sum(work.jobs for work in works if work.waits), time.monotonic()
            self._scene = scene = Scene(hosts, pauses, queued, drain, now, now - began)
            return scene
        finally:
            self._looking.release()

    def _remember(self, verdict: Verdict, scene: Scene, jobs: Sequence[Sized]) -> None:
        refused, kinds, users = self._refused, {job.kind for job in jobs}, {job.tenant for job in jobs}
        if verdict.accepting:
            refused.short = {kind: at for kind, at in refused.short.items() if kind not in kinds}
            refused.waiting -= users
        elif verdict.code == OVERLOADED:
            refused.waiting |= users
        elif verdict.code == SHORT and min(job.need for job in jobs) > scene.budget:
            refused.short |= dict.fromkeys(kinds, scene.at)


def assess(scene: Scene, jobs: Sequence[Sized], limits: Limits, refused: Refused) -> Verdict:
    """The verdict on all of the jobs together. Pure."""
    return (
        _paused(scene)
        or _too_large(scene, max(job.need for job in jobs))
        or _short(scene, min(jobs, key=lambda job: job.need), refused.short)
        or _full(scene, len(jobs), limits.backlog)
        or _overloaded(scene, jobs, limits.wait, refused.waiting)
        or _welcome(scene, jobs)
    )


def _paused(scene: Scene) -> Verdict | None:
    for pause in scene.pauses:
        if pause.scope is Scope.INTAKE:
            text = f"the intake of jobs was paused by {pause.actor}" + (f": {pause.note}" if pause.note else "")
            return Verdict(False, text, scene.hosts, code="intake_paused", retry_in=60)
    return None


def _too_large(scene: Scene, need: int) -> Verdict | None:
    largest = max(scene.hosts, key=lambda host: host.figures.limit_bytes, default=None)
    if largest is None or need <= largest.figures.limit_bytes:
        return None
    text = f"needs {need:,} bytes, the largest worker host ({largest.id}) has {largest.figures.limit_bytes:,}"
    return Verdict(False, text, scene.hosts, code=NeverFits.code)


def _short(scene: Scene, job: Sized, short: Mapping[str, float]) -> Verdict | None:
    """No host could hold even the smallest of the jobs if it had nothing else to do."""
    if not scene.hosts or job.need <= LOW * scene.budget:
        return None
    fits, since = job.need <= scene.budget, scene.at - short.get(job.kind, -AGAIN)
    if fits and since >= AGAIN:
        return None
    text = f"other programs leave {scene.budget:,} bytes on the freest worker host, this needs {job.need:,}"
    if fits:
        text += "; it was less a moment ago"
    return Verdict(False, text, scene.hosts, code=SHORT, retry_in=AGAIN - since if fits else AGAIN)


def _full(scene: Scene, count: int, most: int) -> Verdict | None:
    excess = scene.queued + count - most
    if excess <= 0:
        return None
    whole = scene.drain.whole
    text = f"{scene.queued:,} jobs wait already, {most:,} may (MAX_BACKLOG); send this later"
    retry_in = whole * min(excess / scene.queued, 1) if whole and scene.queued else UNKNOWN
    return Verdict(False, text, scene.hosts, wait=whole, code="backlog_full", retry_in=retry_in)


def _overloaded(scene: Scene, jobs: Sequence[Sized], most: float, waiting: AbstractSet[str | None]) -> Verdict | None:
    """What there is already takes too long. When it does not, even a batch that takes longer by itself is welcome."""
    if not most or not scene.drain.hosts:
        return None
    low = LOW * most
    for tenant, cost in scene.drain.costs_of(jobs).items():
        wait = scene.drain.wait(tenant)
        if wait > low and (tenant in waiting or scene.drain.wait(tenant, cost) > most):
            whose = f"the jobs that {tenant} has waiting" if tenant else "the jobs that wait"
            text = f"{whose} take about {about(wait)}, {about(most)} may be (ADMISSION_MAX_WAIT); send this later"
            return Verdict(False, text, scene.hosts, wait=wait, code=OVERLOADED, retry_in=wait - low)
    return None


def _welcome(scene: Scene, jobs: Sequence[Sized]) -> Verdict:
    if not scene.hosts:
        return Verdict(True, "no worker is up; the job waits for one", scene.hosts)
    if not scene.drain.hosts:
        return Verdict(True, "all worker hosts are stopping; the job waits for another", scene.hosts)
    text = f"{len(scene.hosts)} worker host(s) up"
    if not scene.queued and any(host.figures.running < host.figures.slots for host in scene.drain.hosts):
        return Verdict(True, text, scene.hosts)
    wait = max(scene.drain.wait(job.tenant) for job in jobs)
    return Verdict(True, text + (f"; starts in about {about(wait)}" if wait >= 1 else ""), scene.hosts, wait=wait)
