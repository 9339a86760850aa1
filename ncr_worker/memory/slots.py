"""Slots: shared memory between a worker's main process and its pool children, made before the fork.

One slot is one running job. Main arms a slot and sends its number with the message; the child that claims the
job writes its pid and what its stage needs, and reads orders. A child that dies leaves its pid behind.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from enum import IntEnum
from typing import NamedTuple

from ncr_worker.memory.domain import tree_anon

# phase, token, pid, reserved, peak, order, baseline, asked: eight bytes each, aligned. The phase is read first and
# written last: what a child wrote before it is then there too.
_SLOT = struct.Struct("=8q")
_FIELD = struct.Struct("=q")
_PHASE, _TOKEN, _PID, _RESERVED, _PEAK, _ORDER, _BASELINE, _ASKED = range(8)
PATIENCE = 1.0  # seconds that a child waits for the answer to a wish for more memory


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
    OUTGROWN = 4  # it uses more than it reserved, and the host is short of memory


_PHASES, _ORDERS = tuple(Phase), tuple(Order)  # by number: a lookup costs a tenth of the call


class Slot(NamedTuple):
    """Sizes in bytes. `peak`: most anonymous memory seen above `baseline`, what the child had before the job."""

    token: int
    pid: int
    reserved: int
    peak: int
    phase: Phase
    order: Order
    baseline: int
    asked: int = 0  # bytes that the stage to come needs, as long as main has not answered


class Slots:
    def __init__(self, count: int) -> None:
        self.count = count
        self._memory = mmap.mmap(-1, _SLOT.size * count)
        self.bell = os.eventfd(0, os.EFD_NONBLOCK)
        """Readable when a child has written; also rung by whoever has news for the feeder."""

    def read(self, index: int) -> Slot:
        values = _SLOT.unpack_from(self._memory, index * _SLOT.size)
        phase, token, pid, reserved, peak, order, baseline, asked = values
        return Slot(token, pid, reserved, peak, _PHASES[phase], _ORDERS[order], baseline, asked)

    def any_free(self) -> bool:
        return any(self.get(index, _PHASE) == Phase.FREE for index in range(self.count))

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
        self.put(index, _ORDER, order)

    def sample(self, index: int) -> int:
        """Anonymous bytes that the running job uses now, with all processes it has started; its peak is kept."""
        slot = self.read(index)
        used = max(tree_anon(slot.pid) - slot.baseline, 0)
        if used > slot.peak and self.get(index, _TOKEN) == slot.token:
            self.put(index, _PEAK, used)
        return used

    def answer(self, index: int, reserved: int) -> None:
        """What a child that asked for more has reserved from now on; as much as before: no."""
        self.put(index, _RESERVED, reserved)
        self.put(index, _ASKED, 0)

    def _write(self, index: int, slot: Slot) -> None:
        values = (slot.phase, slot.token, slot.pid, slot.reserved, slot.peak, slot.order, slot.baseline, slot.asked)
        _SLOT.pack_into(self._memory, index * _SLOT.size, *values)

    def put(self, index: int, field: int, value: int) -> None:
        _FIELD.pack_into(self._memory, index * _SLOT.size + 8 * field, value)

    def get(self, index: int, field: int) -> int:
        value: int = _FIELD.unpack_from(self._memory, index * _SLOT.size + 8 * field)[0]
        return value


class JobSlot:
    """The pool child's side of one slot, as long as it is armed for `token`."""

    def __init__(self, slots: Slots, index: int, token: int) -> None:
        self._slots = slots
        self._index = index
        self._token = token

    @property
    def reserved(self) -> int:
        return self._slots.get(self._index, _RESERVED)

    @property
    def peak(self) -> int:
        self._slots.sample(self._index)
        return self._slots.get(self._index, _PEAK)

    def forget_peak(self) -> None:
        """From now on it is measured anew."""
        self._slots.put(self._index, _PEAK, 0)

    @property
    def baseline(self) -> int:
        return self._slots.get(self._index, _BASELINE)

    @property
    def order(self) -> Order:
        return _ORDERS[self._slots.get(self._index, _ORDER)]  # asked for at each step: a third of the cost of a read

    @property
    def mine(self) -> bool:
        return self._slots.get(self._index, _TOKEN) == self._token

    def begin(self, baseline: int) -> bool:
        """This process runs the job. `baseline`: its anonymous bytes before the job. Main need not be told at once.

        False when the slot was given to another job meanwhile: then this one is no longer ours.
        """
        if not self.mine:
            return False
        self._slots.put(self._index, _PID, os.getpid())
        self._slots.put(self._index, _BASELINE, baseline)
        self._slots.put(self._index, _PHASE, Phase.RUNNING)
        return True

    def lower(self, need: int) -> None:
        """The stage that runs now needs only so much; the reservation never grows this way.

        Without a free slot nobody could start in what it gives back: main sees it when it has one.
        """
        if need < self.reserved:
            self._slots.put(self._index, _RESERVED, need)
            if self._slots.any_free():
                self._slots.ring()

    def ask(self, need: int) -> bool:
        """Whether main lets the job have `need` bytes. No answer is a no."""
        self._slots.put(self._index, _ASKED, need)
        self._slots.ring()
        deadline = time.monotonic() + PATIENCE
        while self._slots.get(self._index, _ASKED) and time.monotonic() < deadline:
            time.sleep(0.002)
        self._slots.put(self._index, _ASKED, 0)
        return self.reserved >= need

    def leave(self, *, clean: bool) -> None:
        if self.mine:
            self._slots.put(self._index, _PHASE, Phase.LEFT if clean else Phase.LEFT_DIRTY)
            self._slots.ring()
