"""Group commit: submits that come at the same moment share one transaction, and one flush to the disk.

A request comes alone and pays for itself; under load each waits for the group before it, and the next group is larger.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from ncr_worker.errors import Busy, NcrError
from ncr_worker.job import NewJob
from ncr_worker.ledger import Ledger


@dataclass(slots=True)
class _Entry:
    job: NewJob
    error: Exception | None = None
    done: bool = False


class GroupCommit:
    """Stores single jobs. Safe to share between threads."""

    def __init__(self, ledger: Ledger) -> None:
        self._intake = ledger.intake
        self.waiting: dict[str, list[_Entry]] = {}  # by actor
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # one group at a time

    def submit(self, job: NewJob, *, actor: str) -> None:
        """Once this returns the job is not lost. Raises like `Intake.submit`."""
        entry = _Entry(job)
        with self._lock:
            self.waiting.setdefault(actor, []).append(entry)
        with self._turn:
            if not entry.done:
                with self._lock:
                    group = self.waiting.pop(actor)
                self._store(group, actor)
        if entry.error is not None:
            raise entry.error

    def _store(self, group: list[_Entry], actor: str) -> None:
        try:
            self._together(group, actor)
        finally:
            for entry in group:
                entry.done = True

    def _together(self, group: list[_Entry], actor: str) -> None:
        try:
            self._intake.submit([entry.job for entry in group], actor=actor)
        except Busy as error:  # the database is away: for all of them
            for entry in group:
                entry.error = error
        except NcrError as error:
            if len(group) == 1:
                group[0].error = error
                return
            for entry in group:  # one of them is refused; the others are not to suffer
                self._together([entry], actor)
        except Exception as error:  # noqa: BLE001 - a bug: nobody may believe that his job is stored
            for entry in group:
                entry.error = error
