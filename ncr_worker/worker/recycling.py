"""When a pool child is renewed: after its kind's number of jobs, or when it keeps memory that no job uses.

The child leaves through the pool's own path: after each task billiard asks `mem_rss()` and ends the child, in
an orderly way, when that is above `max_memory_per_child`. We answer that question: Celery's own answer is the
lifetime peak, which would end a child for one honest big job and never for a slow leak below the limit.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os

import billiard.pool

from ncr_worker.memory.domain import rss_anon

log = logging.getLogger(__name__)

CRUMBS = 4 << 20  # bytes that a job may leave without anybody looking after them: giving back takes some milliseconds
STAY, LEAVE = 1, 2
POOL_LIMIT = STAY  # Celery's worker_max_memory_per_child: any answer above it ends the child


class Recycling:
    """One for each pool child, made after the fork. `retained_limit`: bytes above the post-fork baseline."""

    def __init__(self, retained_limit: int) -> None:
        self.retained_limit = retained_limit
        self.jobs: dict[str, int] = {}
        self._libc = ctypes.CDLL(None)
        self._trim()  # or what the parent had freed before the fork would later look like memory given back
        self.baseline = rss_anon(os.getpid())
        self._kept = 0  # bytes above the baseline that could not be given back last time
        if not hasattr(billiard.pool, "mem_rss"):
            raise RuntimeError("billiard no longer asks mem_rss() after a task: see worker/recycling.py")
        billiard.pool.mem_rss = lambda: STAY

    def after(self, kind: str, most: int | None) -> None:
        """Call when a job of `kind` has ended; `most`: jobs of this kind after which the child is renewed."""
        self.jobs[kind] = self.jobs.get(kind, 0) + 1
        if most is not None and self.jobs[kind] >= most:
            self._leave(f"{self.jobs[kind]} jobs of {kind}")
        elif (retained := self.retained()) > self.retained_limit:
            self._leave(f"it retains {retained // 1024:,} KB")

    def retained(self) -> int:
        """Bytes kept above the baseline; what Python and malloc can give back is given back: other jobs may need it."""
        kept = rss_anon(os.getpid()) - self.baseline
        if kept > self._kept + CRUMBS:
            gc.collect()
            self._trim()
            self._kept = kept = rss_anon(os.getpid()) - self.baseline
        return kept

    def _trim(self) -> None:
        if hasattr(self._libc, "malloc_trim"):
            self._libc.malloc_trim(0)

    def _leave(self, why: str) -> None:
        log.info("renewing pool child %d: %s", os.getpid(), why)
        billiard.pool.mem_rss = lambda: LEAVE  # type: ignore[attr-defined]
