"""Ten thousand small jobs on a small host, some of which lie about their need, while their processes are killed.

`make storm [QUICK=1]`. One real worker runs in a memory group of 1 GiB; this program, the ledger's file and Valkey are
outside of it. README.md tells what is asked for and how it is counted.
"""

from __future__ import annotations

import json
import math
import os
import random
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from confined import Confined, confined
from machine import facts
from measure import BenchmarkFailed, repeated, sampled
from memory_group import NoMemoryGroup
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy import ColumnElement, func, select

from ncr_worker.job import TERMINAL, Reason, State
from ncr_worker.ledger.tables import event, job
from ncr_worker.pipeline import GIB, MIB

LIMIT = GIB
CONCURRENCY = 4
SMALLEST, LARGEST = 5 * MIB, 200 * MIB
LIARS, LIE = 0.05, 4.0
DEAF = 0.5  # share of the jobs that do not listen to orders
KILL_EVERY = 20  # jobs done, on average: about a second, and on a busy machine the storm still moves on
SEED = 5


@dataclass(frozen=True, slots=True)
class Scale:
    jobs: int
    patience: float  # seconds


FULL = Scale(10_000, 1200)
QUICK = Scale(500, 240)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`budget_exceeded`: samples at which more than one job was charged and their sum was above the budget."""

    jobs: int
    ended_once: int
    kernel_kills: int
    budget_exceeded: int
    feeder_cpu_ms_per_job: float

    @property
    def held(self) -> bool:
        """Whether the promises were kept; the feeder's time depends on the machine."""
        return self.ended_once == self.jobs and not self.kernel_kills and not self.budget_exceeded


def storm(count: int) -> list[dict[str, Any]]:
    """Arguments of the jobs: many small ones, few large ones, the same ones at each run."""
    dice = random.Random(SEED)
    found = []
    for number in range(count):
        touch = int(SMALLEST * (LARGEST / SMALLEST) ** dice.random())
        lie = dice.uniform(1.5, LIE) if dice.random() < LIARS else 1.0
        found.append(
            {
                "name": f"storm-{number}",
                "need": math.ceil(touch / lie),
                "touch": touch,
                "seconds": dice.uniform(0.02, 0.1),
                "deaf": dice.random() < DEAF,
            }
        )
    return found


class Killer:
    """Sends SIGKILL to a random pool child when as many jobs are done as chance wills. `deaths`: how often it did."""

    def __init__(self, host: Confined) -> None:
        self.host = host
        self.deaths = 0
        self._dice = random.Random(SEED)
        self._due = 1.0  # not before the first job is done: Celery gives up when a child dies while the worker starts

    def pause(self) -> float:
        """Seconds until the next look."""
        return self._dice.uniform(0.02, 0.2)

    def look(self) -> None:
        if len(self.host.done()) < self._due:
            return
        with suppress(psutil.NoSuchProcess, IndexError):
            self._dice.choice(self.host.worker.children()).kill()
            self.deaths += 1
            self._due += self._dice.expovariate(1 / KILL_EVERY)


def all_end(host: Confined, count: int, patience: float, say: Console) -> float:
    """Wait, with progress, until each job has ended; seconds."""
    began = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=say) as progress:
        bar = progress.add_task("storm", total=count)
        while time.monotonic() - began < patience:
            host.worker.check()
            counts = Counter[State]()
            for (_, state), number in host.app.history.counts().items():
                counts[state] += number
            ended = sum(counts[state] for state in TERMINAL)
            out = f"{counts[State.RUNNING]} running, {host.group.anonymous // MIB:,} MiB"
            progress.update(bar, completed=ended, description=out)
            if ended == count:
                return time.monotonic() - began
            time.sleep(0.5)
    raise BenchmarkFailed(f"{ended:,} of {count:,} jobs have ended after {patience:g} s: {dict(counts)}")


@dataclass(frozen=True, slots=True)
class Trail:
    """What the ledger says of all jobs. `strays`: those that did not end as they should, with the reason."""

    states: Counter[str]
    retries: int
    yields: int
    strays: list[str]


