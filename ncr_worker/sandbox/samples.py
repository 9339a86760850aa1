"""A realistic catalog of made-up products: what is in S3, and what must lie on the SFTP server in the end.

Targets are written down beside each file, not computed by the layout rules: the proof must not believe what it checks.
Everything follows from a job's number, so content is never kept: it is made again when it is needed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, insert

from ncr_worker.pipelines.deliver.catalog import job_details, job_files
from ncr_worker.sandbox.s3 import S3
from ncr_worker.sql import Database

KB, MB = 1_000, 1_000_000
FIRST_JOB = 48_001
PERIOD = 262_139
"""Content repeats after so many bytes: a prime, so that chunks in a wrong order change the checksum."""
UPLOADS = 6
"""Objects put into S3 at once."""

VALID, WARNING, INVALID = "Valid", "Warning", "Invalid"
_PRODUCTS = ("armchair", "bookcase", "desk", "floor-lamp", "sideboard", "sofa", "stool", "table")
_MATERIALS = ("oak", "walnut", "brass", "linen", "wool", "marble")
_GLB_HEAD = b"glTF\x02\x00\x00\x00"
_NO_GLB_HEAD = b"PK\x03\x04 not a glTF file"
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class SampleFile:
    """`target`: path on the SFTP server; None: must not be delivered. `size` in bytes. `base`: the catalog's type."""

    key: str
    target: str | None
    size: int
    head: bytes = b""
    base: bool = True

    def content(self) -> bytes:
        block = self.head + random.Random(self.key).randbytes(min(self.size, PERIOD))
        return (block * (self.size // len(block) + 1))[: self.size] if self.size else b""


@dataclass(frozen=True, slots=True)
class SampleJob:
    """`verdict`: what the validator must say. `note`: what is special about it."""

    job_id: str
    sku: str
    verdict: str
    note: str
    files: tuple[SampleFile, ...]

    @property
    def delivered(self) -> bool:
        return self.verdict != INVALID

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def request(self) -> dict[str, str]:
        """The body that submits it."""
        return {"job_id": self.job_id, "username": "demo", "campaign": "spring"}

    def manifest(self) -> dict[str, str]:
        """What must lie on the SFTP server: path -> SHA-256 in hex. Empty for a job that must be rejected."""
        if not self.delivered:
            return {}
        return {file.target: hashlib.sha256(file.content()).hexdigest() for file in self.files if file.target}


def sample_jobs(count: int) -> list[SampleJob]:
    """`count` jobs of about 10 MB and 18 files each. Of the first two, one is valid and one is not."""
    return [_job(index) for index in range(count)]


def _job(index: int) -> SampleJob:
    product = _PRODUCTS[index % len(_PRODUCTS)]
    job_id = str(FIRST_JOB + index)
    verdict, note, trait = _character(index)
    sku = f"{product.upper()}-{index + 1:03}{trait}"
    files = list(_files(job_id, sku, product, random.Random(index)))
    if verdict == WARNING:
        files.append(_texture(job_id, sku, "fabric_8k.png", 5 * MB))
    elif verdict == INVALID:
        files = list(_spoiled(files, f"{sku}/{sku}.glb", missing=index % 16 == 9))
    return SampleJob(job_id, sku, verdict, note, tuple(files))


def _character(index: int) -> tuple[str, str, str]:
    """Verdict, note, and what to add to the sku: the sandbox's validator behaves according to it."""
    if index % 16 == 9:
        return INVALID, "has no model: must be rejected", ""
    kinds = {
        1: (INVALID, "its model is no glTF file: must be rejected", ""),
        3: (WARNING, "has a large texture: passes with a warning", ""),
        4: (VALID, "the validator takes its time", "-slow"),
        5: (VALID, "the validator answers 503 twice", "-flaky"),
    }
    return kinds.get(index % 8, (VALID, "", ""))


def _files(job_id: str, sku: str, product: str, dice: random.Random) -> Iterator[SampleFile]:
    def file(name: str, target: str | None, size: float, head: bytes = b"") -> SampleFile:
        return SampleFile(f"{job_id}/{sku}/{name}", target and f"{sku}/{target}", int(size * scale), head)

    scale = dice.uniform(0.6, 1.5)
    yield file(f"GLB_files/{product}.glb", f"{sku}.glb", 2.5 * MB, _GLB_HEAD)
    for material in dice.sample(_MATERIALS, 2):
        yield file(f"Materials/{material}.glb", f"materials/{material}.glb", 150 * KB, _GLB_HEAD)
        for part in ("basecolor", "normal", "roughness"):
            name = f"{material}_{part}.png"
            yield file(f"Materials/Textures/{name}", f"materials/{name}", 500 * KB, _PNG_HEAD)
    yield file(f"Work/{product} v2.blend", f"sources/{sku}.blend", 2 * MB, b"BLENDER-v300")
    yield file("Sources/Refs/façade.jpg", "sources/façade.jpg", 250 * KB, b"\xff\xd8\xff")
    for view in ("front", "side", "top"):
        yield file(f"Renders/{view}.webp", f"renders/{view}.webp", 300 * KB, b"RIFF")
    yield file("Docs/Sizes and Weights.csv", "docs/Sizes and Weights.csv", 3 * KB, b"part;width;height\n")
    yield file("Docs/empty.txt", "docs/empty.txt", 0)
    yield file("read me.txt", "read me.txt", 1 * KB)
    yield file("Sources/source_photo.jpg", None, 200 * KB, b"\xff\xd8\xff")
    yield replace(file("Previews/turntable.mp4", None, 100 * KB), base=False)


def _texture(job_id: str, sku: str, name: str, size: int) -> SampleFile:
    return SampleFile(f"{job_id}/{sku}/Materials/Textures/{name}", f"{sku}/materials/{name}", size, _PNG_HEAD)


def _spoiled(files: Sequence[SampleFile], model: str, *, missing: bool) -> Iterator[SampleFile]:
    for file in files:
        if file.target != model:
            yield file
        elif not missing:
            yield replace(file, head=_NO_GLB_HEAD)


def store(jobs: Sequence[SampleJob], s3: S3, catalog_url: str) -> None:
    """Put all files into the bucket and all rows into the catalog. Raises what boto3 raises, and DatabaseAway."""
    client = s3.client()

    def put(file: SampleFile) -> None:
        client.put_object(Bucket=s3.bucket, Key=file.key, Body=file.content())

    pool = ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload")
    try:
        for _ in pool.map(put, (file for job in jobs for file in job.files)):
            pass  # raises the first error
    finally:
        pool.shutdown(cancel_futures=True)
        client.close()
    database = Database(catalog_url)
    try:
        database.transact(lambda connection: _enter(connection, jobs))
    finally:
        database.close()


def _enter(connection: Connection, jobs: Sequence[SampleJob]) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    details = [{"job_id": job.job_id, "sku_id": job.sku} for job in jobs]
    files = [
        {"job_id": job.job_id, "key": file.key, "file_type": "base" if file.base else "preview", "uploaded_at": at}
        for job in jobs
        for file in job.files
        for at in (now - timedelta(days=1), now)  # uploaded again today: only the latest counts
    ]
    connection.execute(insert(job_details), details)
    connection.execute(insert(job_files), files)
