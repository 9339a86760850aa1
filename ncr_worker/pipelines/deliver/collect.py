"""Stages fetch, pack, validate: a checked local copy of every file, one zip, the validator's word."""

from __future__ import annotations

from pathlib import Path

from ncr_worker.archive import pack as pack_zip
from ncr_worker.errors import ConfigError, Rejected, Transient
from ncr_worker.pipeline import Run, stage
from ncr_worker.pipelines.deliver.catalog import Entry as CatalogEntry
from ncr_worker.pipelines.deliver.catalog import catalog
from ncr_worker.pipelines.deliver.model import Delivery, Item, moment
from ncr_worker.pipelines.deliver.transfer import transfer
from ncr_worker.stores import Entry, Progress, source
from ncr_worker.stores.file import disk_errors, sha256
from ncr_worker.validator import UNAVAILABLE, Verdict, gate, validator


def local_path(run: Run, item: Item) -> Path:
    return run.folder / "files" / item.local_name


def zip_path(run: Run) -> Path:
    return run.folder / "delivery.zip"


def files_intact(run: Run, parcel: Delivery) -> bool:
    """Whether every fetched file is here with its size, and its SHA-256 known (an earlier version fetched without)."""
    return all(item.sha256 and _has_size(local_path(run, item), item.size) for item in parcel.items)


def zip_intact(run: Run, parcel: Delivery) -> bool:
    return files_intact(run, parcel) and _has_size(zip_path(run), parcel.archive_bytes)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@stage(weight=4, local=True, intact=files_intact)
def fetch(run: Run, parcel: Delivery) -> Delivery:
    store = run.use(source)
    with disk_errors():
        (run.folder / "files").mkdir(parents=True, exist_ok=True)

    def read(item: Item, progress: Progress) -> Item:
        path = local_path(run, item)
        if _has_size(path, item.size):  # by an attempt that was cut short
            return item.model_copy(update={"sha256": sha256(path, progress)})
        part = path.with_suffix(".part")
        digest = store.read(Entry(item.key, item.size, item.etag), part, progress)
        if not _has_size(part, item.size):  # the last write to a full disk may be short without an error
            raise Transient(f"local disk is full: {item.key} was not written whole", code="disk_full", retry_in=30)
        part.replace(path)  # so a file under its name is whole
        return item.model_copy(update={"sha256": digest})

    with run.use(gate).admitted(run.job.id, run.job.created_at):  # nothing piles up while the validator is down
        items = transfer(run, parcel.items, run.settings.s3_parallel, read)
    return parcel.evolve(items=tuple(items))


@stage(weight=1, local=True, intact=zip_intact)
def pack(run: Run, parcel: Delivery) -> Delivery:
    files = [(item.target, local_path(run, item)) for item in parcel.items]
    size = pack_zip(zip_path(run), files, _bytes_told(run, parcel.total_bytes))
    run.advance(files=len(files), total_files=len(files))
    return parcel.evolve(archive_bytes=size)


@stage(weight=2, local=True, intact=files_intact)
def validate(run: Run, parcel: Delivery) -> Delivery:
    run.confirm_ownership()
    verdict = _ask_validator(run, parcel)
    run.use(catalog).record_validation(catalog_entry(run, parcel), verdict)
    if not verdict.passed:
        reasons = "; ".join(verdict.reasons) or "no reason given"
        text = f"the validator says {verdict.result}: {reasons}"
        raise Rejected(text, code="validation_failed", result={"verdict": verdict.model_dump(mode="json")})
    return parcel.evolve(verdict=verdict, validated_at=moment())


def _ask_validator(run: Run, parcel: Delivery) -> Verdict:
    doubt = run.use(gate)
    with doubt.admitted(run.job.id, run.job.created_at):
        try:
            verdict = run.use(validator).check(parcel.sku, zip_path(run), _bytes_told(run, parcel.archive_bytes))
        except (Transient, Rejected, ConfigError) as error:
            if isinstance(error, Transient) and error.code == UNAVAILABLE:
                doubt.failed(run.job.created_at, error)
            else:
                doubt.passed()
            raise
        doubt.passed()
        return verdict


def catalog_entry(run: Run, parcel: Delivery) -> CatalogEntry:
    return CatalogEntry(parcel.args.job_id, parcel.args.row_id, run.job.id, run.job.round)


def _bytes_told(run: Run, total: int) -> Progress:
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        run.advance(bytes=done, total_bytes=total)

    return progress