def look_back(host: Confined) -> Trail:
    """A job ends once when its audit trail has one end, and when it succeeded, it has done its work.

    It may do its work again when it is killed before it could say so; never without having been started for it.
    """
    query = select(job.c.number, job.c.state, job.c.attempt, job.c.error)
    jobs = host.app.database.read(lambda connection: connection.execute(query).all())
    ended = _tally(host, event.c.state.in_(sorted(TERMINAL)))
    started = _tally(host, event.c.state == State.DISPATCHED)
    yielded = _tally(host, event.c.reason == Reason.YIELDED)
    done = Counter(host.done())
    strays = [
        f"job {each.number}: {each.state}, {ended[each.number]} ends, work done {done[each.number]} times in "
        f"{started[each.number]} starts; {each.error}"
        for each in jobs
        if ended[each.number] != 1
        or done[each.number] > started[each.number]
        or (each.state == State.SUCCEEDED and not done[each.number])
    ]
    retries = sum(max(each.attempt - 1, 0) for each in jobs)
    return Trail(Counter(each.state for each in jobs), retries, yielded.total(), strays)


def _tally(host: Confined, which: ColumnElement[bool]) -> Counter[int]:
    """Number of a job -> how many such lines its audit trail has."""
    query = select(event.c.job_number, func.count()).where(which).group_by(event.c.job_number)
    return Counter(dict(host.app.database.read(lambda connection: connection.execute(query).all())))


def main() -> None:
    scale = QUICK if os.environ.get("QUICK") else FULL
    say = Console(width=120)
    for what, which in facts():
        say.print(f"{what}: {which}", markup=False, highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="ncr-storm-") as name:
        try:
            verdict = run(Path(name), scale, say)
        except NoMemoryGroup as error:
            raise SystemExit(str(error)) from error
    print(json.dumps(asdict(verdict)))
    if not verdict.held:
        raise SystemExit(1)


def run(folder: Path, scale: Scale, say: Console) -> Verdict:
    settings = {"celery_worker_concurrency": CONCURRENCY}
    with confined(folder, LIMIT, ["storm"], **settings) as host:
        kernel_kills = host.group.kernel_kills
        host.submit("storm", storm(scale.jobs)[::2])
        host.submit("storm", storm(scale.jobs)[1::2], sized=False)
        killer = Killer(host)
        with sampled(lambda: host.group.anonymous, 0.05) as peak, repeated(killer.look, killer.pause):
            try:
                seconds = all_end(host, scale.jobs, scale.patience, say)
            except BenchmarkFailed:
                say.print(*host.worker.tail(), sep="\n", markup=False)
                raise
        host.worker.stop()
        trail = look_back(host)
        feeding = host.counted("ncr_feeder_cpu_seconds_total")
        if not feeding:
            raise BenchmarkFailed("the worker has counted nothing")
        verdict = Verdict(
            jobs=scale.jobs,
            ended_once=scale.jobs - len(trail.strays),
            kernel_kills=host.group.kernel_kills - kernel_kills,
            budget_exceeded=int(host.counted("ncr_budget_exceeded_total")),
            feeder_cpu_ms_per_job=round(1000 * feeding / scale.jobs, 3),
        )
        say.print(told(host, trail, seconds, killer.deaths, peak.bytes))
        exceeded = [line for line in host.worker.tail(100_000) if "more is charged" in line]
        for line in (*trail.strays[:10], *exceeded[:10]):
            say.print(line, markup=False)
    return verdict


def told(host: Confined, trail: Trail, seconds: float, deaths: int, peak: int) -> Table:
    """`peak`: most bytes of anonymous memory that were seen in the group."""
    jobs = trail.states.total()
    table = Table("", "", show_header=False)
    for what, figure in (
        ("jobs", f"{jobs:,} in {seconds:.0f} s, {jobs / seconds:.1f} a second"),
        ("ended", ", ".join(f"{number:,} {state}" for state, number in sorted(trail.states.items()))),
        ("pool children killed by us", f"{deaths:,}; runs lost {_count(host, 'ncr_runs_lost_total')}"),
        ("jobs ended for memory", _count(host, "ncr_jobs_ended_for_memory_total")),
        ("yields", f"{trail.yields:,}"),
        ("retries", f"{trail.retries:,}"),
        ("peak, anonymous (sampled)", f"{peak / MIB:,.0f} of {LIMIT / MIB:,.0f} MiB"),
        ("peak, with page cache", f"{host.group.peak / MIB:,.0f} of {LIMIT / MIB:,.0f} MiB"),
        ("publishing, CPU a job", f"{1000 * host.counted('ncr_publish_cpu_seconds_total') / jobs:.3f} ms"),
    ):
        table.add_row(what, figure)
    return table


def _count(host: Confined, name: str) -> str:
    return f"{host.counted(name):,.0f}"


if __name__ == "__main__":
    main()
