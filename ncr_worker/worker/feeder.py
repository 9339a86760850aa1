"""The feeder: decides which job starts on this host now. Nothing else does.

It runs in a thread of the worker's main process. Each round it beats for the host, looks after the jobs that the
host holds, passes on orders, and takes from the ledger what fits.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from math import inf

from ncr_worker.ledger import HostFigures, Ledger, Offer
from ncr_worker.ledger.queue import SERVES
from ncr_worker.memory.domain import Domain
from ncr_worker.memory.slots import Order, Slots
from ncr_worker.memory.watch import Watch
from ncr_worker.settings import Settings
from ncr_worker.sql import DatabaseAway
from ncr_worker.worker.holding import STOP_GRACE, Held, Holding, Send

log = logging.getLogger(__name__)

POLL = 1.0  # seconds between two looks for work when nobody woke us
LOOK = 3.0  # ... as long as work is left that was read ahead
BEGINS = 0.1  # ... when a job is on its way to a child, of whose death nobody would tell us yet


class Feeder:
    """`send` must not block for long. `kinds`: what this worker can run; None: everything."""

    def __init__(
        self, settings: Settings, ledger: Ledger, slots: Slots, send: Send, kinds: Collection[str] | None = None
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.slots = slots
        self.kinds = None if kinds is None else tuple(sorted(kinds))
        self.watch = Watch(Domain(settings.host_memory_bytes), slots, settings.max_memory_usage_percent / 100)
        self.holding = Holding(ledger, slots, self.watch, send)
        self.incarnation = str(uuid.uuid4())
        self.draining = False
        self._stopped = threading.Event()
        self._next_poll = self._next_beat = self._looked = 0.0
        self._in_touch_since: float | None = None  # with the database, without a gap
        self._settling = 2 * settings.host_heartbeat  # seconds in touch before this host calls another one dead
        self.cpu = 0.0  # seconds that rounds took, without sending

    @property
    def held(self) -> Mapping[int, Held]:
        """Slot -> the job in it."""
        return self.holding.jobs

    # --- life -----------------------------------------------------------------------------------------
    def start(self) -> None:
        """Register the host; its earlier incarnation's jobs are released. Raises ConfigError, DatabaseAway."""
        released = self.ledger.hosts.register(self.settings.host, self.incarnation, self.figures())
        if released:
            log.warning("released %d jobs of this host's earlier life", released)

    def run(self) -> None:
        while not self._stopped.is_set():
            began, sent = time.thread_time(), self.holding.publish_cpu
            self._survive(self.round)
            self._wait()
            self.cpu += time.thread_time() - began - (self.holding.publish_cpu - sent)

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
        self.holding.news = True
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
            self.holding.order_all(Order.GIVE_BACK)
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
        self.holding.look_after_all(draining=self.draining)
        if now >= self._next_poll:
            self._pass_orders()
            self.holding.room = True
            self.holding.news |= now - self._looked >= LOOK
            self._next_poll = now + POLL
        if (self.holding.room or self.holding.news) and not self.draining:
            self._feed()

    def _beat(self, now: float) -> None:
        host, figures = self.settings.host, self.figures()
        if not self.ledger.hosts.beat(host, self.incarnation, "draining" if self.draining else "up", figures):
            log.warning("this host was taken for dead: registering again")
            self.ledger.hosts.register(host, self.incarnation, figures)
        self.holding.reconcile(self.ledger.hosts.tokens(host))
        self._next_beat = now + self.settings.host_heartbeat
        self._in_touch_since = self._in_touch_since or now
        if now - self._in_touch_since >= self._settling:
            for dead in self.ledger.hosts.reap(host):
                log.warning("host %s is dead: its jobs were released", dead)
                self.holding.news = True

    def _pass_orders(self) -> None:
        if self.held:
            self.holding.order(self.ledger.intake.cancelling(self.settings.host), Order.CANCEL)

    def _feed(self) -> None:
        holding, queue, now = self.holding, self.ledger.queue, time.monotonic()
        free, holding.room = holding.free, False
        if not free or (load := self.watch.load()).in_danger:
            return
        fresh = queue.dry or (holding.news and now - self._looked >= SERVES)
        if fresh:
            holding.news, self._looked = False, now
        host, idle, charged = self.settings.host, not self.held, [charge.bytes for charge in load.charges]
        offer = Offer(host, len(free), load.free, idle, load.limit, self.kinds, holding.running, charged)
        for job, index in zip(queue.pick(offer, fresh=fresh), free, strict=False):
            holding.take(index, job)
        self.watch.expect()

    # --- waiting and stopping -------------------------------------------------------------------------
    def _wait(self) -> None:
        """Until something happens, or is due."""
        hungry = self.holding.news and self.holding.free
        due = min(self._next_poll, self._next_beat, self._looked + SERVES if hungry else inf) - time.monotonic()
        self.holding.wait(min(max(due, 0.01), BEGINS if self.holding.sent else POLL))

    def _await_empty(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.held and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.held

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
