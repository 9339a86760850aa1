"""One worker host in a memory group: main process and pool children inside, ledger and servers outside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from faults.storm import EFFECTS
from memory_group import MemoryGroup, memory_group
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from scraped import figure

from ncr_worker.app import App
from ncr_worker.job import NewJob
from ncr_worker.ledger import schema
from ncr_worker.sandbox.own import Worker
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings

KINDS = Path(__file__).parent / "acceptance"
"""Where the package `faults` with its kinds of jobs is."""


class ConfinedWorker(Worker):
    """A real worker, in `group` from its first page on."""

    def __init__(
        self, folder: Path, settings: Mapping[str, str], is_up: Callable[[], bool], group: MemoryGroup
    ) -> None:
        super().__init__(folder, settings, is_up)
        self.group = group

    def command(self) -> Sequence[str]:
        return self.group.inside(super().command())

    def tail(self, lines: int = 40) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()[-lines:]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children()


@dataclass(frozen=True, slots=True)
class Confined:
    """`effects`: the file in which jobs leave a line each."""

    group: MemoryGroup
    app: App
    worker: ConfinedWorker
    effects: Path

    def submit(self, kind: str, many: Sequence[Mapping[str, Any]], *, sized: bool = True) -> list[str]:
        """Their ids, in order. `sized`: what they say they need is known before they start."""
        pipeline = self.app.pipeline(kind)
        new = []
        for values in many:
            args = pipeline.args.model_validate(dict(values))
            need = values["need"] if sized and "need" in values else pipeline.memory
            job_id, plain = str(uuid4()), args.model_dump(mode="json")
            new.append(NewJob(job_id, kind, 1, args.ref, "", plain, need, max_attempts=pipeline.attempts))
        self.app.ledger.intake.submit(new, actor="test")
        self.app.board.wake()
        return [each.id for each in new]

    def done(self) -> list[int]:
        """Numbers of the jobs that have done their work, as often as they have."""
        return list(map(int, self.effects.read_text().split())) if self.effects.exists() else []

    def counted(self, name: str, **labels: str) -> float:
        """A figure of this worker's metrics; exact once it has stopped."""
        settings = self.worker.settings
        registry = CollectorRegistry()
        [folder] = (Path(settings["WORK_FOLDER"]) / "metrics" / settings["HOST_ID"]).iterdir()
        MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
        return figure(generate_latest(registry).decode(), name, **labels)


@contextmanager
def confined(folder: Path, limit: int, kinds: Sequence[str], **settings: object) -> Iterator[Confined]:
    """A started worker with `limit` bytes. `settings`: its further settings, by their names in lower case.

    Raises NoMemoryGroup.
    """
    with ExitStack() as resources:
        group = resources.enter_context(memory_group(limit))
        valkey = resources.enter_context(Valkey(folder / "valkey"))
        environment = {
            "DATABASE_URL": f"sqlite:///{folder / 'ledger.sqlite3'}",
            "WORK_FOLDER": str(folder / "work"),
            "HOST_ID": "confined",
            "RETRY_DELAY": "0.2",
            "LOG_FORMAT": "console",
            "LOG_LEVEL": "WARNING",
            "CELERY_BROKER_URL": "",
            "EXTRA_PIPELINES": ",".join(f"faults.{kind}" for kind in kinds),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(KINDS), os.environ.get("PYTHONPATH", "")])),
            EFFECTS: str(folder / "effects"),
            **valkey.env(),
        } | {name.upper(): str(value) for name, value in settings.items()}
        app = App(Settings.model_validate({name.lower(): value for name, value in environment.items()}), patience=30)
        resources.callback(app.close)
        schema.upgrade(app.database)
        worker = ConfinedWorker(folder / "worker", environment, lambda: bool(app.ledger.hosts.live()), group)
        yield Confined(group, app, resources.enter_context(worker), folder / "effects")
