"""A memory group of the kernel's own, so that a test can give a worker a small host. Needs root."""

from __future__ import annotations

import os
import secrets
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ncr_worker.errors import NcrError

PATIENCE = 10.0
"""Seconds until the last process of a group that is removed has gone."""


class NoMemoryGroup(NcrError):
    """This machine lets us make none; the message says why."""

    code = "no_memory_group"


class MemoryGroup(ABC):
    """`limit`: bytes for all processes in it together."""

    LIMIT: str
    PEAK: str
    EVENTS: str
    ANONYMOUS: str

    def __init__(self, parent: Path, limit: int) -> None:
        self.limit = limit
        self.folder = parent / f"ncr-{secrets.token_hex(4)}"
        self.folder.mkdir()
        (self.folder / self.LIMIT).write_text(str(limit))

    @classmethod
    @abstractmethod
    def parent(cls) -> Path:
        """The group below which a new one is made. Raises NoMemoryGroup."""

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command that runs in this group from its first page on, under the pid of whoever starts it."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"), *command]

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]

    @property
    def kernel_kills(self) -> int:
        """Processes of it that the kernel has ended for want of memory."""
        return self._field(self.EVENTS, "oom_kill")

    @property
    def anonymous(self) -> int:
        """Bytes of anonymous memory now: what the kernel cannot take back."""
        return self._field("memory.stat", self.ANONYMOUS)

    @property
    def peak(self) -> int:
        """Most bytes ever charged, page cache included."""
        return int((self.folder / self.PEAK).read_text())

    def remove(self) -> None:
        """Ends what is left in it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            for pid in self.pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                self.folder.rmdir()
            except OSError:  # somebody is still leaving
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

    def _field(self, file: str, name: str) -> int:
        lines = (self.folder / file).read_text().splitlines()
        return next(int(value) for key, value in map(str.split, lines) if key == name)


class Version1(MemoryGroup):
    LIMIT, PEAK, EVENTS = "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"
    ANONYMOUS = "total_rss"

    @classmethod
    def parent(cls) -> Path:
        for mount, options in _mounts("cgroup"):
            if "memory" in options:
                return mount
        raise NoMemoryGroup("the v1 memory controller is not mounted")


class Version2(MemoryGroup):
    LIMIT, PEAK, EVENTS, ANONYMOUS = "memory.max", "memory.peak", "memory.events", "anon"

    @classmethod
    def parent(cls) -> Path:
        for mount, _ in _mounts("cgroup2"):
            if "memory" in (mount / "cgroup.controllers").read_text().split():
                handed_down = mount / "cgroup.subtree_control"
                if "memory" not in handed_down.read_text().split():
                    handed_down.write_text("+memory")
                return mount
        raise NoMemoryGroup("the v2 memory controller is not mounted")


@contextmanager
def memory_group(limit: int) -> Iterator[MemoryGroup]:
    """A new group of `limit` bytes below the topmost one, v2 or v1; removed at the end. Raises NoMemoryGroup."""
    group = _make(limit)
    try:
        yield group
    finally:
        group.remove()


def _make(limit: int) -> MemoryGroup:
    reasons = []
    for version in (Version2, Version1):
        try:
            return version(version.parent(), limit)
        except (NoMemoryGroup, OSError) as error:
            reasons.append(str(error))
    raise NoMemoryGroup(f"no memory group can be made here, root is needed: {'; '.join(reasons)}")


def _mounts(kind: str) -> Iterator[tuple[Path, list[str]]]:
    """(where, options) of each mounted hierarchy of this kind."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, found, options, *_ = line.split()
        if found == kind:
            yield Path(where), options.split(",")
