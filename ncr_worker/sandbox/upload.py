"""A folder of the user's own becomes a job: its files go into the bucket, its rows into the catalog."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, delete, insert

from ncr_worker.errors import NotFound
from ncr_worker.pipelines.deliver.catalog import BASE, catalog, job_details, job_files
from ncr_worker.pipelines.deliver.layout import load_layout
from ncr_worker.settings import Settings
from ncr_worker.stores import source

AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Uploaded:
    """`size`: bytes of all. `left_out`: files that the layout does not deliver."""

    files: int
    size: int
    left_out: int


def upload(folder: Path, job_id: str, sku: str, settings: Settings) -> Uploaded:
    """Hidden files stay where they are. What the catalog said of this job before is replaced.

    Raises NotFound for a folder without files; Rejected, before anything is stored, for what could not be delivered.
    """
    paths = {f"{job_id}/{sku}/{name}": folder / name for name in _names(folder)}
    if not paths:
        raise NotFound(f"{folder} holds no files")
    placed = load_layout(settings).place(job_id, sku, paths)
    with closing(source(settings)) as store, ThreadPoolExecutor(AT_ONCE, thread_name_prefix="upload") as pool:
        stored = list(pool.map(store.write, paths.values(), paths))
    with closing(catalog(settings)) as entered:
        entered.database.transact(lambda connection: _enter(connection, job_id, sku, paths))
    return Uploaded(len(stored), sum(entry.size for entry in stored), len(placed.left_out))


def _names(folder: Path) -> list[str]:
    """Of all files below `folder`, relative to it."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


def _enter(connection: Connection, job_id: str, sku: str, keys: Iterable[str]) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    for table in (job_details, job_files):
        connection.execute(delete(table).where(table.c.job_id == job_id))
    connection.execute(insert(job_details).values(job_id=job_id, sku_id=sku))
    rows = [{"job_id": job_id, "key": key, "file_type": BASE, "uploaded_at": now} for key in keys]
    connection.execute(insert(job_files), rows)
