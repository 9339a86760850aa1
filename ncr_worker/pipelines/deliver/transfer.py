"""Many files at once, with one progress for all: the first error stops every other transfer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

from ncr_worker.errors import Cancelled
from ncr_worker.pipeline import Run
from ncr_worker.pipelines.deliver.model import Item
from ncr_worker.stores import Progress

T = TypeVar("T")


class Meter:
    """Adds up what all threads moved and tells it to `run.advance`."""

    def __init__(self, run: Run, items: Sequence[Item]) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._stopped = False
        self._files = self._bytes = 0
        self._total_files = len(items)
        self._total_bytes = sum(item.size for item in items)
        self.add(0)

    def add(self, count: int, *, files: int = 0, current: str | None = None) -> None:
        """`count` bytes and `files` more are done. Raises what `run.advance` raises."""
        with self._lock:
            self._files += files
            self._bytes += count
            if self._stopped:
                raise Cancelled("another transfer of this job failed")
            self._run.advance(
                files=self._files,
                total_files=self._total_files,
                bytes=self._bytes,
                total_bytes=self._total_bytes,
                current=current,
            )

    def stop(self) -> None:
        """Make every transfer end at its next chunk."""
        with self._lock:
            self._stopped = True


def transfer(run: Run, items: Sequence[Item], parallel: int, move: Callable[[Item, Progress], T]) -> list[T]:
    """`move(item, progress)` for every item, `parallel` at once; the results in the order of `items`.

    Raises the first error, after all others have ended.
    """
    meter = Meter(run, items)

    def one(item: Item) -> T:
        meter.add(0, current=item.target)
        result = move(item, lambda count: meter.add(count, current=item.target))
        meter.add(0, files=1)
        return result

    with ThreadPoolExecutor(parallel, thread_name_prefix="transfer") as pool:
        futures = [pool.submit(one, item) for item in items]
        done, unfinished = wait(futures, return_when=FIRST_EXCEPTION)
        if unfinished:
            meter.stop()
            pool.shutdown(cancel_futures=True)
            for future in done:
                future.result()
    return [future.result() for future in futures]
