"""When a pool child asks to be renewed, measured in real forks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import billiard.pool
import pytest
from engine import Children

from ncr_worker.memory.domain import rss_anon
from ncr_worker.pipeline import MIB
from ncr_worker.worker.recycling import LEAVE, POOL_LIMIT, STAY, Recycling


@pytest.fixture
def in_child() -> Iterator[Callable[[Callable[[], object]], int]]:
    """`in_child(work)`: the exit status of a fork that did this work; the pool's question is asked there alone."""
    children = Children()

    yield lambda work: children.wait(children.start(work))
    children.close()


LIMIT, BLOCK = 64 * MIB, 256 * MIB  # large beside what the kernel may take meanwhile of memory that the fork inherited
InChild = Callable[[Callable[[], object]], int]


def answer() -> int:
    pool: Any = billiard.pool
    return int(pool.mem_rss())


def test_the_pool_still_ends_a_child_whose_answer_is_above_its_limit() -> None:
    assert STAY <= POOL_LIMIT < LEAVE
    assert "mem_rss" in billiard.pool.Worker.workloop.__code__.co_names


def test_a_child_that_gives_its_memory_back_stays(in_child: InChild) -> None:
    def work() -> None:
        recycling = Recycling(LIMIT)
        block = bytearray(b"x" * BLOCK)
        assert recycling.retained() > BLOCK // 2
        del block
        recycling.after("deliver", None)
        assert answer() == STAY

    assert in_child(work) == 0


def test_what_a_job_leaves_is_given_back_at_once(in_child: InChild) -> None:
    """Far below the limit too: malloc keeps what was freed below something that lives on."""

    def work() -> None:
        recycling = Recycling(1024 * MIB)
        blocks = [bytes(100_000) for _ in range(1000)]
        last = bytes(100_000)
        before = rss_anon(os.getpid())
        del blocks
        assert before - rss_anon(os.getpid()) < 10 * MIB, "else there is nothing to give back"
        recycling.after("deliver", None)
        assert before - rss_anon(os.getpid()) > 40 * MIB
        assert last

    assert in_child(work) == 0


def test_a_child_that_keeps_memory_leaves(in_child: InChild) -> None:
    def work() -> None:
        recycling = Recycling(LIMIT)
        leak = bytearray(b"x" * BLOCK)
        recycling.after("deliver", None)
        assert answer() == LEAVE
        assert leak

    assert in_child(work) == 0


def test_garbage_in_cycles_is_no_leak(in_child: InChild) -> None:
    def work() -> None:
        recycling = Recycling(LIMIT)
        for _ in range(8):
            cycle: list[object] = [bytearray(b"x" * (BLOCK // 8))]
            cycle.append(cycle)
        del cycle
        recycling.after("deliver", None)
        assert answer() == STAY

    assert in_child(work) == 0


def test_a_child_leaves_after_the_jobs_that_its_kind_allows_and_kinds_are_counted_apart(in_child: InChild) -> None:
    def work() -> None:
        recycling = Recycling(1024 * MIB)
        for _ in range(5):
            recycling.after("deliver", None)
        for _ in range(2):
            recycling.after("dataset", 3)
            assert answer() == STAY
        recycling.after("dataset", 3)
        assert answer() == LEAVE

    assert in_child(work) == 0


def test_what_the_parent_had_at_the_fork_is_not_counted(in_child: InChild) -> None:
    inherited = bytearray(b"x" * (64 * MIB))

    def work() -> None:
        recycling = Recycling(16 * MIB)
        assert inherited
        recycling.after("deliver", None)
        assert answer() == STAY

    assert in_child(work) == 0
