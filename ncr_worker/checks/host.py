"""This host: its work folder and its memory."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ncr_worker.checks.finding import Finding, error, ok, warning
from ncr_worker.memory.domain import Domain
from ncr_worker.pipeline import GIB
from ncr_worker.pipelines import load_pipelines
from ncr_worker.settings import Settings

IN_MEMORY = frozenset(("tmpfs", "ramfs"))
ROOM_FOR_A_JOB = GIB
"""Bytes of disk for each running job, below which a look at the disk is due."""
_OCTAL = re.compile(r"\\([0-7]{3})")


def work_folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.jobs_folder
    what = f"work folder {settings.work_folder.absolute()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
        free = shutil.disk_usage(folder).free
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError as failure:
        yield error(what, f"cannot be written: {failure}", "WORK_FOLDER", "Name a folder that this account may write")
        return
    kind = filesystem(folder.resolve(), mounts)
    if kind in IN_MEMORY:
        problem = f"{settings.work_folder.absolute()} is on {kind}: its files would use up the memory of the jobs"
        yield error(what, problem, "WORK_FOLDER", "Name a folder on a disk")
        return
    wanted = ROOM_FOR_A_JOB * settings.celery_worker_concurrency
    if free < wanted:
        problem = f"{free / GIB:.1f} GiB are free, for {settings.celery_worker_concurrency} jobs at once"
        yield warning(what, problem, "WORK_FOLDER", "Make room: a delivery needs about twice the size of its files")
    yield ok(f"{what}: {kind or 'unknown file system'}, {free / GIB:,.1f} GiB free")


def filesystem(path: Path, mounts: str) -> str:
    """The type of the file system that holds the absolute `path`; `mounts`: the text of /proc/self/mountinfo."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        mount, dash, source = line.partition(" - ")
        fields, named = mount.split(" "), source.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = Path(_OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4]))
        if path.is_relative_to(point) and len(point.parts) >= best:  # a later mount hides an earlier one
            best, kind = len(point.parts), named[0]
    return kind


def memory(settings: Settings) -> Iterator[Finding]:
    """As a worker on this host would see it. What fits is counted as if nothing else ran."""
    reading, truth = Domain(settings.host_memory_bytes).read(), Domain().read()
    share = int(reading.limit * settings.max_memory_usage_percent / 100)
    what = (
        f"memory limit {reading.limit / GIB:,.1f} GiB ({reading.source}), {share / GIB:,.1f} GiB of it to be used, "
        f"{reading.anonymous / GIB:,.1f} GiB in use now"
    )
    if reading.limit > truth.limit:
        problem = f"{reading.limit:,} is more than the {truth.limit:,} bytes of the {truth.source}"
        yield warning(what, problem, "HOST_MEMORY_BYTES", "Set it to 0: the true limit is read then")
    slots = settings.celery_worker_concurrency
    fits = {kind: share // each.memory for kind, each in sorted(load_pipelines(settings.extra_pipelines).items())}
    for kind, count in fits.items():
        if not count:
            problem = f"not even one job of kind {kind} fits into {share:,} bytes"
            remedy = "Give this host more memory"
            yield error(what, problem, "MAX_MEMORY_USAGE_PERCENT", remedy)
        elif count < slots:
            problem = f"{slots} jobs may run at once, memory is there for {count} of kind {kind}"
            yield warning(what, problem, "CELERY_WORKER_CONCURRENCY", "Lower it, or give this host more memory")
    yield ok(f"{what}; jobs that fit: {', '.join(f'{count} {kind}' for kind, count in fits.items())}")
