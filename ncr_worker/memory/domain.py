"""The memory limit that holds for this process, and what counts against it.

The tightest limit of all cgroup v1/v2 ancestors named in /proc/self/cgroup, else the host's memory. Only
anonymous memory counts: page cache is charged to a cgroup too, but the kernel takes it back under pressure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

NO_LIMIT = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63
PAGE = os.sysconf("SC_PAGE_SIZE")
CHILDREN_LISTED = Path("/proc/thread-self/children").exists()  # not by every kernel: CONFIG_PROC_CHILDREN


@dataclass(frozen=True, slots=True)
class Reading:
    """`limit` and `anonymous` in bytes; `source`: cgroup v1, cgroup v2, host or setting."""

    limit: int
    source: str
    anonymous: int


class Domain:
    """`limit`: bytes to assume instead of what the system says; 0: ask the system. `root`: for tests."""

    def __init__(self, limit: int = 0, root: Path = Path("/")) -> None:
        self.fixed = limit
        self.root = root

    def read(self) -> Reading:
        host = self._host()
        found = min([host, *self._groups()], key=lambda reading: reading.limit)
        return Reading(self.fixed, "setting", found.anonymous) if self.fixed else found

    def _host(self) -> Reading:
        fields = _fields(self.root / "proc/meminfo")
        return Reading(fields["MemTotal:"] * 1024, "host", (fields["AnonPages:"] + fields["Shmem:"]) * 1024)

    def _groups(self) -> Iterator[Reading]:
        for line in _lines(self.root / "proc/self/cgroup"):
            controllers, colon, path = line.partition(":")[2].partition(":")
            if colon and not controllers:
                yield from self._ancestors("sys/fs/cgroup", path, "cgroup v2", "memory.max", "anon")
            elif "memory" in controllers.split(","):
                yield from self._ancestors(
                    "sys/fs/cgroup/memory", path, "cgroup v1", "memory.limit_in_bytes", "total_rss"
                )

    def _ancestors(self, mount: str, path: str, source: str, limit_file: str, field: str) -> Iterator[Reading]:
        top = self.root / mount
        folder = top / path.lstrip("/")
        if not folder.is_dir():  # in a container the path is the host's, and the group is mounted at the top
            folder = top
        while True:
            text = next(_lines(folder / limit_file), "max")
            if text.isdecimal() and int(text) < NO_LIMIT:
                yield Reading(int(text), source, _fields(folder / "memory.stat").get(field, 0))
            if folder == top:
                return
            folder = folder.parent


def rss_anon(pid: int) -> int:
    """Anonymous resident bytes of a process; 0 when it is gone."""
    fields = _read(f"/proc/{pid}/statm").split()  # pages; costs a tenth of /proc/PID/status, which has RssAnon by name
    return (int(fields[1]) - int(fields[2])) * PAGE if fields else 0


def tree_anon(pid: int) -> int:
    """Anonymous resident bytes of a process and all its descendants; 0 when it is gone.

    A page that a fork shares with its parent until one of them writes is counted for both.
    """
    return rss_anon(pid) + sum(map(rss_anon, descendants(pid)))


def descendants(pid: int) -> list[int]:
    """Pids of its children, their children and so on, in no particular order; empty when it is gone.

    A process whose parent has ended belongs to init, or a subreaper: it is found no more.
    """
    if not CHILDREN_LISTED:
        try:
            return [child.pid for child in psutil.Process(pid).children(recursive=True)]
        except psutil.Error:
            return []
    found = fresh = {pid}
    while fresh:
        fresh = {child for parent in fresh for child in _children(parent)} - found
        found = found | fresh
    return list(found - {pid})


def _children(pid: int) -> Iterator[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - several times cheaper, 20 times a second
    except OSError:
        return
    for thread in threads:  # each lists those that it has forked itself
        yield from map(int, _read(f"/proc/{pid}/task/{thread}/children").split())


def _read(path: str) -> bytes:
    """Empty when it cannot be read. The kernel hands out long lists by the page, so to the end; pathlib costs twice."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b""))
    except OSError:  # the process, or the group, ended meanwhile
        return b""
    finally:
        os.close(descriptor)


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text(errors="surrogateescape").splitlines()  # names of groups are bytes
    except OSError:
        return


def _fields(path: Path) -> dict[str, int]:
    """`name 123 …` lines of a kernel file."""
    pairs = (line.split() for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdecimal()}
