"""What a person sees while jobs run: a bar for each job and a memory line for each host, or plain lines in a log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

ACTIVE = ("processing", "validation_passed", "uploading")
ENDED = ("completed", "validation_failed", "failed", "cancelled")
COLOURS = {
    "pending": "bright_black",
    "waiting": "yellow",
    "processing": "cyan",
    "validation_passed": "cyan",
    "uploading": "blue",
    "completed": "green",
    "validation_failed": "magenta",
    "failed": "red",
    "cancelled": "red",
}
MARKS = {"completed": "✔", "validation_failed": "✘", "failed": "✘", "cancelled": "✘", "pending": "·", "waiting": "·"}
PLAIN_EVERY = 3.0
"""Seconds between two lines where there is no terminal."""
FRAME = 6
"""Lines of the display that are not jobs or hosts, and one below it for the cursor."""
MIB = 1024 * 1024
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class JobLine:
    """`status`: the public word. `percentage`: 0 to 100. `size`: bytes of the job, its weight in the whole."""

    job_id: str
    sku: str
    size: int
    status: str = "pending"
    percentage: float = 0.0
    text: str = ""

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class HostLine:
    """Memory of one worker host in bytes, `observed` is what jobs use now; `used` of its `slots` run a job."""

    host: str
    limit: int
    others: int
    reserved: int
    observed: int
    used: int
    slots: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`elapsed`: seconds since the jobs were submitted."""

    jobs: Sequence[JobLine]
    hosts: Sequence[HostLine]
    elapsed: float

    @property
    def over(self) -> bool:
        return all(job.ended for job in self.jobs)

    @property
    def percentage(self) -> float:
        """How much of the work is over: a job that has ended counts whole."""
        done = sum(job.size * (100.0 if job.ended else job.percentage) for job in self.jobs)
        return done / max(sum(job.size for job in self.jobs), 1)

    @property
    def counts(self) -> str:
        """`9 completed, 4 processing`, in the order in which jobs pass through the words."""
        found = Counter(job.status for job in self.jobs)
        return ", ".join(f"{found[status]} {status}" for status in COLOURS if found[status])


class Display(Protocol):
    def show(self, snapshot: Snapshot) -> None: ...


@contextmanager
def display(console: Console) -> Iterator[Display]:
    """Live on a terminal, plain lines elsewhere. What was shown last stays."""
    if not console.is_terminal:
        yield PlainDisplay(console)
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:
        yield LiveDisplay(live)


class PlainDisplay:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0.0

    def show(self, snapshot: Snapshot) -> None:
        if time.monotonic() < self._next and not snapshot.over:
            return
        self._next = time.monotonic() + PLAIN_EVERY
        lines = [f"[{snapshot.elapsed:5.1f} s] {snapshot.percentage:3.0f} %: {snapshot.counts}"]
        lines += [f"          memory of {_memory(host)}" for host in snapshot.hosts]
        self._console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


class LiveDisplay:
    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, snapshot: Snapshot) -> None:
        console = self._live.console
        self._live.update(render(snapshot, console.height, console.width), refresh=True)


def render(snapshot: Snapshot, height: int, width: int) -> RenderableType:
    """The live display, in at most `height` lines where that leaves room for a few jobs."""
    shown, rest = _choose(snapshot.jobs, max(height - FRAME - len(snapshot.hosts), 3))
    bar = max(min(width // 5, 40), 8)
    return Group(_overall(snapshot, bar), Text(), _jobs(shown, bar), *_summary(rest), Text(), *_hosts(snapshot, bar))


def _choose(jobs: Sequence[JobLine], room: int) -> tuple[list[JobLine], list[JobLine]]:
    """Those that are shown and the rest, both in their order: active ones first, then the last that ended."""
    active = [job for job in jobs if job.status in ACTIVE]
    ended = [job for job in reversed(jobs) if job.ended]
    waiting = [job for job in jobs if job.status not in ACTIVE and not job.ended]
    chosen = {job.job_id for job in (active + ended + waiting)[:room]}
    return [job for job in jobs if job.job_id in chosen], [job for job in jobs if job.job_id not in chosen]


def _overall(snapshot: Snapshot, bar: int) -> RenderableType:
    ended = sum(job.ended for job in snapshot.jobs)
    grid = _grid(bar)
    grid.add_row(
        Text("all jobs", style="bold"),
        ProgressBar(total=100, completed=snapshot.percentage, width=bar, complete_style="bold", finished_style="bold"),
        Text(f"{snapshot.percentage:3.0f} %"),
        _cut(f"{ended} of {len(snapshot.jobs)} ended in {snapshot.elapsed:.0f} s", "bold"),
    )
    return grid


def _grid(bar: int) -> Table:
    """Fixed columns for name, bar and percentage; texts after them are cut where the terminal ends."""
    grid = Table.grid(padding=(0, 1))
    for width in (30, bar, 5):
        grid.add_column(width=width, no_wrap=True, overflow="ellipsis")
    return grid


def _cut(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _jobs(jobs: Sequence[JobLine], bar: int) -> RenderableType:
    grid = _grid(bar)
    grid.add_column(no_wrap=True)
    for job in jobs:
        colour = COLOURS.get(job.status, "white")
        grid.add_row(
            Text.assemble((MARKS.get(job.status, "▸"), colour), f" {job.job_id} ", (job.sku, "bright_black")),
            ProgressBar(total=100, completed=job.percentage, width=bar, complete_style=colour, finished_style=colour),
            Text(f"{job.percentage:3.0f} %", style=colour),
            Text(job.status, style=colour),
            _cut(job.text, "bright_black"),
        )
    return grid


def _summary(rest: Sequence[JobLine]) -> Iterator[RenderableType]:
    if rest:
        counts = Snapshot(rest, (), 0.0).counts
        yield Text(f"  … and {len(rest)} more: {counts}", style="bright_black")


def _hosts(snapshot: Snapshot, bar: int) -> Iterator[RenderableType]:
    for host in snapshot.hosts:
        grid = _grid(bar)
        share = (host.others + host.reserved) / max(host.limit, 1)
        grid.add_row(
            Text(f"memory {host.host}", style="bold"),
            ProgressBar(total=1, completed=share, width=bar, complete_style="yellow", finished_style="red"),
            Text(f"{share * 100:3.0f} %"),
            _cut(_figures(host)),
        )
        yield grid


def _memory(host: HostLine) -> str:
    return f"{host.host}: {_figures(host)}"


def _figures(host: HostLine) -> str:
    limit, others = f"{host.limit / GIB:.1f} GiB", f"{host.others / GIB:.1f}"
    jobs = f"reserved {host.reserved / MIB:,.0f} MiB, in use {host.observed / MIB:,.0f}"
    return f"limit {limit}, others {others}, {jobs}, slots {host.used}/{host.slots}"
