"""Slots: shared memory between a worker's main process and its pool children, made before the fork.

One slot is one running job. Main arms a slot and sends its number with the message; the child that claims the
job writes its pid and what its stage needs, and reads orders. A child that dies leaves its pid behind.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from enum import IntEnum

from ncr_worker.memory.domain import rss_anon

# phase, token, pid, reserved, peak, order, baseline: eight bytes each, aligned. The phase is read first and written
# last: what a child wrote before it is then there too.
_SLOT = struct.Struct("=7q")


class Phase(IntEnum):
    FREE = 0
    SENT = 1  # main has armed it and sent the message
    RUNNING = 2  # a child has claimed the job
    LEFT = 3  # the child is done, the ledger knows
    LEFT_DIRTY = 4  # the child is done with it, but could not tell the ledger


class Order(IntEnum):
    NONE = 0
    CANCEL = 1  # a person asked for it
    GIVE_BACK = 2  # the worker stops
    LOST = 3  # the job is not this host's any more


@dataclass(frozen=True, slots=True)
class Slot:
    """Sizes in bytes. `peak`: most anonymous memory seen above `baseline`, what the child had before its first job."""

    token: int
    pid: int
    reserved: int
    peak: int
    phase: Phase
    order: Order
    baseline: int


class Slots:
    def __init__(self, count: int) -> None:
        self.count = count
        self._memory = mmap.mmap(-1, _SLOT.size * count)
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        """Readable when a child has written; also rung by whoever has news for the feeder."""

    def read(self, index: int) -> Slot:
        phase, token, pid, reserved, peak, order, baseline = _SLOT.unpack_from(self._memory, index * _SLOT.size)
        return Slot(token, pid, reserved, peak, Phase(phase), Order(order), baseline)

    def ring(self) -> None:
        os.eventfd_write(self.bell, 1)

    def hush(self) -> None:
        """Take all rings so far."""
        try:
            os.eventfd_read(self.bell)
        except BlockingIOError:
            return

    def arm(self, index: int, token: int, reserved: int) -> None:
        self._write(index, Slot(token, 0, reserved, 0, Phase.SENT, Order.NONE, 0))

    def free(self, index: int) -> None:
        self._write(index, Slot(0, 0, 0, 0, Phase.FREE, Order.NONE, 0))

    def order(self, index: int, order: Order) -> None:
        self.put(index, 5, order)

    def sample(self, index: int) -> int:
        """Anonymous bytes that the running job uses now; its peak is kept in the slot."""
        slot = self.read(index)
        used = max(rss_anon(slot.pid) - slot.baseline, 0)
        self.put(index, 4, max(used, slot.peak))
        return used

    def _write(self, index: int, slot: Slot) -> None:
        values = (slot.phase, slot.token, slot.pid, slot.reserved, slot.peak, slot.order, slot.baseline)
        _SLOT.pack_into(self._memory, index * _SLOT.size, *values)

    def put(self, index: int, field: int, value: int) -> None:
        struct.pack_into("=q", self._memory, index * _SLOT.size + 8 * field, value)


class JobSlot:
    """The pool child's side of one slot, as long as it is armed for `token`."""

    def __init__(self, slots: Slots, index: int, token: int) -> None:
        self._slots = slots
        self._index = index
        self._token = token

    @property
    def reserved(self) -> int:
        return self._slots.read(self._index).reserved

    @property
    def peak(self) -> int:
        self._slots.sample(self._index)
        return self._slots.read(self._index).peak

    @property
    def order(self) -> Order:
        return self._slots.read(self._index).order

    @property
    def mine(self) -> bool:
        return self._slots.read(self._index).token == self._token

    def begin(self, baseline: int) -> bool:
        """This process runs the job. `baseline`: its anonymous bytes before its first job.

        False when the slot was given to another job meanwhile: then this one is no longer ours.
        """
        if not self.mine:
            return False
        self._slots.put(self._index, 2, os.getpid())
        self._slots.put(self._index, 6, baseline)
        self._phase(Phase.RUNNING)
        return True

    def lower(self, need: int) -> None:
        """The stage that runs now needs only so much; the reservation never grows this way."""
        self._slots.put(self._index, 3, min(need, self.reserved))
        self._slots.ring()

    def leave(self, *, clean: bool) -> None:
        if self.mine:
            self._phase(Phase.LEFT if clean else Phase.LEFT_DIRTY)

    def _phase(self, phase: Phase) -> None:
        self._slots.put(self._index, 0, phase)
        self._slots.ring()
