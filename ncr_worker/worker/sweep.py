"""Removes work folders that no job of this host needs any more: what a killed child or worker left behind."""

from __future__ import annotations

import logging
import shutil
import threading
from types import TracebackType

from ncr_worker.job import OUT
from ncr_worker.ledger import Ledger
from ncr_worker.settings import Settings
from ncr_worker.sql import DatabaseAway

log = logging.getLogger(__name__)


class Sweep:
    """While entered, sweeps at every heartbeat. It removes only folders whose job has ended or is elsewhere."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.settings = settings
        self.ledger = ledger
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweep", daemon=True)

    def __enter__(self) -> Sweep:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(5)
        self._once()

    def once(self) -> None:
        """Raises DatabaseAway."""
        folders = {path.name: path for path in self.settings.jobs_folder.iterdir() if path.is_dir()}
        known = {job.id: job for job in self.ledger.reads.jobs(sorted(folders))}
        for name, path in folders.items():
            job = known.get(name)
            elsewhere = job is not None and job.state in OUT and job.host != self.settings.host
            if job is None or job.terminal or elsewhere:
                log.info("removing the work folder of %s", name)
                shutil.rmtree(path, ignore_errors=True)

    def _run(self) -> None:
        while not self._stop.wait(self.settings.host_heartbeat):
            self._once()

    def _once(self) -> None:
        try:
            self.once()
        except DatabaseAway as error:
            log.warning("not swept: %s", error)
        except OSError as error:
            log.warning("not swept: %s", error)
