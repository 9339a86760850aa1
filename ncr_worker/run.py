"""A job being run in this process: what its stages see, and the connectors they share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from ncr_worker.board import Board
from ncr_worker.errors import Cancelled, GivenBack, LostOwnership, OutOfMemory
from ncr_worker.job import Job, Reason, State
from ncr_worker.ledger import Work
from ncr_worker.ledger.observations import Seen
from ncr_worker.memory.slots import JobSlot, Order
from ncr_worker.pipeline import Parcel, Pipeline, Stage
from ncr_worker.progress import Progress, percent
from ncr_worker.settings import Settings

T = TypeVar("T")

SHOW_EVERY = 0.5  # seconds between two writes to the board


class Connectors:
    """The connectors of this process: each built at first use, shared, closed at the end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._made: dict[Callable[[Settings], Any], Any] = {}
        self._lock = threading.RLock()

    def use(self, connect: Callable[[Settings], T]) -> T:
        with self._lock:
            if connect not in self._made:
                self._made[connect] = connect(self.settings)
            made: T = self._made[connect]
            return made

    def close(self) -> None:
        for connector in self._made.values():
            if hasattr(connector, "close"):
                connector.close()
        self._made.clear()


class ActiveRun:
    """What a stage sees: implements `pipeline.Run` for one job in this process."""

    def __init__(
        self, job: Job, pipeline: Pipeline[Any], connectors: Connectors, work: Work, board: Board, slot: JobSlot
    ) -> None:
        self.job = job
        self.pipeline = pipeline
        self.settings = connectors.settings
        self.folder = connectors.settings.jobs_folder / job.id
        self.use = connectors.use
        self.slot = slot
        self.parcel: Parcel | None = None  # as the stage that runs now received it
        self.seen: list[Seen] = []  # what its stages took, those that are done
        self._work = work
        self._board = board
        self._lock = threading.Lock()
        self._progress = Progress()
        self._entered = self._shown = 0.0

    def enter(self, stage: Stage[Any]) -> None:
        self._progress, self._entered = Progress(stage=stage.name), time.monotonic()
        self.show(State.RUNNING, event=True)

    @property
    def peak(self) -> int:
        """Most bytes that this run was seen to use."""
        return max([self.slot.peak, *(seen.peak for seen in self.seen)])

    def advance(
        self,
        *,
        files: int | None = None,
        total_files: int | None = None,
        bytes: int | None = None,
        total_bytes: int | None = None,
        current: str | None = None,
    ) -> None:
        self.obey()
        with self._lock:
            progress, now = self._progress, time.monotonic()
            if files is not None:
                progress.files = files
            if total_files is not None:
                progress.total_files = total_files
            if bytes is not None:
                progress.bytes_done = bytes
            if total_bytes is not None:
                progress.bytes_total = total_bytes
            if current is not None:
                progress.current_file = current
            progress.seconds = now - self._entered
            due = now - self._shown >= SHOW_EVERY
            if due:
                self._shown = now
        if due:
            self.show(State.RUNNING)

    def obey(self) -> None:
        """Raise what main has ordered, if anything."""
        order = self.slot.order
        if order is Order.CANCEL:
            raise Cancelled("cancelled on request")
        if order is Order.GIVE_BACK:
            raise GivenBack("the worker stops", reason=Reason.GIVEN_BACK)
        if order is Order.OUTGROWN:
            raise OutOfMemory("uses more memory than was reserved, and the host is short of it")
        if order is Order.LOST:
            raise LostOwnership(f"job {self.job.id} is not ours any more")

    def confirm_ownership(self) -> None:
        self.obey()
        self._work.confirm(self.job)

    def hold(self, key: str) -> None:
        self._work.hold(self.job, key)

    def wait(self, seconds: float) -> None:
        """Sleep, but obey orders."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.obey()
            time.sleep(min(left, 0.1))

    def show(self, state: State, *, message: str = "", event: bool = False) -> None:
        """Put the live status on the board."""
        progress = self._progress
        weights = [(stage.name, stage.weight) for stage in self.pipeline.stages]
        done = 100.0 if state is State.SUCCEEDED else percent(weights, progress.stage, progress.fraction)
        status = {
            **self.job.log_context(),
            **asdict(progress),
            "status": self.pipeline.word(state, progress.stage),
            "percentage": done,
            "rate": round(progress.rate),
            "eta": progress.eta,
            "message": message,
            "started_at": self.job.started_at,
            "host": self.settings.host,
            "at": time.time(),
        }
        self._board.show(self.job.id, status, event=event)
