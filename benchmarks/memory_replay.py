"""Replays traces of tasks' memory through the shipped predictor and the shipped picking policy, in simulated time.

`benchmarks/memory_replay.py TRACE.csv[.gz] ... [--host-memory 128GB] [--slots 32] [--json]`; README.md tells what is
measured and how.
"""

from __future__ import annotations

import argparse
import heapq
import json
import re
import sys
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from statistics import fmean
from typing import Any

from memory_trace import Task, Trace, TraceError, read
from peers_memory import Clairvoyant, Ours, Percentile, Preset, Sizer, Tovar
from rich.console import Console
from rich.table import Table

from ncr_worker.ledger.queue import WINDOW
from ncr_worker.picking import Room, Round, Turns, Waiting
from ncr_worker.settings import Settings

SIZERS: Mapping[str, tuple[str, Callable[[], Sizer]]] = {
    "ours": ("ours", Ours),
    "preset": ("presets", Preset),
    "p95": ("95th percentile", lambda: Percentile(0.95)),
    "max": ("largest seen", lambda: Percentile(1.0)),
    "tovar": ("Tovar", Tovar),
}
UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
GBH = 1e9 * 3600


@dataclass(frozen=True, slots=True)
class Machine:
    """`memory` in bytes. `overtake_limit`: see picking."""

    memory: int
    slots: int
    overtake_limit: int


@dataclass(frozen=True, slots=True)
class Waste:
    """Reserved but not used. `failures`: attempts that had too little. `times`: ms of each prediction, sorted."""

    gbh: float
    failures: int
    times: Sequence[float]


@dataclass(frozen=True, slots=True)
class Figures:
    """`makespan`: seconds until all tasks have ended, all having been queued at once."""

    waste: Waste
    makespan: float
    failures_packed: int


def waste(tasks: Sequence[Task], sizer: Sizer, memory: int) -> Waste:
    """One task after another: predict, then learn. A failed attempt costs all it had for the whole run."""
    wasted, failures, times = 0.0, 0, []
    for task in tasks:
        began = time.perf_counter()
        had = min(sizer.need(task), memory)
        times.append((time.perf_counter() - began) * 1000)
        while had < task.peak:
            wasted += had * task.seconds
            failures += 1
            sizer.learn_failure(task, had)
            had = min(sizer.need(task, had), memory)
        wasted += (had - task.peak) * task.seconds
        sizer.learn(task)
    return Waste(wasted / GBH, failures, sorted(times))


class Packing:
    """A host that works off tasks which were all queued at once; in simulated time."""

    def __init__(self, tasks: Sequence[Task], sizer: Sizer, machine: Machine) -> None:
        self.tasks = tasks
        self.sizer = sizer
        self.machine = machine
        self.failures = 0
        self._waiting = list(range(len(tasks)))
        self._passed: Counter[int] = Counter()
        self._failed: dict[int, int] = {}  # task -> bytes that were too few
        self._had: dict[int, int] = {}  # of those that run
        self._needs: dict[int, tuple[int, Waiting]] = {}
        self._learned: Counter[str] = Counter()
        self._probed: set[str] = set()

    def run(self) -> float:
        """Seconds until the last task has ended."""
        now, ends = 0.0, list[tuple[float, int]]()
        while True:
            for number in self._start():
                heapq.heappush(ends, (now + self.tasks[number].seconds, number))
            if not ends:
                return now
            now = ends[0][0]
            while ends and ends[0][0] <= now:
                self._end(heapq.heappop(ends)[1])

    def _start(self) -> list[int]:
        """As the ledger picks: a window of candidates, and behind it only what fits."""
        room = Room(
            self.machine.slots - len(self._had),
            self.machine.memory - sum(self._had.values()),
            self.machine.memory,
            idle=not self._had,
            held=list(self._had.values()),
        )
        if not room.slots:
            return []
        turn = Round(room, self.machine.overtake_limit)
        self._offer(turn, [self._candidate(number) for number in self._waiting[:WINDOW]])
        for number in self._waiting[WINDOW:]:
            if turn.done or turn.barrier:
                break
            candidate = self._candidate(number)
            if candidate.need <= turn.most:
                turn.consider(candidate)
        self._passed.update(turn.passed)
        for taken in turn.taken:
            self._probed |= {taken.kind} if taken.unknown else set()
            self._had[taken.number] = taken.need
            self._waiting.remove(taken.number)
        return [taken.number for taken in turn.taken]

    def _offer(self, turn: Round, candidates: Sequence[Waiting]) -> None:
        turns = Turns(candidates, {}, probed=self._probed)
        for candidate in turns:
            if turn.done:
                return
            if turn.consider(candidate):
                turns.charge(candidate)

    def _candidate(self, number: int) -> Waiting:
        """As it stands now: the need is that of the latest knowledge."""
        task = self.tasks[number]
        known = self._needs.get(number)
        if known is None or known[0] != self._learned[task.kind]:
            need = min(self.sizer.need(task, self._failed.get(number, 0)), self.machine.memory)
            known = self._needs[number] = (
                self._learned[task.kind],
                Waiting(
                    number, str(number), task.kind, need, unknown=self.sizer.learns and not self._learned[task.kind]
                ),
            )
        return known[1]._replace(passed=self._passed[number])

    def _end(self, number: int) -> None:
        task, had = self.tasks[number], self._had.pop(number)
        if had < task.peak:
            self.failures += 1
            self.sizer.learn_failure(task, had)
            self._failed[number] = had
            self._needs.pop(number)
            insort(self._waiting, number)
        else:
            self.sizer.learn(task)
        self._learned[task.kind] += 1


