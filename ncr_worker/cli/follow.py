"""Follow jobs until they end: bars on a terminal, plain lines elsewhere, a JSON document a line when asked for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import typer
from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from ncr_worker.app import App
from ncr_worker.cli import show
from ncr_worker.cli.session import console, hint, print_json
from ncr_worker.job import TERMINAL, State
from ncr_worker.sql import DatabaseAway
from ncr_worker.views.batch import batch_line
from ncr_worker.views.models import BatchLine, BatchStatus, JobRecord

LOOK_EVERY = 0.5
KEEP_EVERY = 1.0
PLAIN_EVERY = 3.0
"""Seconds between two lines about one job where there is no terminal, unless its status changes."""
MANY = 12
"""A batch of more jobs has one bar."""
NAMED = 20
"""So many jobs of a batch that did not succeed are named at its end."""
FAILED = 3
"""Exit code when something did not succeed."""
INTERRUPTED = 130

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One bar. `percentage`: 0 to 100."""

    key: str
    name: str
    status: str
    percentage: float
    text: str = ""


def watch(look: Callable[[], T], every: float = LOOK_EVERY) -> Iterator[T]:
    """What `look` finds, again and again; a database that is away is waited for."""
    away = False
    while True:
        try:
            found = look()
        except DatabaseAway as error:
            if not away:
                hint(f"ncr: {error}; waiting until it does")
            away = True
        else:
            away = False
            yield found
        time.sleep(every)


def keep_up(look: Callable[[], M], render: Callable[[M, int], RenderableType], *, as_json: bool) -> None:
    """Until Ctrl-C: a live view; without a terminal what is found again whenever it has changed.

    `render(found, width)`: for a terminal of so many columns.
    """
    out = console()
    try:
        if out.is_terminal and not as_json:
            with Live(console=out, screen=True, auto_refresh=False) as live:
                for found in watch(look, KEEP_EVERY):
                    live.update(render(found, out.width), refresh=True)
        last = None
        for found in watch(look, KEEP_EVERY):
            if found != last and as_json:
                print_json(found, line=True)
            elif found != last:
                out.print(render(found, out.width))
            last = found
    except KeyboardInterrupt:
        return


def wait_for_job(app: App, task_id: str, *, as_json: bool) -> int:
    """Show the job until it ends; the exit code. Raises NotFound."""
    with _going_on(f"the job goes on; see it with: ncr job {task_id} --watch, stop it with: ncr cancel {task_id}"):
        end = _follow(lambda: app.look.record(task_id), _job_rows, _job_is_over, as_json)
    if not as_json:
        _tell_job(end)
    return 0 if end.state == State.SUCCEEDED else FAILED


def wait_for_batch(app: App, batch_id: str, *, as_json: bool) -> int:
    """Show the batch until all of it has ended; the exit code. Raises NotFound."""
    batch = app.history.batch(batch_id)
    ways = f"see them with: ncr jobs --batch {batch_id} --watch, stop them with: ncr cancel --batch {batch_id}"
    with _going_on(f"the jobs go on; {ways}"):
        if batch.total <= MANY:
            end = _follow(lambda: app.look.batch(batch_id), _batch_rows, _batch_is_over, as_json)
        else:
            _follow(lambda: batch_line(app.history.batch(batch_id)), _counts_row, _batch_is_over, as_json)
            end = app.look.batch(batch_id)
            if as_json:
                print_json(end, line=True)
    if not as_json:
        _tell_batch(app, end, batch.created_at)
    return 0 if end.status == "completed" else FAILED


def _follow(look: Callable[[], M], rows: Callable[[M], Sequence[Row]], over: Callable[[M], bool], as_json: bool) -> M:
    """Show what `look` finds until it is over; the last of it."""
    with _display(as_json, rows) as shown:
        for found in watch(look):
            shown(found)
            if over(found):
                return found
    raise AssertionError("watch() never ends")


@contextmanager
def _going_on(text: str) -> Iterator[None]:
    """Ctrl-C ends the watching only."""
    try:
        yield
    except KeyboardInterrupt:
        hint(f"\n{text}")
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def _display(as_json: bool, rows: Callable[[M], Sequence[Row]]) -> Iterator[Callable[[M], None]]:
    out = console()
    if as_json:
        yield Documents().show
    elif out.is_terminal:
        with Progress(*_columns(), console=out) as progress:
            bars = Bars(progress)
            yield lambda found: bars.show(rows(found))
    else:
        lines = Lines(out)
        yield lambda found: lines.show(rows(found))


