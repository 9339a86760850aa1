"""Whether a job may be taken in now. Our own reservations are not pressure: a queued job costs no memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from ncr_worker.errors import Busy, NeverFits
from ncr_worker.history import History
from ncr_worker.ledger import Host, Ledger
from ncr_worker.ledger.pauses import Pause, Pauses, Scope

FRESH = 0.5
"""Seconds for which what was read of the ledger serves further submits: it would cost more than the submit."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`accepting`: whether a job of the asked size would be taken in. `reason`: in plain words."""

    accepting: bool
    reason: str
    hosts: tuple[Host, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """What the verdict is based on. `queued`: jobs that wait. `at`: monotonic seconds."""

    hosts: tuple[Host, ...]
    pauses: tuple[Pause, ...]
    queued: int
    at: float


class Admission:
    """`max_backlog`: jobs that may wait. Safe to share between threads."""

    def __init__(self, ledger: Ledger, history: History, pauses: Pauses, *, max_backlog: int) -> None:
        self.ledger = ledger
        self.history = history
        self.pauses = pauses
        self.max_backlog = max_backlog
        self._scene: Scene | None = None

    def judge(self, need: int, count: int = 1) -> Verdict:
        """For `count` jobs that need `need` bytes each. Raises Busy, NeverFits, DatabaseAway."""
        scene = self._look()
        self._gate(scene, count)
        verdict = _memory(scene.hosts, need)
        if verdict.accepting:
            if self._scene is scene:  # or a burst would pass unseen until the next look
                self._scene = replace(scene, queued=scene.queued + count)
            return verdict
        if all(need > host.figures.limit_bytes for host in verdict.hosts):
            raise NeverFits(verdict.reason)
        raise Busy(verdict.reason, code="memory_short", retry_in=15)

    def explain(self, need: int) -> Verdict:
        """The same without raising, asked afresh."""
        self.forget()
        scene = self._look()
        try:
            self._gate(scene, 1)
        except Busy as error:
            return Verdict(False, str(error), scene.hosts)
        return _memory(scene.hosts, need)

    def forget(self) -> None:
        """What was read is known to be old."""
        self._scene = None

    def _look(self) -> Scene:
        scene = self._scene
        if scene is None or time.monotonic() - scene.at > FRESH:
            hosts, pauses = tuple(self.ledger.hosts.live()), tuple(self.pauses.active())
            scene = self._scene = Scene(hosts, pauses, self.history.queued(), time.monotonic())
        return scene

    def _gate(self, scene: Scene, count: int) -> None:
        for pause in scene.pauses:
            if pause.scope is Scope.INTAKE:
                text = f"the intake of jobs was paused by {pause.actor}" + (f": {pause.note}" if pause.note else "")
                raise Busy(text, code="intake_paused", retry_in=60)
        if scene.queued + count > self.max_backlog:
            text = f"{scene.queued:,} jobs wait already, {self.max_backlog:,} may (MAX_BACKLOG); send this later"
            raise Busy(text, code="backlog_full", retry_in=30)


def _memory(hosts: tuple[Host, ...], need: int) -> Verdict:
    if not hosts:
        return Verdict(True, "no worker is up; the job waits for one", hosts)
    limit = max(host.figures.limit_bytes for host in hosts)
    if need > limit:
        return Verdict(False, f"needs {need:,} bytes, the largest worker host has {limit:,}", hosts)
    budget = max(host.figures.budget for host in hosts)
    if need > budget:
        text = f"other programs leave {budget:,} bytes on the freest worker host, this needs {need:,}"
        return Verdict(False, text, hosts)
    return Verdict(True, f"{len(hosts)} worker host(s) up", hosts)
