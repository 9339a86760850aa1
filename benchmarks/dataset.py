"""What is delivered: generated files, put into S3 and entered in the catalog."""

from __future__ import annotations

import random
import struct
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO

from sqlalchemy import insert

from ncr_worker.pipeline import MIB
from ncr_worker.pipelines.deliver.catalog import job_details, job_files
from ncr_worker.pipelines.deliver.model import DeliverArgs
from ncr_worker.sandbox.s3 import S3
from ncr_worker.sql import Database

MODEL_HEAD = b"glTF\x02\0\0\0"
WORDS = b"vertex normal uv joint weight material texture sampler accessor buffer chair table lamp sofa".split()


@dataclass(frozen=True, slots=True)
class Dataset:
    """One job: `count` files of `size` bytes each. The first one is the model that the validator asks for."""

    name: str
    count: int
    size: int

    @property
    def sku(self) -> str:
        return f"SKU-{self.name}"

    @property
    def prefix(self) -> str:
        return f"{self.name}/{self.sku}/"

    @property
    def args(self) -> DeliverArgs:
        return DeliverArgs(job_id=self.name, username="benchmark", campaign="benchmark")

    @property
    def title(self) -> str:
        return f"{self.count} file{'s' * (self.count > 1)} of {self.size / MIB:,.0f} MiB"

    def names(self) -> Iterator[str]:
        """Below the prefix: a model, then by turns a texture, a model, a table, a source of each kind."""
        yield f"GLB_files/{self.sku}.glb"
        kinds = ("Materials/{}.png", "Materials/{}.glb", "Docs/{}.csv", "Meshes/{}.bin")
        for number in range(1, self.count):
            yield kinds[number % len(kinds)].format(f"part-{number:04}")

    def content(self, name: str) -> bytes:
        """Textures do not compress, tables compress well, models and meshes about by half."""
        dice = random.Random(f"{self.name}/{name}")
        if name.endswith(".png"):
            return dice.randbytes(self.size)
        if name.endswith(".csv"):
            return _text(dice, self.size)
        head = MODEL_HEAD if name.endswith(".glb") else b""
        return (head + _mesh(dice, self.size))[: self.size]


def _text(dice: random.Random, size: int) -> bytes:
    lines = b"".join(b"%d;%s;%.4f\n" % (number, dice.choice(WORDS), dice.random()) for number in range(20_000))
    return _long(lines, dice, size)


def _mesh(dice: random.Random, size: int) -> bytes:
    """Vertices, whose coordinates come from a grid, then triangles, each near the one before."""
    grid = [struct.pack("<f", dice.uniform(-1, 1)) for _ in range(2000)]
    vertices = b"".join(dice.choices(grid, k=MIB // 8))
    numbers = array("I", (number // 2 + dice.randrange(6) for number in range(MIB // 8)))
    return _long(vertices + numbers.tobytes(), dice, size)


def _long(piece: bytes, dice: random.Random, size: int) -> bytes:
    """The piece again and again: no compressor looks back that far."""
    made = bytearray()
    while len(made) < size:
        cut = dice.randrange(len(piece))
        made += piece[cut:] + piece[:cut]
    return bytes(made[:size])


def store(dataset: Dataset, s3: S3, database: Database) -> None:
    """Files into the bucket, each by one PUT as most uploaders do below 5 GiB, rows into the catalog."""
    client = s3.client()

    def put(name: str) -> None:
        client.put_object(Bucket=s3.bucket, Key=dataset.prefix + name, Body=BytesIO(dataset.content(name)))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(put, dataset.names()))
    client.close()
    now = datetime.now(UTC).replace(tzinfo=None)
    rows = [{"job_id": dataset.name, "key": dataset.prefix + name, "uploaded_at": now} for name in dataset.names()]
    database.transact(
        lambda connection: (
            connection.execute(insert(job_details).values(job_id=dataset.name, sku_id=dataset.sku)),
            connection.execute(insert(job_files), rows),
        )
    )
