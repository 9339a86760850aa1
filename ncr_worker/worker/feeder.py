"""The feeder: decides which job starts on this host now. Nothing else does.

It runs in a thread of the worker's main process. Each round it looks after the slots (begun, left, dead,
message lost), beats for the host, passes on orders, and takes from the ledger what fits.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from math import inf

from ncr_worker.job import Reason, State
from ncr_worker.ledger import HostFigures, Ledger, Offer, Picked
from ncr_worker.ledger.queue import SERVES
from ncr_worker.memory.domain import Domain
from ncr_worker.memory.slots import Order, Phase, Slots
from ncr_worker.memory.watch import Watch, end, end_group
from ncr_worker.picking import TYPICAL
from ncr_worker.settings import Settings
from ncr_worker.sql import DatabaseAway
from ncr_worker.worker.processes import has_ended, open_pid, pid_of

log = logging.getLogger(__name__)

POLL = 1.0  # seconds between two looks for work when nobody woke us
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
    pid: int = 0
    reserved: int = 0  # as last seen
    ordered_at: float | None = None

    @property
    def byte_seconds(self) -> float:
        """What it has cost its tenant; at first as much as if it lasted typically."""
        return self.job.reserved * max(time.monotonic() - self.picked_at, TYPICAL)


class Feeder:
    """`send` must not block for long. `kinds`: what this worker can run; None: everything."""

    def __init__(
        self, settings: Settings, ledger: Ledger, slots: Slots, send: Send, kinds: Collection[str] | None = None
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.slots = slots
        self.send = send
        self.kinds = None if kinds is None else tuple(sorted(kinds))
        self.watch = Watch(Domain(settings.host_memory_bytes), slots, settings.max_memory_usage_percent / 100)
        self.incarnation = str(uuid.uuid4())
        self.held: dict[int, Held] = {}
        self.draining = False
        self._stopped = threading.Event()
        self._room = self._news = True  # a slot may be free; there may be other candidates than those read ahead
        self._next_poll = self._next_beat = self._looked = 0.0
        self._in_touch_since: float | None = None  # with the database, without a gap
        self._settling = 2 * settings.host_heartbeat  # seconds in touch before this host calls another one dead
        self._mute_until = 0.0  # the broker did not take the last message
        self.cpu = self.publish_cpu = 0.0  # seconds that rounds took, without sending; that sending took

    # --- life -----------------------------------------------------------------------------------------
    def start(self) -> None:
        """Register the host; its earlier incarnation's jobs are released. Raises ConfigError, DatabaseAway."""
        released = self.ledger.hosts.register(self.settings.host, self.incarnation, self.figures())
        if released:
            log.warning("released %d jobs of this host's earlier life", released)

    def run(self) -> None:
        while not self._stopped.is_set():
            began, sent = time.thread_time(), self.publish_cpu
            self._survive(self.round)
            self._wait()
            self.cpu += time.thread_time() - began - (self.publish_cpu - sent)

    def figures(self) -> HostFigures:
        load = self.watch.load()
        return HostFigures(
            limit_bytes=load.limit,
            limit_source=load.source,
            budget=load.budget,
            others=load.others,
            reserved=load.charged,
            observed=load.observed,
            slots=self.slots.count,
            running=len(self.held),
        )

    def wake(self) -> None:
        """There may be work: look at once. Any thread."""
        self._news = True
        self.slots.ring()

    def drain(self, grace: float) -> None:
        """Take nothing more; let running jobs end within `grace` seconds, then give them back. Blocks.

        Called while `run` goes on in its own thread.
        """
        self.draining = True
        self._next_beat = 0.0
        self.slots.ring()
        log.info("stopping: %d jobs have %g s to finish", len(self.held), grace)
        if not self._await_empty(grace):
            log.warning("grace is over: giving %d jobs back", len(self.held))
            self._order_all(Order.GIVE_BACK)
            if not self._await_empty(STOP_GRACE + 2):
                log.error("%d jobs would not leave", len(self.held))
        self._stopped.set()
        self.slots.ring()

    def leave(self) -> None:
        """The host ends; the ledger releases whatever is still on it. Call after `run` has returned."""
        self._survive(lambda: self.ledger.hosts.leave(self.settings.host, self.incarnation))

    # --- one round ------------------------------------------------------------------------------------
    def round(self) -> None:
        """Raises DatabaseAway; everything that could not be told to the ledger is told in the next round."""
        now = time.monotonic()
        if now >= self._next_beat:  # first: whatever is wrong with a slot, the host is alive
            self._beat(now)
        for index in list(self.held):
            self._look_after(index, now)
        if now >= self._next_poll:
            self._pass_orders(now)
            self._room = self._news = True
            self._next_poll = now + POLL
        if (self._room or self._news) and not self.draining:
            self._feed()

    def _look_after(self, index: int, now: float) -> None:
        held, slot = self.held[index], self.slots.read(index)
        if slot.phase is Phase.SENT:
            if self.draining and self._recall(index):
                return
            if now - held.sent_at > RESEND:
                self._inquire(index)
            return
        if held.pidfd is None:
            held.pid, held.pidfd = slot.pid, open_pid(slot.pid)
        if slot.phase is Phase.LEFT:
            self._release(index)
        elif slot.phase is Phase.LEFT_DIRTY:
            self._lose(index, "its child could not reach the ledger")
        elif held.pidfd is None or has_ended(held.pidfd):
            end_group(slot.pid)
            self._lose(index, f"process {slot.pid} died")
        else:
            if slot.asked:
                self._answer(index, slot.asked)
            self._room |= slot.reserved < held.reserved
            held.reserved = slot.reserved
            grace = STOP_GRACE if slot.order is Order.GIVE_BACK else ORDER_GRACE
            if held.ordered_at is not None and now - held.ordered_at > grace:
                log.warning("job %s did not follow its order: ending process %d", held.job.job_id, slot.pid)
                end(slot.pid)

    def _answer(self, index: int, asked: int) -> None:
        """The stage to come needs more than is reserved: it may have that if it is there."""
        load = self.watch.load()
        mine = next(charge for charge in load.charges if charge.index == index)
        self.slots.answer(index, asked if load.may_grow(mine, asked) else mine.reserved)

    def _inquire(self, index: int) -> None:
        """No child has taken the message: it was lost, or its child died on the way, or the job is gone."""
        held = self.held[index]
        found = self.ledger.work.claimant(held.job.number, held.job.token)
        if self.slots.read(index).phase is not Phase.SENT:
            return  # taken meanwhile: the slot is its child's until that has left it
        if found is None or found[0] not in (State.DISPATCHED, State.RUNNING, State.CANCELLING):
            self._release(index)
        elif found[0] is State.DISPATCHED:
            self._send(index)
        elif (fd := open_pid(pid_of(found[1]))) is None or has_ended(fd, close=True):
            self._lose(index, "the child died as it took the job")

    def _recall(self, index: int) -> bool:
        job = self.held[index].job
        recalled = self.ledger.work.recall(job.number, job.token, "the worker stops")
        if recalled:
            self._release(index)
        return recalled

    def _lose(self, index: int, note: str) -> None:
        job, slot = self.held[index].job, self.slots.read(index)
        if slot.order is Order.OUTGROWN:
            limit = self.watch.load().limit
            self.ledger.work.outgrown(job.number, job.token, used=slot.peak, limit=limit, actor="feeder")
        else:
            ours = slot.order is Order.GIVE_BACK  # its end is our doing, not the job's
            self.ledger.work.lost(job.number, job.token, note, Reason.GIVEN_BACK if ours else Reason.WORKER_LOST)
        log.warning("lost job %s: %s", job.job_id, note)
        self._release(index)
        self._news = True

    def _release(self, index: int) -> None:
        held = self.held.pop(index)
        if held.pidfd is not None:
            os.close(held.pidfd)
        self.slots.free(index)
        self.ledger.queue.charge(held.job.tenant, held.byte_seconds)
        self._room = True

    def _beat(self, now: float) -> None:
        host, figures = self.settings.host, self.figures()
        if not self.ledger.hosts.beat(host, self.incarnation, "draining" if self.draining else "up", figures):
            log.warning("this host was taken for dead: registering again")
            self.ledger.hosts.register(host, self.incarnation, figures)
        self._reconcile()
        self._next_beat = now + self.settings.host_heartbeat
        self._in_touch_since = self._in_touch_since or now
        if now - self._in_touch_since >= self._settling:
            for dead in self.ledger.hosts.reap(host):
                log.warning("host %s is dead: its jobs were released", dead)
                self._news = True

    def _reconcile(self) -> None:
        """The ledger and the slots must hold the same tokens; the ledger is right about which run may go on."""
        mine = {held.job.token: index for index, held in self.held.items()}
        known = self.ledger.hosts.tokens(self.settings.host)
        for token, number in known.items():
            if token not in mine:  # picked, but the answer to our commit was lost
                self.ledger.work.lost(number, token, "not on this host")
        for token, index in mine.items():
            if token not in known and self.slots.read(index).phase is Phase.RUNNING:
                self._order(index, Order.LOST)

    def _pass_orders(self, now: float) -> None:
        tokens = {held.job.token: index for index, held in self.held.items()}
        if tokens:
            for token in self.ledger.intake.cancelling(self.settings.host) & tokens.keys():
                self._order(tokens[token], Order.CANCEL)

    def _feed(self) -> None:
        free = [index for index in range(self.slots.count) if index not in self.held]
        self._room = False
        now, load = time.monotonic(), self.watch.load()
        if not free or now < self._mute_until or load.in_danger:
            return
        if any(self.slots.read(index).order is Order.LOST for index in self.held):
            return  # such a job may be queued again, and its old child is still at work in its folder
        fresh = self.ledger.queue.dry or (self._news and now - self._looked >= SERVES)
        if fresh:
            self._news, self._looked = False, now
        running = defaultdict[str, float](float)
        for held in self.held.values():
            running[held.job.tenant] += held.byte_seconds
        offer = Offer(self.settings.host, len(free), load.free, not self.held, load.limit, self.kinds, running)
        for job, index in zip(self.ledger.queue.pick(offer, fresh=fresh), free, strict=False):
            self.slots.arm(index, job.token, job.reserved)
            self.held[index] = Held(job, time.monotonic(), reserved=job.reserved)
            self._send(index)
        self.watch.expect()

    def _send(self, index: int) -> None:
        """While the broker is away, one try in RESEND seconds: it may block, and the heartbeat must not wait for it."""
        if time.monotonic() < self._mute_until:
            return
        held, began = self.held[index], time.thread_time()
        held.sent_at = time.monotonic()
        try:
            self.send(held.job, index)
        except Exception as error:  # noqa: BLE001 - whatever the broker's client raises, the message is sent again
            log.warning("message of job %s was not sent, trying again: %s", held.job.job_id, error)
            self._mute_until = time.monotonic() + RESEND
        self.publish_cpu += time.thread_time() - began

    # --- waiting and stopping -------------------------------------------------------------------------
    def _wait(self) -> None:
        """Until a child writes, a child dies, somebody wakes us, or something is due."""
        poller = select.poll()
        poller.register(self.slots.bell, select.POLLIN)
        for held in self.held.values():
            if held.pidfd is not None:
                poller.register(held.pidfd, select.POLLIN)
        hungry = self._news and len(self.held) < self.slots.count and time.monotonic() > self._mute_until
        due = min(self._next_poll, self._next_beat, self._looked + SERVES if hungry else inf) - time.monotonic()
        poller.poll(1000 * min(max(due, 0.01), POLL))
        self.slots.hush()

    def _await_empty(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.held and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.held

    def _order_all(self, order: Order) -> None:
        for index in list(self.held):
            self._order(index, order)

    def _order(self, index: int, order: Order) -> None:
        held = self.held.get(index)
        if held is not None and held.ordered_at is None:
            held.ordered_at = time.monotonic()
            self.slots.order(index, order)

    def _survive(self, work: Callable[[], None]) -> None:
        """The feeder goes on whatever happens: without it no job of this host would ever end."""
        try:
            work()
        except DatabaseAway as error:
            log.warning("%s", error)
            self._in_touch_since = None
            self._settling = self.settings.host_lease  # every host looks dead now: let all beat again
            self._stopped.wait(0.5)
        except Exception:  # a bug must not end the thread; it is logged and tried again
            log.exception("feeder round failed")
            self._stopped.wait(1.0)
