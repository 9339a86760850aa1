"""Ties the feeder to the life of a Celery worker."""

from __future__ import annotations

import fcntl
import gc
import logging
import threading
from contextlib import ExitStack, closing
from typing import Any

from celery import bootsteps

from ncr_worker.app import App
from ncr_worker.checks import Process, guard
from ncr_worker.errors import ConfigError
from ncr_worker.ledger import schema
from ncr_worker.memory.slots import Slots
from ncr_worker.metrics import CountedWork, forget_others, fresh_folder
from ncr_worker.settings import Settings
from ncr_worker.worker.feeder import Feeder
from ncr_worker.worker.memory import showing_memory
from ncr_worker.worker.reporter import Reporter
from ncr_worker.worker.sweep import Sweep
from ncr_worker.worker.wakeups import on_wake

log = logging.getLogger(__name__)

CHILD = 64 << 20  # bytes of a pool child between two jobs, measured with all kinds that are shipped


class FeederStep(bootsteps.StartStopStep):
    """Starts after the pool, and so stops before it: the pool still works while jobs get their grace."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        settings: Settings = worker.app.settings
        # Shared by all processes of this worker: made before the pool forks.
        worker.app.slots = Slots(worker.concurrency)
        _freeze()
        worker.app.metrics_folder = fresh_folder(settings.work_folder.absolute() / "metrics" / settings.host)
        self.feeder: Feeder | None = None
        self.thread: threading.Thread | None = None
        self.resources = ExitStack()

    def start(self, worker: Any) -> None:
        settings: Settings = worker.app.settings
        settings.jobs_folder.mkdir(parents=True, exist_ok=True)
        self._own_host(settings)
        for note in guard(settings, Process.WORKER):
            log.warning("starting all the same: %s", note)
        forget_others(worker.app.metrics_folder)
        with closing(App(settings, patience=settings.db_patience)) as patient:  # it may start just after us
            schema.require_current(patient.database)
        app = App(settings)
        self.resources.callback(app.close)
        app.database.survive_forks()
        app.ledger.work = CountedWork(app.database, worker.app.metrics)
        feeder = Feeder(settings, app.ledger, worker.app.slots, worker.app.send_job, app.pipelines)
        feeder.watch.child = CHILD
        feeder.start()
        self.resources.enter_context(feeder.watch)
        self.resources.enter_context(on_wake(app.board, feeder.wake))
        self.resources.enter_context(showing_memory(app.board, feeder))
        self.resources.enter_context(Sweep(settings, app.ledger))
        self.resources.enter_context(Reporter(settings, app.database, worker.app.metrics, feeder))
        self.feeder = feeder
        self.thread = threading.Thread(target=feeder.run, name="feeder", daemon=True)
        self.thread.start()
        _freeze()

    def stop(self, worker: Any) -> None:
        self._stop(worker.app.settings.shutdown_grace)

    def terminate(self, worker: Any) -> None:
        self._stop(0.0)

    def _stop(self, grace: float) -> None:
        feeder, thread = self.feeder, self.thread
        if feeder is None or thread is None:
            return
        self.feeder = None
        feeder.drain(grace)
        thread.join()
        feeder.leave()
        self.resources.close()

    def _own_host(self, settings: Settings) -> None:
        """One worker for each host id: a second one would release the first one's jobs.

        A POSIX lock, because it ends with this process and is not inherited by its children.
        """
        path = settings.work_folder / f"{settings.host}.lock"
        file = self.resources.enter_context(path.open("w"))
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                "HOST_ID", f"another worker already runs here as {settings.host!r}", "Give each worker its own HOST_ID"
            ) from error


def _freeze() -> None:
    """What is there by now stays: no collection looks at it again, nor do the children's copy its pages."""
    gc.collect()
    gc.freeze()
