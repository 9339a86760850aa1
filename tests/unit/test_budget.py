"""What a host may spend, and how much of that its jobs hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import Children, eventually

from ncr_worker.memory.budget import Budget
from ncr_worker.memory.domain import Domain, rss_anon
from ncr_worker.memory.slots import JobSlot, Phase, Slots
from ncr_worker.pipeline import GIB, MIB


@pytest.fixture
def children() -> Iterator[Children]:
    children = Children()
    yield children
    children.close()


def host_with(folder: Path, *, total: int, anonymous: int) -> Domain:
    (folder / "proc").mkdir()
    lines = f"MemTotal: {total // 1024} kB\nAnonPages: {anonymous // 1024} kB\nShmem: 0 kB\n"
    (folder / "proc/meminfo").write_text(lines)
    return Domain(root=folder)


def test_the_budget_is_the_allowed_share_less_what_others_use(tmp_path: Path) -> None:
    budget = Budget(host_with(tmp_path, total=8 * GIB, anonymous=GIB), Slots(4), 0.75)
    figures = budget.figures([])
    assert (figures.limit_bytes, figures.budget, figures.others) == (8 * GIB, 5 * GIB, GIB)
    assert (figures.reserved, figures.slots, figures.running) == (0, 4, 0)


def test_a_host_full_of_others_has_no_budget_rather_than_a_negative_one(tmp_path: Path) -> None:
    assert Budget(host_with(tmp_path, total=8 * GIB, anonymous=7 * GIB), Slots(1), 0.5).figures([]).budget == 0


def test_jobs_hold_what_they_reserved(tmp_path: Path) -> None:
    slots = Slots(4)
    slots.arm(0, 1, 300 * MIB)
    slots.arm(2, 2, 500 * MIB)
    figures = Budget(host_with(tmp_path, total=8 * GIB, anonymous=0), slots, 1).figures([0, 2])
    assert (figures.reserved, figures.running) == (800 * MIB, 2)


def test_a_job_that_uses_more_than_it_reserved_is_charged_what_it_uses(tmp_path: Path, children: Children) -> None:
    slots = Slots(1)
    slots.arm(0, 1, 8 * MIB)
    gate = os.pipe()

    def work() -> None:
        mine, before = JobSlot(slots, 0, 1), rss_anon(os.getpid())
        block = bytearray(b"x" * (64 * MIB))
        mine.begin(before)
        os.read(gate[0], 1)
        del block

    children.start(work)
    assert eventually(lambda: slots.read(0).phase is Phase.RUNNING)
    figures = Budget(host_with(tmp_path, total=8 * GIB, anonymous=GIB), slots, 1).figures([0])
    assert 60 * MIB < figures.reserved < 80 * MIB
    assert figures.others == pytest.approx(GIB - figures.reserved, abs=MIB)
    for descriptor in gate:
        os.close(descriptor)
