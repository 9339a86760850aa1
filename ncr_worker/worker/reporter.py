"""Tells the ledger what the processes of this host have counted."""

from __future__ import annotations

import logging
import threading
from types import TracebackType

from ncr_worker.metrics import Metrics, Reports
from ncr_worker.settings import Settings
from ncr_worker.sql import Database, DatabaseAway
from ncr_worker.worker.feeder import Feeder

log = logging.getLogger(__name__)


class Reporter:
    """While entered, reports at every heartbeat. What goes wrong here never touches a job."""

    def __init__(self, settings: Settings, database: Database, metrics: Metrics, feeder: Feeder) -> None:
        self.settings = settings
        self.feeder = feeder
        self.reports = Reports(database)
        self.metrics = metrics
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(5)
        self._count()  # whoever looks into the folder when we have ended finds the whole truth

    def _count(self) -> None:
        feeder = self.feeder
        self.metrics.running(
            feeder_cpu_seconds=feeder.cpu,
            publish_cpu_seconds=feeder.holding.publish_cpu,
            budget_exceeded=feeder.watch.exceeded,
            jobs_ended_for_memory=feeder.watch.ended,
        )

    def _run(self) -> None:
        while not self._stop.wait(self.settings.host_heartbeat):
            try:
                self._count()
                self.reports.write(self.settings.host, self.metrics.text())
            except DatabaseAway as error:
                log.warning("metrics were not reported: %s", error)
            except Exception:  # e.g. a child is just making its file; the next heartbeat tells all
                log.exception("metrics were not reported")
