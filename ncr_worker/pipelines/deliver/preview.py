"""What a delivery would be now, without doing it: the target tree, and what it needs of a worker host."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict

from ncr_worker.pipelines.deliver.catalog import catalog
from ncr_worker.pipelines.deliver.layout import load_layout
from ncr_worker.pipelines.deliver.model import DeliverArgs, Delivery
from ncr_worker.pipelines.deliver.pipeline import PIPELINE
from ncr_worker.pipelines.deliver.plan import draw_plan
from ncr_worker.settings import Settings
from ncr_worker.stores import source

Use = Callable[[Callable[[Settings], Any]], Any]
"""`Run.use`: the shared connector that a factory builds."""

_ENTRY = 4096
"""Bytes of a zip for each file at most: its name twice, headers, and what deflate adds to what it cannot shrink."""


class PlannedFile(BaseModel):
    """`target`: path on the server below SFTP_ROOT; `size`: bytes; `etag`: the version that would be fetched."""

    model_config = ConfigDict(frozen=True)

    key: str
    target: str
    size: int
    etag: str


class Preview(BaseModel):
    """`target`: the folder on the server that would be replaced as a whole; `folder`: the same below SFTP_ROOT.

    `left_out`: keys that the layout does not deliver. `disk_bytes`: at most so much of the worker's disk (files and
    zip); on the server, `total_bytes` are needed beside the delivery that is there. `memory_bytes`: the largest
    reservation of any stage.
    """

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "job_id": "4711",
                    "sku": "CHAIR-1",
                    "server": "sftp.example:22",
                    "target": "./CHAIR-1",
                    "folder": "CHAIR-1",
                    "files": [
                        {
                            "key": "4711/CHAIR-1/GLB_files/chair.glb",
                            "target": "CHAIR-1/CHAIR-1.glb",
                            "size": 7340032,
                            "etag": '"9b2cf535f27731c974343645a3985328"',
                        }
                    ],
                    "left_out": ["4711/CHAIR-1/source_front.jpg"],
                    "total_files": 1,
                    "total_bytes": 7340032,
                    "disk_bytes": 14684160,
                    "memory_bytes": 100663296,
                }
            ]
        },
    )

    job_id: str
    sku: str
    server: str
    target: str
    folder: str
    files: tuple[PlannedFile, ...]
    left_out: tuple[str, ...]
    total_files: int
    total_bytes: int
    disk_bytes: int
    memory_bytes: int


def preview(args: DeliverArgs, use: Use, settings: Settings) -> Preview:
    """Reads the catalog and the store's HEADs. Raises what the stage `plan` raises, before anything is fetched."""
    planned = draw_plan(args, use(catalog), use(source), use(load_layout))
    return Preview(
        job_id=args.job_id,
        sku=planned.sku,
        server=f"{settings.sftp_host}:{settings.sftp_port}",
        target=posixpath.join(settings.sftp_root, planned.folder),
        folder=planned.folder,
        files=tuple(PlannedFile(**item.model_dump(exclude={"sha256"})) for item in planned.items),
        left_out=planned.left_out,
        total_files=len(planned.items),
        total_bytes=planned.total_bytes,
        disk_bytes=_disk(planned),
        memory_bytes=max(PIPELINE.need(stage, planned) for stage in PIPELINE.stages),
    )


def _disk(planned: Delivery) -> int:
    """The fetched files and a zip in which nothing could be compressed."""
    return planned.total_bytes * 2 + planned.total_bytes // 1024 + _ENTRY * len(planned.items)