class Documents:
    """A line for each change."""

    def __init__(self) -> None:
        self._last: BaseModel | None = None

    def show(self, found: BaseModel) -> None:
        seen = found.model_copy(update={"timestamp": None})
        if seen != self._last:
            print_json(found, line=True)
        self._last = seen


class Lines:
    def __init__(self, out: Console) -> None:
        self._out = out
        self._last: dict[str, tuple[Row, float]] = {}

    def show(self, rows: Sequence[Row]) -> None:
        now = time.monotonic()
        for row in rows:
            last, at = self._last.get(row.key, (None, 0.0))
            if last is None or row.status != last.status or (row != last and now - at >= PLAIN_EVERY):
                self._last[row.key] = (row, now)
                clock = datetime.now().strftime("%H:%M:%S")
                text = f"{clock}  {row.name}  {row.status}  {row.percentage:3.0f} %  {row.text}"
                self._out.print(text.rstrip(), soft_wrap=True)


class Bars:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def show(self, rows: Sequence[Row]) -> None:
        for row in rows:
            told: dict[str, Any] = {"completed": row.percentage, "status": row.status, "text": row.text}
            if row.key in self._bars:
                self._progress.update(self._bars[row.key], **told)
            else:
                self._bars[row.key] = self._progress.add_task(row.name, total=100, **told)


class StatusColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return show.status(task.fields["status"])


def _columns() -> Iterator[ProgressColumn]:
    cut = Column(no_wrap=True, overflow="ellipsis")
    yield TextColumn("{task.description}", markup=False, table_column=cut)
    yield BarColumn(bar_width=24)
    yield TextColumn("{task.percentage:>3.0f} %", markup=False)
    yield StatusColumn()
    yield TextColumn("{task.fields[text]}", markup=False, style="bright_black", table_column=cut)


def _job_rows(job: JobRecord) -> list[Row]:
    text = show.progress_text(job)
    return [Row(job.task_id, show.clean(job.job_id), job.status, job.progress.percentage, text)]


def _job_is_over(job: JobRecord) -> bool:
    return job.state in TERMINAL


def _batch_rows(batch: BatchStatus) -> list[Row]:
    return [Row(job.task_id, show.clean(job.job_id), job.status, job.percentage) for job in batch.jobs]


def _counts_row(batch: BatchLine) -> list[Row]:
    ended = sum(batch.counts.get(state, 0) for state in TERMINAL)
    counts = ", ".join(f"{number} {state}" for state, number in sorted(batch.counts.items()))
    percentage = 100 * ended / max(batch.total_jobs, 1)
    return [Row(batch.batch_id, f"{batch.total_jobs} jobs", batch.status, percentage, counts)]


def _batch_is_over(batch: BatchStatus | BatchLine) -> bool:
    return batch.status not in ("pending", "processing")


def _tell_job(job: JobRecord) -> None:
    since = job.created_at if job.round == 1 else job.started_at or job.created_at
    took = show.duration(((job.finished_at or job.timestamp) - since).total_seconds())
    why = f": {_why(job)}" if job.state != State.SUCCEEDED else ""
    console().print(show.clean(f"{job.job_id} {job.status} after {took}{why}"), soft_wrap=True)


def _why(job: JobRecord) -> str:
    if job.error is None:
        return job.message
    return job.error.detail if job.error.code == job.status else f"{job.error.code}: {job.error.detail}"


def _tell_batch(app: App, batch: BatchStatus, created_at: float) -> None:
    out = console()
    took = show.duration(batch.timestamp.timestamp() - created_at)
    counts = ", ".join(f"{number} {status}" for status, number in sorted(batch.counts.items()))
    out.print(f"batch {batch.batch_id} {batch.status} after {took}: {counts}", soft_wrap=True)
    without = [line for line in app.history.lines_of(batch.batch_id) if line.state is not State.SUCCEEDED]
    for line in without[:NAMED]:
        job = app.look.record(line.id)
        out.print(show.clean(f"  {job.job_id} {job.status}: {_why(job)} (ncr job {job.task_id})"), soft_wrap=True)
    if len(without) > NAMED:
        out.print(f"  and {len(without) - NAMED} more: ncr jobs --batch {batch.batch_id}", soft_wrap=True)
