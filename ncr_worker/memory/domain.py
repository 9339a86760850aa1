"""The memory limit that holds for this process, and what counts against it.

The tightest limit of all memory groups (cgroup v1 or v2) that this process is in, else the host's memory. Only memory
that the kernel cannot take back counts: page cache is charged to a group too, but goes when room is needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from ncr_worker.memory.groups import V2, memory_groups

NO_LIMIT = 1 << 60  # cgroup v1 writes "no limit" as a number near 2**63
_THREADS = 17  # their number's place in /proc/PID/stat, after the name
PAGE = os.sysconf("SC_PAGE_SIZE")
CHILDREN_LISTED = Path("/proc/thread-self/children").exists()  # not by every kernel: CONFIG_PROC_CHILDREN
MEMINFO = (b"\nMemTotal:", b"\nAnonPages:", b"\nShmem:", b"\nSwapTotal:", b"\nSwapFree:")
_SOME = re.compile(rb"some avg10=(\d{1,3}\.\d\d) ")


@dataclass(frozen=True, slots=True)
class Reading:
    """`limit`, `anonymous` and `swap` in bytes; `source`: cgroup v1, cgroup v2, host or setting.

    `limit - anonymous` can still be had. `swap`: what was moved to disk, and is no longer in `anonymous`.
    `pressure`: percent of the last ten seconds in which some task waited for memory, in the group where the kernel
    measures it there (v2), else on the host; None where it does not measure it.
    """

    limit: int
    source: str
    anonymous: int
    swap: int = 0
    pressure: float | None = None


class Domain:
    """`limit`: bytes to assume instead of what the system says; 0: ask the system. `root`: for tests."""

    def __init__(self, limit: int = 0, root: Path = Path("/")) -> None:
        self.fixed = limit
        self.root = root
        self._proc = os.fspath(root / "proc")
        self._membership: bytes | None = None
        self._version = V2
        self._found: tuple[str, ...] = ()

    def read(self) -> Reading:
        """How it is now: limits change, and processes are moved, while they run. Raises OSError without meminfo."""
        host = self._host()
        levels = [host, *self._groups(host.pressure)]
        tightest = min(levels, key=lambda level: level.limit)
        limit = min(self.fixed or tightest.limit, tightest.limit)
        # What others took of a wider limit above is missing here too. It counts as used, instead of that limit being
        # the answer: a job that is larger than the tightest limit never fits, whatever the others do.
        short = limit - min(level.limit - level.anonymous for level in levels)
        found = replace(tightest, anonymous=max(tightest.anonymous, short))
        return replace(found, limit=self.fixed, source="setting") if self.fixed else found

    def _host(self) -> Reading:
        text = b"\n" + _read(f"{self._proc}/meminfo")
        total, anonymous, shared, swap, free = (_field(text, key) * 1024 for key in MEMINFO)
        if not total:
            raise OSError(f"{self._proc}/meminfo does not tell MemTotal")
        return Reading(total, "host", anonymous + shared, max(swap - free, 0), _some(f"{self._proc}/pressure/memory"))

    def _groups(self, of_host: float | None) -> Iterator[Reading]:
        """Those with a limit, the own one first."""
        for folder in self._folders():
            limit = min(_limit(_number(_read(f"{folder}/{name}"))) for name in self._version.limits)
            own = folder is self._found[0]
            if limit == NO_LIMIT and not own:
                continue
            text = b"\n" + _read(f"{folder}/memory.stat")
            counted = sum(_field(text, key) for key in self._version.counted)
            if self._version is V2:
                swap, pressure = _number(_read(f"{folder}/memory.swap.current")), _some(f"{folder}/memory.pressure")
            else:
                swap, pressure = _field(text, b"\ntotal_swap "), None
                if own:  # what holds from above is told here, be it out of sight
                    limit = min(limit, _limit(_field(text, b"\nhierarchical_memory_limit ")))
            if limit < NO_LIMIT:
                yield Reading(limit, self._version.source, counted, swap, of_host if pressure is None else pressure)

    def _folders(self) -> tuple[str, ...]:
        membership = _read(f"{self._proc}/self/cgroup")
        if membership != self._membership:
            mountinfo = _read(f"{self._proc}/self/mountinfo", paged=True)
            self._version, found = memory_groups(os.fsdecode(membership), os.fsdecode(mountinfo), self.root)
            self._found = tuple(os.fspath(folder) for folder in found if os.path.lexists(folder))
            self._membership = membership
        return self._found


def rss_anon(pid: int) -> int:
    """Anonymous resident bytes of a process; 0 when it is gone."""
    fields = _read(f"/proc/{pid}/statm").split()  # pages; costs a tenth of /proc/PID/status, which has RssAnon by name
    return (int(fields[1]) - int(fields[2])) * PAGE if fields else 0


def is_ending(pid: int) -> bool:
    """Whether the process has let go of its memory, and the kernel has not taken back all of it yet."""
    if rss_anon(pid):
        return False
    status = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if not status or status[0] == b"X":
        return False
    # The other threads of a zombie hold its memory until they have ended too.
    return status[0] != b"Z" or int(status[_THREADS]) > 1


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
        fresh = {child for parent in fresh for child in children(parent)} - found
        found = found | fresh
    return list(found - {pid})


def children(pid: int) -> Iterator[int]:
    """Pids of the processes that it has forked itself and that live."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - several times cheaper, 20 times a second
    except OSError:
        return
    for thread in threads:  # each lists those that it has forked itself
        yield from map(int, _read(f"/proc/{pid}/task/{thread}/children", paged=True).split())


def _read(path: str, *, paged: bool = False) -> bytes:
    """Empty when it cannot be read. `paged`: a list, of which the kernel hands out a page at a time.

    It is called hundreds of times a second, and pathlib takes twice as long.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        text = part = os.read(descriptor, 1 << 14)
        while paged and part:
            part = os.read(descriptor, 1 << 14)
            text += part
        return text
    except OSError:  # the process, or the group, ended meanwhile
        return b""
    finally:
        os.close(descriptor)


def _field(text: bytes, key: bytes) -> int:
    """The number that follows `key`, which begins with the end of the line before; 0 when there is none."""
    start = text.find(key) + len(key)
    words = text[start : start + 40].split(maxsplit=1) if start >= len(key) else ()
    return _number(words[0]) if words else 0


def _number(text: bytes) -> int:
    digits = text.strip()
    return int(digits) if digits.isdigit() and len(digits) < 20 else 0


def _limit(number: int) -> int:
    return min(number or NO_LIMIT, NO_LIMIT)


def _some(path: str) -> float | None:
    """The first average of a file of pressure stall information."""
    found = _SOME.match(_read(path))
    return float(found[1]) if found else None
