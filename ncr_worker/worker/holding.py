"""The jobs that this host holds: begun, left, dead, message lost, more memory asked for, told to stop."""

from __future__ import annotations

import logging
import os
import select
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from ncr_worker.job import Reason, State
from ncr_worker.ledger import Ledger, Picked
from ncr_worker.memory.slots import Order, Phase, Slots
from ncr_worker.memory.watch import Watch, end, end_group
from ncr_worker.picking import TYPICAL
from ncr_worker.worker.processes import has_ended, open_pid, pid_of

log = logging.getLogger(__name__)

RESEND = 2.0  # seconds after which a message that no child took is looked into
ORDER_GRACE = 30.0  # seconds that a child gets to follow an order, cleaning up included, before it is ended
STOP_GRACE = 3.0  # ... to give its job back while the worker stops: the container's patience is short

Send = Callable[[Picked, int], object]
"""Hand a picked job's id, token and slot number to the pool. May raise: the message is then sent again."""


@dataclass(slots=True)
class Held:
    """A job on this host, in the main process's eyes. Times are monotonic seconds."""

    job: Picked
    sent_at: float
    picked_at: float = field(default_factory=time.monotonic)
    pidfd: int | None = None
    reserved: int = 0  # as last seen
    ordered_at: float | None = None

    @property
    def byte_seconds(self) -> float:
        """What it has cost its tenant; at first as much as if it lasted typically."""
        return self.job.reserved * max(time.monotonic() - self.picked_at, TYPICAL)