def replay(trace: Trace, machine: Machine) -> Mapping[str, Figures]:
    """Of each sizer, by its short name."""
    found = {}
    for name, (_, make) in SIZERS.items():
        packing = Packing(trace.tasks, make(), machine)
        makespan = packing.run()
        found[name] = Figures(waste(trace.tasks, make(), machine.memory), makespan, packing.failures)
    return found


def bound(tasks: Sequence[Task], machine: Machine) -> float:
    """Seconds below which no schedule gets: by memory, by slots, by the longest task."""
    return max(
        sum(task.peak * task.seconds for task in tasks) / machine.memory,
        sum(task.seconds for task in tasks) / machine.slots,
        max(task.seconds for task in tasks),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    machine = Machine(options.host_memory, options.slots, Settings.model_fields["overtake_limit"].default)
    say = Console(width=120)
    try:
        traces = [read(path, machine.memory) for path in options.traces]
    except TraceError as error:
        sys.exit(str(error))
    report = dict[str, Any]()
    for trace in traces:
        if trace.too_large:
            needed = f"{trace.too_large:,} tasks are left out: they needed more than the host has"
            say.print(f"{trace.name}: {needed}; give it more by --host-memory", markup=False)
        with say.status(f"{trace.name}: {len(trace.tasks):,} tasks"):
            clairvoyant = Packing(trace.tasks, Clairvoyant(), machine).run()
            found = replay(trace, machine)
        say.print(_table(trace, found, clairvoyant, bound(trace.tasks, machine)))
        report[_unique(trace.name, report)] = {
            name: {
                "waste_gbh": round(figures.waste.gbh, 1),
                "failures": figures.waste.failures,
                "tasks": len(trace.tasks),
                "makespan_over_clairvoyant": round(figures.makespan / clairvoyant, 4),
                "ms_per_prediction": round(fmean(figures.waste.times), 4),
            }
            for name, figures in found.items()
        }
    if options.json:
        print(json.dumps(report))


def _unique(name: str, taken: Container[str]) -> str:
    """Two files may have the same name, in different folders."""
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(each for each in names if each not in taken)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE.csv[.gz]")
    parser.add_argument("--host-memory", type=size, default="128GB", help="for tasks: 128GB, or GiB for powers of two")
    parser.add_argument("--slots", type=slots, default=32, help="tasks that may run at a time (32)")
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    return parser.parse_args(arguments)


def size(text: str) -> int:
    """Bytes: `128GB`, `128 GiB`, `137438953472`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    bytes_ = int(float(found[1]) * (1024 if found[3] else 1000) ** UNITS[found[2].upper()]) if found else 0
    if not bytes_:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; try 128GB or 128GiB")
    return bytes_


def slots(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _table(trace: Trace, found: Mapping[str, Figures], clairvoyant: float, least: float) -> Table:
    used = sum(task.peak * task.seconds for task in trace.tasks) / GBH
    table = Table(title=f"{trace.name}: {len(trace.tasks):,} tasks that use {used:,.0f} GB·h", title_justify="left")
    for heading in (
        "",
        "waste GB·h",
        "failed",
        "makespan h",
        "÷ clairvoyant",
        "÷ bound",
        "failed",
        "ms mean",
        "ms p99",
    ):
        table.add_column(heading, justify="right" if heading else "left")
    for name, figures in found.items():
        times = figures.waste.times
        table.add_row(
            SIZERS[name][0],
            f"{figures.waste.gbh:,.1f}",
            f"{figures.waste.failures}",
            *_makespan(figures.makespan, clairvoyant, least),
            f"{figures.failures_packed}",
            f"{fmean(times):.3f}",
            f"{times[int(len(times) * 0.99)]:.3f}",
        )
    table.add_row("clairvoyant", "0.0", "0", *_makespan(clairvoyant, clairvoyant, least), "0", "", "")
    return table


def _makespan(seconds: float, clairvoyant: float, least: float) -> tuple[str, str, str]:
    return f"{seconds / 3600:,.2f}", f"{seconds / clairvoyant:.3f}", f"{seconds / least:.3f}"


if __name__ == "__main__":
    main()
