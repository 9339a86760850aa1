"""Watches what running jobs use, and ends what would make the kernel choose: in its own thread, without SQL."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType

from ncr_worker.memory.budget import Charge, Load, doomed, fill_rate, next_look, victims
from ncr_worker.memory.domain import Domain, Reading, children, descendants, is_ending, rss_anon, tree_anon
from ncr_worker.memory.slots import Order, Phase, Slots

log = logging.getLogger(__name__)

GRACE = 2.0  # seconds that a job gets to leave on its own when it uses more than it reserved


@dataclass(frozen=True, slots=True)
class _Sample:
    """The host at one moment. `at`: monotonic seconds; `observed`: token -> bytes; for the rest see Load."""

    reading: Reading
    at: float = -math.inf
    observed: Mapping[int, int] = field(default_factory=dict)
    rising: float = 0.0
    expected: int = 0


class Watch:
    """`share`: 0..1 of the limit that jobs and others may use together. Enter it to start sampling."""

    def __init__(self, domain: Domain, slots: Slots, share: float) -> None:
        self.domain = domain
        self.slots = slots
        self.share = share
        self.ended = self.exceeded = 0
        """Jobs ended for their memory; samples at which more was charged than may be."""
        self._cores = os.cpu_count() or 1
        self._since: dict[int, float] = {}  # token -> when it was first seen to run
        self._told: dict[int, float] = {}  # token -> when it was told to leave
        self._killed: set[int] = set()  # tokens
        self._sample: _Sample | None = None  # the last one
        self._exceeding = False  # at the last look
        self._interval = 0.0
        self.child = 0
        """Bytes of a pool child that has loaded its libraries: as much is kept free for each that has not yet."""
        self._stop = threading.Event()
        self._nudge = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._nudge.set()
        self._thread.join(5)

    @property
    def reading(self) -> Reading:
        """The last sample of the host."""
        return self._last().reading

    def load(self) -> Load:
        """The host now: reservations as they are, use as last sampled."""
        sample = self._last()
        charges = self._charges(sample.observed)
        here = {charge.token for charge in charges}
        return Load(
            limit=sample.reading.limit,
            source=sample.reading.source,
            anonymous=sample.reading.anonymous,
            share=self.share,
            charges=charges,
            rising=sample.rising,
            expected=sample.expected,
            gone=sum(used for token, used in sample.observed.items() if token not in here),
        )

    def expect(self) -> None:
        """A job is about to run: do not sleep through its first steps."""
        if self._interval > 0.1:
            self._nudge.set()

    def look(self) -> Load:
        """Take a sample; tell jobs to leave, and end them, where that is needed."""
        before, self._sample = self._sample, self._take_sample()
        load, now = self.load(), time.monotonic()
        self._forget({charge.token for charge in load.charges})
        for charge in load.charges:
            if charge.pid:
                self._since.setdefault(charge.token, now)
        for charge in victims(load, now):
            self._tell(charge, now)
        for charge in doomed(load, now):
            self._end(charge, "the host is about to run out of memory")
        for charge in load.charges:
            if charge.pid and now - self._told.get(charge.token, now) > GRACE:
                self._end(charge, f"it did not leave within {GRACE:g} s")
        load = self.load()
        if load.exceeded and not self._exceeding:
            log.warning("more is charged than may be: %s; the sample before it was %s", load, before)
        self._exceeding = load.exceeded
        self.exceeded += load.exceeded
        return load

    def _last(self) -> _Sample:
        return self._sample or _Sample(self._read())

    def _take_sample(self) -> _Sample:
        before = self._last()
        # The domain first: what grows in between is counted for the jobs, and not as others' and for ever.
        reading, at = self._read(), time.monotonic()
        rising = fill_rate(before.rising, reading.anonymous - before.reading.anonymous, at - before.at)
        observed, ending = self._observe()
        if given := sum(max(used - observed.get(token, 0), 0) for token, used in before.observed.items()):
            # What they gave back since the reading is not the others' either. No more than that: what a job gives back
            # after it was looked at is still counted for it.
            again = max(self._read().anonymous, reading.anonymous - given)
            reading = replace(reading, anonymous=min(reading.anonymous, again))
        others = before.reading.anonymous - sum(before.observed.values())
        for token in ending:  # it tells no more what it uses: as much as the others would else be taken to have grown
            left = max(reading.anonymous - others - sum(observed.values()), 0)
            observed[token] = min(left, before.observed.get(token, 0))
        return _Sample(reading, at, observed, rising, self._missing())

    def _read(self) -> Reading:
        reading = self.domain.read()
        if reading.source != "setting":
            return reading
        # As if the worker had a machine of that size for itself.
        return replace(reading, anonymous=tree_anon(os.getpid()))

    def _observe(self) -> tuple[dict[int, int], list[int]]:
        """Token -> bytes, of each job that runs; tokens of those whose memory the kernel is taking back."""
        found, ending = {}, []
        for index in range(self.slots.count):
            slot = self.slots.read(index)
            if slot.phase is Phase.RUNNING:
                used = self.slots.sample(index)
                if is_ending(slot.pid):  # be it that processes it has started live on
                    ending.append(slot.token)
                else:
                    found[slot.token] = used
        return found, ending

    def _missing(self) -> int:
        """What this worker's children lack to a usual one: else the budget would shrink under the jobs as they load."""
        slots = [self.slots.read(index) for index in range(self.slots.count)]
        busy = {slot.pid: slot.baseline for slot in slots if slot.phase is Phase.RUNNING}
        sizes = [min(busy.get(pid, self.child), rss_anon(pid)) for pid in children(os.getpid())]
        sizes += [0] * (self.slots.count - len(sizes))
        return sum(max(self.child - size, 0) for size in sizes)

    def _charges(self, observed: Mapping[int, int]) -> tuple[Charge, ...]:
        charges = []
        for index in range(self.slots.count):
            slot = self.slots.read(index)
            if slot.phase is Phase.FREE:
                continue
            pid = slot.pid if slot.phase is Phase.RUNNING else 0
            seen, since = observed.get(slot.token, 0), self._since.get(slot.token, time.monotonic())
            ending = slot.token in self._told
            charges.append(Charge(index, slot.token, slot.reserved, seen, pid, since, ending))
        return tuple(charges)

    def _forget(self, known: set[int]) -> None:
        for gone in self._since.keys() - known:
            del self._since[gone]
        for gone in self._told.keys() - known:
            del self._told[gone]
        self._killed &= known

    def _tell(self, charge: Charge, now: float) -> None:
        self._told[charge.token] = now
        log.warning(
            "job in slot %d uses %d of %d bytes reserved, and the host is short of memory: told to leave",
            *(charge.index, charge.observed, charge.reserved),
        )
        self._order(charge)

    def _end(self, charge: Charge, why: str) -> None:
        slot = self.slots.read(charge.index)
        if slot.token != charge.token or slot.phase is not Phase.RUNNING or charge.token in self._killed:
            return  # it has left meanwhile
        self._killed.add(charge.token)
        self._told.setdefault(charge.token, time.monotonic())
        self._order(charge)
        log.warning(
            "ending process %d, which uses %d of %d bytes reserved: %s",
            *(charge.pid, charge.observed, charge.reserved, why),
        )
        self.ended += 1
        end(charge.pid)

    def _order(self, charge: Charge) -> None:
        """A job that keeps to its word, and has to go for others, loses no attempt."""
        if self.slots.read(charge.index).order is Order.NONE:
            load = self.load()
            alone = len(load.charges) == 1 and charge.observed > load.others
            at_fault = charge.over or alone
            self.slots.order(charge.index, Order.OUTGROWN if at_fault else Order.GIVE_BACK)

    def _run(self) -> None:
        with suppress(PermissionError):  # it must not wait for those that it watches
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -10)
        while not self._stop.is_set():
            try:
                self._interval = next_look(self.look(), self._cores)
            except Exception:  # a bug must not end the thread: without it the kernel would choose
                log.exception("the memory of this host could not be read")
                self._interval = 1.0
            self._nudge.wait(self._interval)
            self._nudge.clear()


def end(pid: int) -> None:
    """End a pool child with all processes that its job has started."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    _signal_group(pid, signal.SIGSTOP)  # nobody starts more, or takes more, while we look for those there are
    end_descendants(pid)
    end_group(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def end_group(pid: int) -> None:
    """End what a pool child has left behind: each leads a group of its own."""
    _signal_group(pid, signal.SIGKILL)


def _signal_group(pid: int, number: signal.Signals) -> None:
    if pid > 1:  # 0 would be our own
        with suppress(ProcessLookupError):
            os.killpg(pid, number)


def end_descendants(pid: int) -> None:
    for each in descendants(pid):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
