"""The watch over real processes that use real memory; a test writes the size of the host and what others use."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from engine import Children, eventually

from ncr_worker.memory import watch as watch_module
from ncr_worker.memory.domain import Domain, Reading, rss_anon, tree_anon
from ncr_worker.memory.slots import JobSlot, Order, Phase, Slots
from ncr_worker.memory.watch import Watch, end, end_group
from ncr_worker.pipeline import GIB, MIB
from ncr_worker.worker.processes import has_ended

GRACE = 0.3


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "GRACE", GRACE)


class Host:
    """Its memory, slots and watch; jobs are forks that touch as many MiB as they are told, then begin."""

    def __init__(self, folder: Path, children: Children, limit: int = 200) -> None:
        self.folder = folder
        self.children = children
        self.limit = limit
        self.slots = Slots(4)
        self.used(0)
        self.watch = Watch(Domain(root=folder), self.slots, 0.8)

    def used(self, mib: int) -> None:
        """All processes of the host use so much, jobs included."""
        (self.folder / "proc").mkdir(exist_ok=True)
        lines = f"MemTotal: {self.limit * 1024} kB\nAnonPages: {mib * 1024} kB\nShmem: 0 kB\n"
        (self.folder / "proc/meminfo").write_text(lines)

    def job(self, index: int, reserved: int, touches: int, then: Callable[[JobSlot], object] | None = None) -> int:
        """Its pid, once it has touched its memory. By default it ignores all orders."""
        self.slots.arm(index, 70 + index, reserved * MIB)

        def work() -> None:
            mine, before = JobSlot(self.slots, index, 70 + index), rss_anon(os.getpid())
            block = touched(touches)
            mine.begin(before)
            (then or deaf)(mine)
            del block

        pid = self.children.start(work)
        assert eventually(lambda: self.slots.read(index).phase is not Phase.SENT)
        return pid

    def orders(self) -> list[Order]:
        return [self.slots.read(index).order for index in range(4)]

    def look_until_ended(self, pid: int) -> None:
        deadline = time.monotonic() + 10
        while not has_ended(pid):
            assert time.monotonic() < deadline, "it was not ended"
            self.watch.look()


def touched(mib: int) -> bytearray:
    block = bytearray(mib * MIB)
    block[::4096] = b"x" * len(block[::4096])
    return block


def deaf(_mine: JobSlot) -> None:
    time.sleep(600)


def obedient(mine: JobSlot) -> None:
    assert eventually(lambda: mine.order is not Order.NONE)
    mine.leave(clean=True)


def ended(pid: int) -> None:
    end(pid)
    assert eventually(lambda: has_ended(pid))


@pytest.fixture
def host(tmp_path: Path, children: Children) -> Host:
    return Host(tmp_path, children)


# --- what is seen -------------------------------------------------------------------------------------
def test_before_the_first_look_the_host_is_known_and_reservations_count(host: Host) -> None:
    host.used(40)
    host.slots.arm(1, 7, 30 * MIB)
    load = host.watch.load()
    assert (load.limit, load.source, load.budget, load.others) == (200 * MIB, "host", 120 * MIB, 40 * MIB)
    assert (load.charged, load.observed, load.charges[0].pid) == (30 * MIB, 0, 0)


def test_a_look_sees_what_a_job_and_the_processes_it_started_use(host: Host, children: Children) -> None:
    def with_child(_mine: JobSlot) -> None:
        block = touched(24)
        children.start(lambda: time.sleep(600))  # shares the block, which is counted for both
        time.sleep(600)
        del block

    pid = host.job(0, 100, 8, with_child)
    assert eventually(lambda: host.watch.look().observed > 50 * MIB)
    [charge] = host.watch.load().charges
    assert (charge.index, charge.token, charge.pid, charge.reserved) == (0, 70, pid, 100 * MIB)
    assert host.slots.read(0).peak >= charge.observed
    end(pid)


def test_what_an_ended_job_used_is_free_at_once(host: Host) -> None:
    host.job(0, 40, 40)
    host.used(100)
    seen = host.watch.look()
    host.slots.free(0)
    after = host.watch.load()
    assert after.others == seen.others
    assert after.free == seen.free + seen.charged


def test_what_a_job_gives_back_while_it_is_looked_at_is_not_the_others(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = host.job(0, 40, 40)
    host.used(60)
    before = host.watch.look()
    sample = host.slots.sample

    def ends(index: int) -> int:
        ended(pid)
        host.used(60 - before.observed // MIB)
        return sample(index)

    monkeypatch.setattr(host.slots, "sample", ends)
    after = host.watch.look()
    assert after.observed == 0
    assert after.others == pytest.approx(before.others, abs=MIB)


def test_what_one_gives_back_is_not_the_others_though_its_neighbour_has_taken_more(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    gives = host.job(0, 40, 24)
    host.job(1, 80, 4)
    host.used(60)
    before = host.watch.look()
    sample = host.slots.sample

    def ends(index: int) -> int:
        if index == 1:
            return sample(index) + 40 * MIB
        ended(gives)
        host.used(60 - before.charges[0].observed // MIB + 40)
        return sample(index)

    monkeypatch.setattr(host.slots, "sample", ends)
    host.used(60 + 40)
    after = host.watch.look()
    assert after.observed > before.observed
    assert after.others == pytest.approx(before.others, abs=MIB)


@pytest.mark.parametrize("taken_back", [0, 0.5, 1])
def test_the_others_do_not_change_while_the_kernel_takes_a_jobs_memory_back(
    host: Host, monkeypatch: pytest.MonkeyPatch, taken_back: float
) -> None:
    pid = host.job(0, 40, 40)
    host.job(1, 20, 4)
    host.used(80)
    before = host.watch.look()
    used, sample = before.charges[0].observed, host.slots.sample
    monkeypatch.setattr(watch_module, "is_ending", lambda asked: asked == pid)
    monkeypatch.setattr(host.slots, "sample", lambda index: sample(index) if index else 0)
    host.used(80 - int(taken_back * used) // MIB)
    during = host.watch.look()
    assert during.others == pytest.approx(before.others, abs=MIB)
    assert during.charges[0].observed == pytest.approx((1 - taken_back) * used, abs=MIB)
    monkeypatch.undo()
    ended(pid)
    assert host.watch.look().charges[0].observed == 0


def test_what_a_job_gives_back_after_it_was_looked_at_does_not_make_the_others_smaller(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.job(0, 40, 24)
    host.job(1, 60, 40)
    host.used(100)
    before = host.watch.look()
    sample, read, reads = host.slots.sample, host.watch._read, 0

    def reading() -> Reading:
        nonlocal reads
        reads += 1
        if reads == 2:
            host.used(100 - before.charges[1].observed // MIB)
        return read()

    # A page less of one job is reason enough to read again; by then the other one is gone.
    monkeypatch.setattr(host.slots, "sample", lambda index: sample(index) - (0 if index else 4096))
    monkeypatch.setattr(host.watch, "_read", reading)
    assert host.watch.look().others == pytest.approx(before.others, abs=MIB)


def test_the_others_do_not_change_while_a_process_ends_whose_own_processes_live(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = host.job(0, 120, 80)
    host.used(140)
    before = host.watch.look()
    monkeypatch.setattr(watch_module, "is_ending", lambda asked: asked == pid)
    monkeypatch.setattr(host.slots, "sample", lambda _: 20 * MIB)
    assert host.watch.look().others == pytest.approx(before.others, abs=MIB)


def test_room_is_kept_for_the_child_that_will_follow_one_that_ends(host: Host, children: Children) -> None:
    pid = host.job(0, 40, 8)
    host.watch.child = host.slots.read(0).baseline
    before = host.watch.look().expected
    end(pid)
    assert eventually(lambda: not rss_anon(pid))
    assert host.watch.look().expected == before + host.watch.child
    children.wait(pid)


def test_a_slot_that_is_left_keeps_its_reservation_and_uses_nothing(host: Host) -> None:
    host.job(0, 30, 24, lambda mine: mine.leave(clean=True))
    assert eventually(lambda: host.slots.read(0).phase is Phase.LEFT)
    load = host.watch.look()
    assert (load.charged, load.observed, load.charges[0].pid) == (30 * MIB, 0, 0)
    host.slots.free(0)
    assert host.watch.look().charges == ()


def test_a_machine_of_its_own_counts_the_own_processes_only(tmp_path: Path, children: Children) -> None:
    host = Host(tmp_path, children, limit=4000)
    host.used(3900)
    watch = Watch(Domain(2 * GIB, root=tmp_path), host.slots, 0.5)
    host.job(0, 1, 64)
    load = watch.look()
    assert (load.limit, load.source) == (2 * GIB, "setting")
    assert load.anonymous == pytest.approx(tree_anon(os.getpid()), abs=16 * MIB)
    assert load.anonymous > 64 * MIB
    assert load.others == load.anonymous - load.observed


# --- over its reservation, and the host is short ------------------------------------------------------
def test_a_job_may_use_more_than_it_reserved_while_there_is_enough(host: Host) -> None:
    host.job(0, 8, 48)
    host.job(1, 60, 4)
    assert not host.watch.look().exceeded
    assert host.orders() == [Order.NONE] * 4


def test_when_the_host_is_short_it_is_told_to_leave_and_its_neighbours_are_not(host: Host) -> None:
    host.job(0, 8, 48)
    host.job(1, 120, 4)
    load = host.watch.look()
    assert host.orders() == [Order.OUTGROWN, *[Order.NONE] * 3]
    assert [charge.ending for charge in load.charges] == [True, False]
    assert (host.watch.ended, host.watch.exceeded, load.exceeded) == (0, 0, False)


def test_who_leaves_within_the_grace_is_not_ended(host: Host, children: Children) -> None:
    pid = host.job(0, 8, 48, obedient)
    host.job(1, 120, 4)
    host.watch.look()
    assert children.wait(pid) == 0
    deadline = time.monotonic() + 2 * GRACE
    while time.monotonic() < deadline:
        host.watch.look()
    assert host.watch.ended == 0
    assert host.slots.read(0).phase is Phase.LEFT


def test_who_does_not_leave_is_ended_after_the_grace_with_all_it_has_started(host: Host, children: Children) -> None:
    names = host.folder / "family"

    def with_family(mine: JobSlot) -> None:
        child = subprocess.Popen(["sleep", "600"])
        detached = subprocess.Popen(["setsid", "sleep", "600"])
        names.write_text(f"{child.pid} {detached.pid}\n")
        deaf(mine)

    pid = host.job(0, 8, 48, with_family)
    assert eventually(lambda: names.exists() and names.read_text().endswith("\n"))
    family = [int(each) for each in names.read_text().split()]
    honest = host.job(1, 120, 4)
    begun = time.monotonic()
    host.look_until_ended(pid)
    assert time.monotonic() - begun >= GRACE
    assert children.wait(pid) == -9
    assert eventually(lambda: all(has_ended(each) for each in family))
    assert host.watch.ended == 1
    host.watch.look()
    assert host.watch.ended == 1, "it is ended once"
    assert not has_ended(honest)
    assert host.slots.read(0).order is Order.OUTGROWN


def test_the_next_job_in_a_slot_is_not_taken_for_the_one_that_was_told_to_leave(host: Host, children: Children) -> None:
    pid = host.job(0, 8, 48, obedient)
    host.job(1, 120, 4)
    host.watch.look()
    children.wait(pid)
    host.slots.arm(0, 99, 8 * MIB)
    load = host.watch.look()
    assert [charge.ending for charge in load.charges] == [False, False]
    host.job(0, 8, 8)
    host.watch.look()
    assert host.watch.ended == 0


def test_more_charged_than_may_be_is_counted_while_nobody_can_be_told(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.job(0, 80, 4)
    host.job(1, 70, 4)
    host.watch.look()
    assert host.watch.exceeded == 0
    host.used(60)
    for _ in range(2):
        assert host.watch.look().exceeded
    assert host.watch.exceeded == 2
    assert host.orders() == [Order.NONE] * 4
    assert caplog.text.count("more is charged than may be") == 1, "with all figures, and not at each look"


# --- near the limit -----------------------------------------------------------------------------------
def test_a_job_alone_may_have_all_below_the_danger_line(host: Host) -> None:
    pid = host.job(0, 8, 60)
    host.used(170)
    host.watch.look()
    assert not has_ended(pid)
    assert host.orders()[0] is Order.NONE


def test_near_the_limit_a_job_alone_is_ended_for_its_own_use(host: Host, children: Children) -> None:
    pid = host.job(0, 8, 60)
    host.used(195)
    host.watch.look()
    assert children.wait(pid) == -9
    assert (host.orders()[0], host.watch.ended) == (Order.OUTGROWN, 1)


def test_when_others_have_grown_a_job_that_keeps_to_its_word_is_given_back(host: Host, children: Children) -> None:
    pid = host.job(0, 60, 30)
    host.used(180)
    host.watch.look()
    assert host.orders()[0] is Order.NONE
    host.used(195)
    host.watch.look()
    assert children.wait(pid) == -9
    assert host.orders()[0] is Order.GIVE_BACK


def test_an_order_that_was_given_before_stays(host: Host, children: Children) -> None:
    pid = host.job(0, 8, 60)
    host.slots.order(0, Order.CANCEL)
    host.used(195)
    host.watch.look()
    assert children.wait(pid) == -9
    assert host.orders()[0] is Order.CANCEL


# --- the thread ---------------------------------------------------------------------------------------
def test_the_thread_looks_on_its_own_until_it_is_left(host: Host, children: Children) -> None:
    with host.watch:
        pid = host.job(0, 8, 48)
        host.job(1, 120, 4)
        assert children.wait(pid) == -9
    assert not [thread for thread in threading.enumerate() if thread.name == "memory"]


def test_at_ease_it_sleeps_and_a_job_that_is_expected_wakes_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = threading.Semaphore(0)
    read = host.watch.domain.read

    def counted() -> Reading:
        looks.release()
        return read()

    monkeypatch.setattr(host.watch.domain, "read", counted)
    monkeypatch.setattr(watch_module, "next_look", lambda _load, _cores: 600.0)
    with host.watch:
        assert looks.acquire(timeout=10)
        assert eventually(lambda: host.watch._interval == 600.0)
        host.watch.expect()
        assert looks.acquire(timeout=10)


def test_a_look_that_fails_is_logged_and_the_thread_goes_on(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read, failures = host.watch.domain.read, [OSError("no meminfo")]
    looks = threading.Event()

    def flaky() -> Reading:
        if failures:
            raise failures.pop()
        looks.set()
        return read()

    monkeypatch.setattr(host.watch.domain, "read", flaky)
    with caplog.at_level(logging.ERROR), host.watch:
        assert eventually(lambda: not failures)
        assert looks.wait(10)
    assert ["could not be read" in record.message for record in caplog.records] == [True]


# --- ending processes ---------------------------------------------------------------------------------
def test_ending_a_process_that_is_gone_does_nothing(children: Children) -> None:
    pid = children.start(lambda: None)
    children.wait(pid)
    end(pid)


def test_a_slot_without_a_child_has_no_group_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pid, _signal: ended.append(pid))
    for pid in (0, 1, 2):
        end_group(pid)
    assert ended == [2]
