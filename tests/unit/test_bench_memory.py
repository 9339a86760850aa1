"""What bench-memory runs, and how it counts: the parts that need no host of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import memory_course
import memory_work
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_course import Course, Outcome, follow
from memory_group import MemoryGroup
from memory_kinds import WorkArgs, write_kinds
from memory_mix import KINDS, LONGEST, MEAN, SHORTEST, SMALLER, TABLES, mix, synthetic
from memory_report import report, told
from memory_trace import Task, Trace
from memory_work import CSV, EFFECTS, MIB, TABLE, Work, do
from rich.console import Console

from ncr_worker.pipelines import load_pipelines

MOST = 3 * 1024 * MIB


def test_a_seed_decides_the_mix() -> None:
    trace = synthetic(1, 300)
    assert mix(trace, 1, 100, 10.0, MOST) == mix(trace, 1, 100, 10.0, MOST)
    assert mix(trace, 1, 100, 10.0, MOST) != mix(trace, 2, 100, 10.0, MOST)


@given(st.integers(0, 1000), st.integers(20, 200))
def test_jobs_last_as_long_as_they_should(seed: int, count: int) -> None:
    jobs = mix(synthetic(seed, 200), seed, count, 10.0, MOST)
    assert [job.number for job in jobs] == list(range(count))
    assert all(SHORTEST <= job.seconds <= LONGEST for job in jobs)
    assert sum(job.seconds for job in jobs) == pytest.approx(MEAN * count, rel=0.05)
    assert all(0 < job.declared <= MOST and job.peak >= MIB for job in jobs)
    assert sum(job.kind == TABLE for job in jobs) == count // TABLES


def test_tasks_keep_their_order_and_a_part_of_their_size() -> None:
    tasks = [Task(number, f"a:{number % 3}", None, (number + 1) * 20 * MIB, 100.0, 10**12) for number in range(50)]
    jobs = [job for job in mix(Trace("some-trace", tasks), 0, 50, 10.0, MOST) if job.kind != TABLE]
    peaks = [job.peak for job in jobs]
    assert peaks == sorted(peaks)
    assert len(peaks) == 50 - 50 // TABLES
    assert set(peaks) <= {task.peak // SMALLER for task in tasks}
    assert {job.kind for job in jobs} == {"some_trace_a_0", "some_trace_a_1", "some_trace_a_2"}
    assert {job.declared for job in jobs} == {MOST}


def test_kinds_that_hold_much_memory_are_drawn() -> None:
    sizes = [MIB if number % 10 else 10**6 * MIB for number in range(300)]
    tasks = [Task(number, f"k{number % 30}", None, size, 100.0, size) for number, size in enumerate(sizes)]
    jobs = [job for job in mix(Trace("t", tasks), 0, 50, 10.0, MOST) if job.kind != TABLE]
    assert len({job.kind for job in jobs}) == KINDS
    assert {"t_k0", "t_k10", "t_k20"} <= {job.kind for job in jobs}


def test_a_short_trace_makes_a_short_mix() -> None:
    trace = Trace("short", [Task(0, "only", 5, 20 * MIB, 1.0, 100 * MIB)])
    jobs = mix(trace, 0, 20, 10.0, MOST)
    assert [job.number for job in jobs] == list(range(1 + 20 // TABLES))
    assert sum(job.kind != TABLE for job in jobs) == 1


@pytest.mark.parametrize("kind", ["touches", TABLE])
def test_a_job_that_is_done_leaves_a_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_work.write_table(tmp_path / "table.csv", 100_000)
    monkeypatch.setenv(CSV, str(tmp_path / "table.csv"))
    monkeypatch.setenv(EFFECTS, str(tmp_path / "effects"))
    steps = []
    for number in (3, 4):
        do(Work(number, kind, 50_000, 2 * MIB + 1, 0.0, 0).plain(), lambda: steps.append(1))
    assert (tmp_path / "effects").read_text() == "3\n4\n"
    assert len(steps) == 2 * (1 if kind == TABLE else 3)


def test_a_table_is_totalled_by_name(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("1,a,x,5,u\n2,b,x,1,u\n3,a,x,2,u\n4,cut")
    assert memory_work.tabulate(table, 1000) == {"a": 7, "b": 1}


def test_each_kind_is_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [Work(0, "bench_one", 7, MIB, 1.0, 5 * MIB), Work(1, "bench_two", None, MIB, 1.0, 6 * MIB)]
    names = write_kinds(tmp_path, jobs)
    monkeypatch.syspath_prepend(tmp_path)
    pipelines = load_pipelines(names)
    args = WorkArgs.model_validate(jobs[0].plain())
    assert {"bench_one", "bench_two"} <= pipelines.keys()
    assert pipelines["bench_one"].declared(args) == 5 * MIB
    assert args.size == pipelines["bench_one"].start(args).size == 7


class Group:
    limit, anonymous, kernel_kills = 100, 10, 2


def course(effects: Path, submit: Callable[[], Any], over: Callable[[], bool] = lambda: False) -> Course:
    return Course(cast(MemoryGroup, Group()), effects, submit, over)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_course, "SETTLE", 0.0)
    monkeypatch.setattr(memory_course, "CALM", 0.0)


def test_what_is_done_twice_or_never_is_counted(tmp_path: Path) -> None:
    effects = tmp_path / "effects"
    told_: list[int] = []
    ended = course(effects, lambda: effects.write_text("0\n2\n2\n"), lambda: True)
    outcome = follow(ended, 4, told_.append)
    assert (outcome.lost, outcome.duplicated, outcome.kernel_kills) == (2, 1, 0)
    assert told_ == [2]
    assert outcome.seconds > 0


def test_an_arm_that_does_nothing_any_more_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_course, "STALL", 0.05)
    outcome = follow(course(tmp_path / "effects", lambda: None), 3, lambda _done: None)
    assert (outcome.lost, outcome.seconds) == (3, 0.0)


def outcome(seconds: float, lost: int = 0) -> Outcome:
    return Outcome(seconds, kernel_kills=1, lost=lost, duplicated=0, reserved=3.6e12, used=1.8e12)


def test_the_report_compares_each_seed_with_its_oracle() -> None:
    found = {
        "ours": [outcome(11), outcome(30), outcome(12)],
        "oracle": [outcome(10), outcome(20), outcome(10)],
        "dask": [outcome(20, lost=2), outcome(20, lost=1), outcome(20)],
    }
    said = report(found)
    assert said.keys() == {"seeds", "ours", "dask"}
    assert said["seeds"] == 3
    assert said["ours"]["makespan_over_clairvoyant"] == 1.2
    assert (said["dask"]["lost"], said["dask"]["kernel_kills"]) == (3, 3)
    assert (said["ours"]["gbh_reserved"], said["ours"]["gbh_used"]) == (1.0, 0.5)
    say = Console(width=120, record=True, file=cast(Any, SimpleNamespace(write=len, flush=bool)))
    say.print(told(found, {"ours": "ours", "oracle": "known", "dask": "Dask"}, "three seeds"))
    assert "1.20" in say.export_text()
