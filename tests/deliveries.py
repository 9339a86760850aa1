"""A delivery's surroundings for tests: files in S3, rows in a catalog, a target, and a Run without an engine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import uuid4

from sqlalchemy import insert

from ncr_worker.job import Job, State
from ncr_worker.pipeline import Stage
from ncr_worker.pipelines.deliver import PIPELINE
from ncr_worker.pipelines.deliver.catalog import job_details, job_files, metadata
from ncr_worker.pipelines.deliver.model import DeliverArgs, Delivery, Item
from ncr_worker.sandbox.process import ServerProcess
from ncr_worker.sandbox.s3 import S3
from ncr_worker.settings import Settings
from ncr_worker.sql import Database

T = TypeVar("T")
STAGES: Mapping[str, Stage[Delivery]] = {stage.name: stage for stage in PIPELINE.stages}


@dataclass
class LooseRun:
    """Implements `pipeline.Run` in memory. `before_effect`, when set, is called by `confirm_ownership`."""

    job: Job
    settings: Settings
    folder: Path
    held: list[str] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    before_effect: Callable[[], None] | None = None
    while_moving: Callable[[], None] | None = None
    _made: dict[Callable[[Settings], Any], Any] = field(default_factory=dict)

    def use(self, connect: Callable[[Settings], T]) -> T:
        if connect not in self._made:
            self._made[connect] = connect(self.settings)
        return cast(T, self._made[connect])

    def advance(self, **figures: Any) -> None:
        self.told.append(figures)
        if self.while_moving:
            self.while_moving()

    def confirm_ownership(self) -> None:
        if self.before_effect:
            self.before_effect()

    def hold(self, key: str) -> None:
        self.held.append(key)

    def close(self) -> None:
        for connector in self._made.values():
            if hasattr(connector, "close"):
                connector.close()
        self._made.clear()


def running_job(args: DeliverArgs, *, job_id: str | None = None, round_: int = 1) -> Job:
    nothing: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
    known: dict[str, Any] = {"number": 1, "kind": "deliver", "version": 1, "state": State.RUNNING, "round": round_}
    given = {"id": job_id or str(uuid4()), "ref": args.ref, "tenant": args.tenant, "args": args.model_dump()}
    known["created_at"] = time.time()
    return Job(**nothing | known | given)


@dataclass
class World:
    """One job's files everywhere. `names`: path below `{job_id}/{sku}/` -> content."""

    s3: S3
    target: Any
    settings: Settings
    args: DeliverArgs
    sku: str
    names: dict[str, bytes]
    folder: Path
    _runs: list[LooseRun] = field(default_factory=list)

    def key(self, name: str) -> str:
        return f"{self.args.job_id}/{self.sku}/{name}"

    def put(self, name: str, content: bytes) -> None:
        self.names[name] = content
        with self.client() as client:
            client.put_object(Bucket=self.s3.bucket, Key=self.key(name), Body=content)

    @contextmanager
    def client(self) -> Iterator[Any]:
        client = self.s3.client()
        try:
            yield client
        finally:
            client.close()

    def run(self, *, job_id: str | None = None, round_: int = 1, **settings: Any) -> LooseRun:
        """A new run: of a new job, or of the job `job_id` again as after a crash."""
        job = running_job(self.args, job_id=job_id, round_=round_)
        changed = self.settings.model_copy(update=settings)
        folder = self.folder / job.id
        folder.mkdir(exist_ok=True)
        run = LooseRun(job, changed, folder)
        self._runs.append(run)
        return run

    def deliver(self, run: LooseRun, *, until: str = "confirm", parcel: Delivery | None = None) -> Delivery:
        """Run the stages in order, up to and with `until`."""
        parcel = parcel or PIPELINE.start(self.args)
        for name, stage in STAGES.items():
            parcel = stage(run, parcel)
            assert not (stage.local and stage.intact) or stage.intact(run, parcel)
            if name == until:
                break
        return parcel

    @property
    def root(self) -> Path:
        """What is SFTP_ROOT to clients."""
        return cast(Path, self.target.root) / self.settings.sftp_root

    def delivered(self) -> dict[str, bytes]:
        """What lies at the target: path relative to it -> content."""
        folder = self.root / self.sku
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def staged(self, parcel: Delivery, item: Item) -> Path:
        """Where a file lies until all is published."""
        return self.root / parcel.staging / item.target.removeprefix(f"{parcel.folder}/")

    def hidden(self) -> list[str]:
        """Staging and backup folders of this job's target."""
        return sorted(path.name for path in self.root.iterdir() if path.name.startswith(f".{self.sku}."))

    def close(self) -> None:
        for run in self._runs:
            run.close()


def largest(parcel: Delivery) -> Item:
    return max(parcel.items, key=lambda item: item.size)


def a_world(s3: S3, validator: ServerProcess, target: Any, folder: Path, sku: str = "", **changes: Any) -> World:
    """A job of five files: a model, a material, a texture, a source and a sheet. `changes`: further settings.

    `target`: an SFTP server, with `env()`, and `root`, the folder in which its sessions begin.
    """
    unique = uuid4().hex[:10]
    sku = f"{sku or 'SKU'}-{unique}"
    url = f"sqlite:///{folder / 'catalog.sqlite3'}"
    names = {name.lower(): value for server in (s3, validator, target) for name, value in server.env().items()}
    settings = Settings.model_validate(
        names | {"database_url": url, "work_folder": folder, "sftp_timeout": 10, "validator_timeout": 20} | changes
    )
    world = World(s3, target, settings, _args(unique), sku, {}, folder)
    noise = random.Random(unique)
    world.put("GLB_files/chair.glb", b"glTF" + noise.randbytes(3_000_000))
    world.put("Materials/oak.glb", b"glTF" + b"wood " * 1000)
    world.put("Materials/oak.png", noise.randbytes(70_000))
    world.put("work/chair.blend", b"BLENDER" + b"\0" * 500_000)
    world.put("Docs/sheet.csv", b"")
    world.put("source_photo.jpg", b"left out")
    _enter_in_catalog(Database(url), world)
    return world


def _args(unique: str) -> DeliverArgs:
    return DeliverArgs(job_id=f"job-{unique}", username="ann", campaign="spring")


def _enter_in_catalog(database: Database, world: World) -> None:
    metadata.create_all(database.engine)
    now = datetime.now(UTC).replace(tzinfo=None)
    rows = [{"job_id": world.args.job_id, "key": world.key(name), "uploaded_at": now} for name in world.names]
    database.transact(
        lambda connection: (
            connection.execute(insert(job_details).values(job_id=world.args.job_id, sku_id=world.sku)),
            connection.execute(insert(job_files), rows),
        )
    )
    database.close()


def as_delivered(world: World) -> dict[str, bytes]:
    """What the default layout makes of the files of `a_world`."""
    names, sku = world.names, world.sku
    return {
        f"{sku}.glb": names["GLB_files/chair.glb"],
        "materials/oak.glb": names["Materials/oak.glb"],
        "materials/oak.png": names["Materials/oak.png"],
        f"sources/{sku}.blend": names["work/chair.blend"],
        "docs/sheet.csv": names["Docs/sheet.csv"],
    }