class Holding:
    """`room`: memory or a slot has become free since this was last set to False; `news`: there may be new work.

    All calls raise DatabaseAway; what could not be told to the ledger is told at the next call.
    """

    def __init__(self, ledger: Ledger, slots: Slots, watch: Watch, send: Send) -> None:
        self.ledger = ledger
        self.slots = slots
        self.watch = watch
        self.send = send
        self.jobs: dict[int, Held] = {}
        self.room = self.news = True
        self.publish_cpu = 0.0  # seconds that sending took
        self._mute_until = 0.0  # the broker did not take the last message
        self._poller = select.poll()
        self._poller.register(slots.bell, select.POLLIN)

    @property
    def free(self) -> list[int]:
        """Slots without a job; none while the broker takes no message.

        Neither while a job that is lost still runs: it may be queued again, and its old child is at work in its folder.
        """
        if self.muted or any(self.slots.read(index).order is Order.LOST for index in self.jobs):
            return []
        return [index for index in range(self.slots.count) if index not in self.jobs]

    @property
    def muted(self) -> bool:
        return time.monotonic() < self._mute_until

    @property
    def running(self) -> Mapping[str, float]:
        """Byte-seconds of what runs, so far, by tenant."""
        cost = defaultdict[str, float](float)
        for held in self.jobs.values():
            cost[held.job.tenant] += held.byte_seconds
        return cost

    @property
    def sent(self) -> bool:
        """Some job was not seen to run yet."""
        return any(held.pidfd is None for held in self.jobs.values())

    def wait(self, seconds: float) -> None:
        """Until a child writes, a child that runs a job dies, or somebody rings."""
        self._poller.poll(1000 * seconds)
        self.slots.hush()

    def take(self, index: int, job: Picked) -> None:
        self.slots.arm(index, job.token, job.reserved)
        self.jobs[index] = Held(job, time.monotonic(), reserved=job.reserved)
        self._send(index)

    def look_after_all(self, *, draining: bool) -> None:
        now = time.monotonic()
        ready = {descriptor for descriptor, _ in self._poller.poll(0)}
        # By slot: a descriptor's number is soon another one's.
        ended = {index for index, held in self.jobs.items() if held.pidfd in ready}
        for index in list(self.jobs):
            self._look_after(index, now, ended, draining)

    def order(self, tokens: Collection[int], order: Order) -> None:
        for index, held in list(self.jobs.items()):
            if held.job.token in tokens and held.ordered_at is None:
                held.ordered_at = time.monotonic()
                self.slots.order(index, order)

    def order_all(self, order: Order) -> None:
        self.order([held.job.token for held in list(self.jobs.values())], order)

    def reconcile(self, known: Mapping[int, int]) -> None:
        """The ledger and the slots must hold the same tokens; the ledger is right about which run may go on.

        `known`: token -> job number, of all that the ledger counts as being here.
        """
        mine = {held.job.token: index for index, held in self.jobs.items()}
        for token, number in known.items():
            if token not in mine:  # picked, but the answer to our commit was lost
                self.ledger.work.lost(number, token, "not on this host")
        strays = [token for token in mine.keys() - known.keys() if self._runs(mine[token])]
        self.order(strays, Order.LOST)

    def _runs(self, index: int) -> bool:
        return self.slots.read(index).phase is Phase.RUNNING

    def _look_after(self, index: int, now: float, ended: Collection[int], draining: bool) -> None:
        held, slot = self.jobs[index], self.slots.read(index)
        if slot.phase is Phase.SENT:
            if draining and self._recall(index):
                return
            if now - held.sent_at > RESEND:
                self._inquire(index)
            return
        if held.pidfd is None:
            held.pidfd = self._watch_over(slot.pid)
        if slot.phase is Phase.LEFT:
            self._release(index)
        elif slot.phase is Phase.LEFT_DIRTY:
            self._lose(index, "its child could not reach the ledger")
        elif held.pidfd is None or index in ended:
            end_group(slot.pid)
            self._lose(index, f"process {slot.pid} died")
        else:
            if slot.asked:
                self._answer(index, slot.asked)
            self.room |= slot.reserved < held.reserved
            held.reserved = slot.reserved
            grace = STOP_GRACE if slot.order is Order.GIVE_BACK else ORDER_GRACE
            if held.ordered_at is not None and now - held.ordered_at > grace:
                log.warning("job %s did not follow its order: ending process %d", held.job.job_id, slot.pid)
                end(slot.pid)

    def _watch_over(self, pid: int) -> int | None:
        pidfd = open_pid(pid)
        if pidfd is not None:
            self._poller.register(pidfd, select.POLLIN)
        return pidfd

    def _answer(self, index: int, asked: int) -> None:
        """The stage to come needs more than is reserved: it may have that if it is there."""
        load = self.watch.load()
        mine = next(charge for charge in load.charges if charge.index == index)
        self.slots.answer(index, asked if load.may_grow(mine, asked) else mine.reserved)

    def _inquire(self, index: int) -> None:
        """No child has taken the message: it was lost, or its child died on the way, or the job is gone."""
        held = self.jobs[index]
        found = self.ledger.work.claimant(held.job.number, held.job.token)
        if self.slots.read(index).phase is not Phase.SENT:
            return  # taken meanwhile: the slot is its child's until that has left it
        if found is None or found[0] not in (State.DISPATCHED, State.RUNNING, State.CANCELLING):
            self._release(index)
        elif found[0] is State.DISPATCHED:
            self._send(index)
        elif has_ended(pid_of(found[1])):
            self._lose(index, "the child died as it took the job")

    def _recall(self, index: int) -> bool:
        job = self.jobs[index].job
        recalled = self.ledger.work.recall(job.number, job.token, "the worker stops")
        if recalled:
            self._release(index)
        return recalled

    def _lose(self, index: int, note: str) -> None:
        job, slot = self.jobs[index].job, self.slots.read(index)
        if slot.order is Order.OUTGROWN:
            limit = self.watch.load().limit
            self.ledger.work.outgrown(job.number, job.token, used=slot.peak, limit=limit, actor="feeder")
        else:
            ours = slot.order is Order.GIVE_BACK  # its end is our doing, not the job's
            self.ledger.work.lost(job.number, job.token, note, Reason.GIVEN_BACK if ours else Reason.WORKER_LOST)
        log.warning("lost job %s: %s", job.job_id, note)
        self._release(index)  # no news: queued again, it is mostly not due yet

    def _release(self, index: int) -> None:
        held = self.jobs.pop(index)
        if held.pidfd is not None:
            self._poller.unregister(held.pidfd)
            os.close(held.pidfd)
        self.slots.free(index)
        self.ledger.queue.charge(held.job.tenant, held.byte_seconds)
        self.room = True

    def _send(self, index: int) -> None:
        """While the broker is away, one try in RESEND seconds: it may block, and the heartbeat must not wait for it."""
        if self.muted:
            return
        held, began = self.jobs[index], time.thread_time()
        held.sent_at = time.monotonic()
        try:
            self.send(held.job, index)
        except Exception as error:  # noqa: BLE001 - whatever the broker's client raises, the message is sent again
            log.warning("message of job %s was not sent, trying again: %s", held.job.job_id, error)
            self._mute_until = time.monotonic() + RESEND
        self.publish_cpu += time.thread_time() - began
