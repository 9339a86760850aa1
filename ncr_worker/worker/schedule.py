"""Beat only submits: what is due becomes a job in the ledger, once for each tick, however many beats there are.

A tick is a moment of the schedule. Its name is the submit's idempotency key, so beat needs no memory of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.beat import Scheduler
from celery.schedules import ParseException, crontab

from ncr_worker.app import App
from ncr_worker.errors import Busy, ConfigError, Conflict, Rejected
from ncr_worker.settings import Settings
from ncr_worker.worker.celery_app import WorkerApp

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """`at`: the setting that holds its crontab (UTC), or `off`."""

    name: str
    kind: str
    at: str
    args: Mapping[str, Any] = field(default_factory=dict)


ENTRIES = (
    Entry("housekeeping", "housekeeping", "housekeeping_at"),
    Entry("stuck-report", "stuck_report", "stuck_report_at"),
)


class Beat(Scheduler):
    """Of several ticks that were missed, the newest is made up for, as long as its key is surely still kept."""

    max_interval = 60  # seconds: no jump of the clock is noticed later

    app: WorkerApp
    settings: Settings
    ledger_app: App
    clock: Callable[[], datetime] = staticmethod(lambda: datetime.now(UTC))

    def setup_schedule(self) -> None:
        """Raises ConfigError."""
        self.settings = self.app.settings
        self.ledger_app = App(self.settings)
        self.crontabs = [(entry, cron) for entry in ENTRIES if (cron := self._crontab(entry)) is not None]
        self.done: dict[str, datetime] = {}  # entry -> its last tick that is settled

    def tick(self, *_: Any, **__: Any) -> float:
        """Submit what is due; seconds until the next call."""
        now = self.clock()
        return min([self._advance(entry, cron, now) for entry, cron in self.crontabs], default=self.max_interval)

    def close(self) -> None:
        super().close()
        self.ledger_app.close()

    def _advance(self, entry: Entry, cron: crontab, now: datetime) -> float:
        oldest = now - timedelta(hours=self.settings.idempotency_hours / 2)
        newest = None
        for tick in ticks(cron, max(self.done.get(entry.name, oldest), oldest)):
            if tick > now:
                break
            newest = tick
        if newest is not None:
            try:
                self._submit(entry, newest)
            except Busy as error:  # the database is away
                log.warning("%s of %s not submitted yet: %s", entry.name, name_of(newest), error)
                return error.retry_in
            self.done[entry.name] = newest
        return min((tick - now).total_seconds(), self.max_interval)

    def _submit(self, entry: Entry, tick: datetime) -> None:
        app = self.ledger_app
        args = app.pipeline(entry.kind).args.model_validate(entry.args)
        key = f"schedule:{entry.name}:{name_of(tick)}"
        try:
            stored = app.submit_tick(entry.kind, args, key=key)
        except (Conflict, Rejected) as error:  # the one before is not done, or it is another beat's with other args
            log.info("%s of %s left out: %s", entry.name, name_of(tick), error)
        else:
            if not stored.again:
                log.info("%s of %s is job %s", entry.name, name_of(tick), stored.job_ids[0])

    def _crontab(self, entry: Entry) -> crontab | None:
        text: str = getattr(self.settings, entry.at)
        return None if text == "off" else parse_crontab(entry.at.upper(), text, self.app)


def parse_crontab(setting: str, text: str, app: Any) -> crontab:
    """Raises ConfigError."""
    fields = text.split()
    try:
        if len(fields) != 5:
            raise ValueError(f"{len(fields)} fields")
        cron = crontab.from_string(" ".join(fields))
    except (ValueError, ParseException) as error:
        remedy = "Write five fields: minute hour day month weekday, e.g. 15 3 * * *; or off"
        raise ConfigError(setting, f"{text!r} is no crontab ({error})", remedy) from error
    cron.app = app
    return cron


def ticks(cron: crontab, after: datetime) -> Iterator[datetime]:
    """The moments of a schedule behind `after`, without end."""
    while True:
        last, step, _now = cron.remaining_delta(after, tz=UTC)
        after = last + step
        yield after


def name_of(tick: datetime) -> str:
    """RFC 3339."""
    return f"{tick:%Y-%m-%dT%H:%MZ}"
