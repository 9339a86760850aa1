"""A service outside that is down: the jobs of this host wait for it, one of them asks now and then whether it is back.

No attempt is counted meanwhile, and nothing more is fetched for it. One small file in the work folder is shared by
all processes of the host: there while the service is in doubt, gone while it works.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from ncr_worker.errors import ServiceDown, StageError, Transient
from ncr_worker.stores.file import disk_errors

FAILURES = 3
"""So many calls in a row, of whichever jobs, and the service is taken for down."""
LONGEST_PAUSE = 60.0


class Doubt(BaseModel):
    """What the file says. Times: epoch seconds. `probe`: the job that may ask until `probe_until`, in process `pid`."""

    model_config = ConfigDict(frozen=True)

    since: float
    failures: int
    why: str
    until: float
    probe: str = ""
    probe_until: float = 0.0
    pid: int = 0


class Gate:
    """`pause`: the first pause, seconds; it doubles up to a minute. `patience`: seconds that a job waits at most.

    `longest_call`: seconds after which a probe that has not come back counts as lost.
    """

    def __init__(
        self,
        path: Path,
        service: str,
        *,
        pause: float,
        patience: float,
        longest_call: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._service = service
        self._pause = pause
        self._patience = patience
        self._longest_call = longest_call
        self._clock = clock

    @contextmanager
    def admitted(self, job_id: str, submitted_at: float) -> Iterator[None]:
        """For a job that uses the service, or prepares to: it works, or this job is the one that finds out.

        Raises ServiceDown when it has to wait, StageError when it has waited longer than `patience`.
        """
        self._enter(job_id, submitted_at)
        try:
            yield
        except BaseException:
            self._withdraw(job_id)
            raise

    def failed(self, submitted_at: float, error: Transient) -> None:
        """A call has failed. Returns while that may be chance; raises like `admitted` once the service is down."""
        with self._locked() as known:
            now = self._clock()
            failures = 1 + (known.failures if known else 0)
            down = failures >= FAILURES
            pause = max(min(self._pause * 2.0 ** min(max(failures - FAILURES, 0), 9), LONGEST_PAUSE), self._pause)
            pause = max(pause, error.retry_in or 0.0)
            since, until = known.since if known else now, now + pause if down else now
            doubt = Doubt(since=since, failures=failures, why=str(error), until=until)
            self._write(doubt)
        if down:
            self._require_patience(doubt, submitted_at)
            # Later than the others: the next to ask is another job, in case this one is what the service fails at.
            raise self._down(doubt, pause + self._pause)

    def passed(self) -> None:
        """The service has answered."""
        if self._path.exists():
            with self._locked():
                self._path.unlink(missing_ok=True)

    def _enter(self, job_id: str, submitted_at: float) -> None:
        with self._locked() as doubt:
            if doubt is None or doubt.failures < FAILURES:
                return
            now = self._clock()
            another = doubt.probe not in ("", job_id) and now < doubt.probe_until and psutil.pid_exists(doubt.pid)
            if doubt.probe == job_id or (now >= doubt.until and not another):
                probe = {"probe": job_id, "probe_until": now + self._longest_call, "pid": os.getpid()}
                self._write(doubt.model_copy(update=probe))
                return
        self._require_patience(doubt, submitted_at)
        raise self._down(doubt, max(doubt.until - now, self._pause))

    def _withdraw(self, job_id: str) -> None:
        """The job that was to ask did not come to it."""
        with self._locked() as doubt:
            if doubt is not None and doubt.probe == job_id:
                self._write(doubt.model_copy(update={"probe": ""}))

    def _down(self, doubt: Doubt, wait: float) -> ServiceDown:
        return ServiceDown(f"waits until the {self._service} works again; it is down: {doubt.why}", retry_in=wait)

    def _require_patience(self, doubt: Doubt, submitted_at: float) -> None:
        waited = self._clock() - max(doubt.since, submitted_at)
        if waited > self._patience:
            text = f"the {self._service} has been down for {waited / 3600:.1f} h: {doubt.why}"
            raise StageError(text, code=f"{self._service}_unavailable")

    @contextmanager
    def _locked(self) -> Iterator[Doubt | None]:
        """What the file says, while no other process reads or writes it."""
        with disk_errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield self._read()
        finally:
            os.close(lock)

    def _read(self) -> Doubt | None:
        try:
            return Doubt.model_validate_json(self._path.read_bytes())
        except (FileNotFoundError, ValidationError):  # half written by a process that died: begin anew
            return None

    def _write(self, doubt: Doubt) -> None:
        with disk_errors():
            self._path.write_text(doubt.model_dump_json())
