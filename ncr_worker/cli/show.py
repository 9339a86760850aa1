"""How jobs look to a person: times are local, sizes decimal, and what others have written cannot steer the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from ncr_worker.errors import Conflict
from ncr_worker.pipelines.deliver.model import Receipt
from ncr_worker.sandbox.display import COLOURS
from ncr_worker.validator import Verdict
from ncr_worker.views.lookup import Lookup
from ncr_worker.views.models import BatchList, JobEvent, JobLine, JobList, JobRecord

WHOLE = ("task_id", "batch_id", "status", "jobs")
"""Columns of a list that are never cut."""


class JobReport(JobRecord):
    """All of a job in one document. `verdict`, `receipt`: once it has ended. `events`: when they were asked for."""

    verdict: Verdict | None = None
    receipt: Receipt | None = None
    events: list[JobEvent] | None = None


def report(look: Lookup, task_id: str, *, audit: bool) -> JobReport:
    """Raises NotFound."""
    record = look.record(task_id)
    kept: Mapping[str, Any] = {}
    if record.finished_at is not None:
        with suppress(Conflict):  # somebody has retried it just now
            kept = look.receipt(task_id).model_dump(include={"verdict", "receipt"})
    return JobReport(**record.model_dump(), **kept, events=look.events(task_id) if audit else None)


def clean(text: str) -> str:
    """`text` of others without control characters: no colours, no moves of the cursor."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def local(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """`0.8 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def status(word: str) -> Text:
    return Text(word, style=COLOURS.get(word, ""))


def jobs_table(page: JobList, width: int) -> Table:
    """For a terminal of `width` columns: ids and status are whole on every one, the rest as far as there is room."""
    columns = {"task_id": 0, "job_id": 0, "user": 125, "status": 0, "submitted": 105, "took": 115, "note": 0}
    table = _Table(columns, width)
    for job in page.jobs:
        times = {"submitted": local(job.created_at), "took": _took(job)}
        table.add(task_id=job.task_id, job_id=job.job_id, user=job.user, status=job.status, note=_note(job), **times)
    return table


def batches_table(page: BatchList, width: int) -> Table:
    table = _Table({"batch_id": 0, "user": 115, "status": 0, "jobs": 0, "submitted": 100, "of which": 0}, width)
    for batch in page.batches:
        states = ", ".join(f"{number} {state}" for state, number in sorted(batch.counts.items()))
        more = {"jobs": str(batch.total_jobs), "submitted": local(batch.created_at), "of which": states}
        table.add(batch_id=batch.batch_id, user=batch.user, status=batch.status, **more)
    return table


def job_lines(job: JobReport) -> Iterator[str]:
    """`name      value`, a fact a line."""
    yield from (f"{name:9} {clean(value)}" for name, value in _facts(job) if value)
    if job.receipt:
        kept = job.receipt
        at = local(datetime.fromisoformat(kept.delivered_at))
        yield f"delivered {at} to {kept.server}:{clean(kept.target)} ({kept.host_key})"
        yield from (f"  {file.sha256}  {decimal(file.size):>10}  {clean(file.target)}" for file in kept.files)
    for event in job.events or ():
        facts = (event.state, event.stage, f"attempt {event.attempt}", f"by {event.actor}", event.reason)
        yield f"  {local(event.at)}  {clean('  '.join(fact for fact in facts if fact))}"


def progress_text(job: JobRecord) -> str:
    """What it does now: step, files, bytes; of a job that waits or has ended, why."""
    progress = job.progress
    if job.state != "running":
        return clean(job.message)
    parts = [progress.current_step]
    if progress.total_files:
        parts.append(f"{progress.processed_files}/{progress.total_files} files")
    if progress.bytes_total:
        parts.append(f"{decimal(progress.bytes_done)} of {decimal(progress.bytes_total)}")
    parts.append(progress.current_file.rpartition("/")[2])
    return clean(" ".join(part for part in parts if part))


def _facts(job: JobReport) -> Iterator[tuple[str, str | None]]:
    now = datetime.now(UTC)
    yield "job", job.job_id
    yield "task", job.task_id
    yield "batch", job.batch_id
    yield "kind", job.kind
    yield "user", job.user
    yield "status", f"{job.status}, {job.progress.percentage:.0f} %"
    yield "step", progress_text(job)
    yield "reason", job.reason
    yield "attempt", f"{job.attempt} of {job.max_attempts}" + (f", round {job.round}" if job.round > 1 else "")
    yield "host", job.host
    yield "submitted", local(job.created_at)
    yield "started", local(job.started_at) if job.started_at else None
    yield "finished", f"{local(job.finished_at)}, after {_took(job)}" if job.finished_at else None
    yield "next try", local(job.next_run_at) if job.next_run_at and job.next_run_at > now else None
    sizes = {"predicted": job.predicted_bytes, "needs": job.need_bytes, "reserved": job.reserved_bytes}
    sizes["peak"] = job.peak_bytes
    yield "memory", ", ".join(f"{name} {decimal(size)}" for name, size in sizes.items() if size)
    yield "args", " ".join(f"{name}={value}" for name, value in job.args.items() if value is not None)
    yield "error", f"{job.error.code}: {job.error.detail}" if job.error else None
    yield "result", json.dumps(job.result, ensure_ascii=False) if job.result else None
    verdict = job.verdict
    yield "verdict", f"{verdict.result}: {json.dumps(verdict.answer, ensure_ascii=False)}" if verdict else None


def _took(job: JobLine | JobRecord) -> str:
    """From its first start to its end, or until now."""
    if job.started_at is None:
        return ""
    return duration(((job.finished_at or datetime.now(UTC)) - job.started_at).total_seconds())


def _note(job: JobLine) -> str:
    """Why it waits or has failed, or where it is."""
    if job.finished_at is not None:
        return job.error_code if job.error_code and job.error_code != job.status else ""
    return job.reason or " on ".join(part for part in (job.stage, job.host) if part)


class _Table(Table):
    """`columns`: name -> the narrowest terminal that has it. What people copy and look for is never cut."""

    def __init__(self, columns: Mapping[str, int], width: int) -> None:
        super().__init__(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        self._shown = [name for name, least in columns.items() if width >= least]
        for name in self._shown:
            self.add_column(name, no_wrap=name in WHOLE)

    def add(self, **cells: str) -> None:
        texts = {name: status(cell) if name == "status" else _cut(cell) for name, cell in cells.items()}
        self.add_row(*(texts[name] for name in self._shown))


def _cut(text: str) -> Text:
    return Text(clean(text), no_wrap=True, overflow="ellipsis")
