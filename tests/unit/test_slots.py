"""Slots over a real fork: what a child writes the main process reads, and the other way round."""

from __future__ import annotations

import os
import select

import pytest
from engine import Children, eventually

from ncr_worker.memory.domain import rss_anon
from ncr_worker.memory.slots import JobSlot, Order, Phase, Slot, Slots
from ncr_worker.pipeline import MIB

FREE = Slot(0, 0, 0, 0, Phase.FREE, Order.NONE, 0)


@pytest.fixture
def slots() -> Slots:
    return Slots(3)


def rings(slots: Slots) -> bool:
    return bool(select.select([slots.bell], [], [], 0)[0])


def test_slots_are_free_at_first(slots: Slots) -> None:
    assert [slots.read(index) for index in range(3)] == [FREE] * 3


def test_a_slot_that_is_armed_and_freed_forgets_everything(slots: Slots) -> None:
    slots.arm(1, 2**62 - 1, 5 * MIB)
    JobSlot(slots, 1, 2**62 - 1).begin(7)
    slots.order(1, Order.CANCEL)
    slots.arm(1, 9, MIB)
    assert slots.read(1) == Slot(9, 0, MIB, 0, Phase.SENT, Order.NONE, 0)
    slots.free(1)
    assert [slots.read(index) for index in range(3)] == [FREE] * 3


def test_a_child_tells_its_phases_and_rings_when_it_leaves(slots: Slots, children: Children) -> None:
    slots.arm(2, 7, 5 * MIB)

    def work() -> None:
        mine = JobSlot(slots, 2, 7)
        mine.begin(3 * MIB)
        assert eventually(lambda: mine.order is Order.CANCEL)
        mine.leave(clean=False)

    pid = children.start(work)
    assert eventually(lambda: slots.read(2).phase is Phase.RUNNING)
    assert slots.read(2) == Slot(7, pid, 5 * MIB, 0, Phase.RUNNING, Order.NONE, 3 * MIB)
    assert not rings(slots)
    slots.order(2, Order.CANCEL)
    assert children.wait(pid) == 0
    assert slots.read(2).phase is Phase.LEFT_DIRTY
    assert rings(slots)
    assert slots.read(0) == slots.read(1) == FREE


def test_the_phase_of_a_running_child_is_never_seen_before_its_pid(slots: Slots, children: Children) -> None:
    rounds = 300

    def work() -> None:
        for token in range(rounds):
            while (slot := slots.read(0)).phase is not Phase.SENT or slot.token != token:
                continue
            JobSlot(slots, 0, token).begin(0)

    pid = children.start(work)
    for token in range(rounds):
        slots.arm(0, token, MIB)
        while (slot := slots.read(0)).phase is not Phase.RUNNING:
            continue
        assert slot.pid == pid
    assert children.wait(pid) == 0


def test_a_killed_child_leaves_its_pid_behind(slots: Slots, children: Children) -> None:
    slots.arm(0, 7, MIB)

    def work() -> None:
        JobSlot(slots, 0, 7).begin(0)
        os.kill(os.getpid(), 9)

    pid = children.start(work)
    assert children.wait(pid) == -9
    assert (slots.read(0).phase, slots.read(0).pid) == (Phase.RUNNING, pid)


def test_a_reservation_is_lowered_and_never_raised(slots: Slots) -> None:
    slots.arm(0, 7, 5 * MIB)
    mine = JobSlot(slots, 0, 7)
    mine.lower(8 * MIB)
    assert mine.reserved == 5 * MIB
    mine.lower(2 * MIB)
    assert slots.read(0).reserved == mine.reserved == 2 * MIB


@pytest.mark.parametrize(("busy", "told"), [(2, True), (3, False)])
def test_room_is_told_of_where_somebody_could_start_in_it(slots: Slots, busy: int, told: bool) -> None:
    for index in range(busy):
        slots.arm(index, index, 5 * MIB)
    JobSlot(slots, 0, 0).lower(2 * MIB)
    assert rings(slots) is told


def test_the_peak_of_a_child_stays_after_it_has_let_go(slots: Slots, children: Children) -> None:
    slots.arm(0, 7, 200 * MIB)

    def work() -> None:
        mine = JobSlot(slots, 0, 7)
        mine.begin(rss_anon(os.getpid()))
        block = bytearray(os.urandom(1) * (64 * MIB))
        assert mine.peak > 60 * MIB
        del block
        mine.leave(clean=True)
        os.read(gate[0], 1)

    gate = os.pipe()
    pid = children.start(work)
    assert eventually(lambda: slots.read(0).phase is Phase.LEFT)
    assert slots.sample(0) < 32 * MIB
    assert 60 * MIB < slots.read(0).peak < 80 * MIB
    os.write(gate[1], b"x")
    assert children.wait(pid) == 0
    assert slots.sample(0) == 0
    for descriptor in gate:
        os.close(descriptor)


def test_a_child_that_comes_too_late_does_not_touch_the_next_jobs_slot(slots: Slots) -> None:
    late = JobSlot(slots, 0, 7)
    slots.arm(0, 8, MIB)
    armed = slots.read(0)
    assert not late.begin(0)
    late.leave(clean=True)
    assert slots.read(0) == armed
