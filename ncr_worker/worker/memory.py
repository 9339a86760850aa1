"""Shows on the board what the memory of this host is used for, each second."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ncr_worker.board import Board
from ncr_worker.memory.live import EVERY, LiveMemory, Snapshot, Use
from ncr_worker.worker.feeder import Feeder

log = logging.getLogger(__name__)

PERIOD = 1.0


@contextmanager
def showing_memory(board: Board, feeder: Feeder) -> Iterator[None]:
    """While entered. What goes wrong here never touches a job."""
    live, stop = LiveMemory(board), threading.Event()

    def show() -> None:
        kept = 0.0
        while not stop.wait(PERIOD):
            keep = time.monotonic() - kept >= EVERY - PERIOD / 2
            kept = time.monotonic() if keep else kept
            try:
                live.show(feeder.settings.host, snapshot(feeder), keep=keep)
            except Exception:  # nobody needs it but people; the next second may be better
                log.exception("the memory of this host was not shown")

    thread = threading.Thread(target=show, name="memory-display", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(2)


def snapshot(feeder: Feeder) -> Snapshot:
    load, reading = feeder.watch.load(), feeder.watch.reading
    ids = {held.job.token: held.job.job_id for held in dict(feeder.held).values()}
    return Snapshot(
        at=time.time(),
        limit=load.limit,
        budget=load.budget,
        others=load.others,
        reserved=load.charged,
        observed=load.observed,
        swap=reading.swap,
        pressure=reading.pressure,
        running=len(load.charges),
        jobs=[
            Use(
                job_id=ids[charge.token],
                reserved=charge.reserved,
                observed=charge.observed,
                peak=feeder.slots.read(charge.index).peak,
            )
            for charge in load.charges
            if charge.token in ids
        ],
    )
