"""Where the kernel keeps the memory groups (cgroups) that a process is in, by what it says in /proc."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Version:
    """The names of one version of cgroups. `limits`: files; `counted`: in memory.stat, with all groups below."""

    source: str
    limits: tuple[str, ...]
    counted: tuple[bytes, ...]


# Shared memory is page cache to the kernel, but no file stands behind it: without swap it stays, as anonymous memory
# does. Above memory.high nothing is killed, but all is slowed until memory is given back: we would stand still.
V1 = Version("cgroup v1", ("memory.limit_in_bytes",), (b"\ntotal_rss ", b"\ntotal_shmem "))
V2 = Version("cgroup v2", ("memory.max", "memory.high"), (b"\nanon ", b"\nshmem "))
USUAL = {V1: (("/", "/sys/fs/cgroup/memory"),), V2: (("/", "/sys/fs/cgroup"),)}
"""Mounts to assume when /proc/self/mountinfo names none, as (group shown at the top, mount point)."""
_OCTAL = re.compile(r"\\([0-7]{3})")


def memory_groups(membership: str, mountinfo: str, root: Path = Path("/")) -> tuple[Version, tuple[Path, ...]]:
    """Folders of the process's own group and of all groups above it, in this order; not all need to exist.

    `membership`, `mountinfo`: the texts of /proc/PID/cgroup and /proc/PID/mountinfo; `root`: what they start from.
    """
    paths = dict(_paths(membership))
    version = V1 if V1 in paths else V2  # a controller is in one hierarchy only, in a hybrid system too
    if version not in paths:
        return version, ()
    mounts = [(top, point) for found, top, point in _mounts(mountinfo) if found is version] or USUAL[version]
    point, below = _place(Path(paths[version]), mounts)
    folder = root / point.lstrip("/")
    return version, tuple(folder.joinpath(*below.parts[:depth]) for depth in range(len(below.parts), -1, -1))


def _paths(membership: str) -> Iterator[tuple[Version, str]]:
    for line in membership.split("\n"):
        controllers, colon, path = line.partition(":")[2].partition(":")
        if colon and not controllers:
            yield V2, path
        elif "memory" in controllers.split(","):
            yield V1, path


def _mounts(mountinfo: str) -> Iterator[tuple[Version, str, str]]:
    for line in mountinfo.split("\n"):
        mount, _, kind = line.partition(" - ")
        fields, named = mount.split(" "), kind.split(" ")  # spaces in names are written \040
        if len(fields) < 5 or len(named) < 3:
            continue
        top, point = (_OCTAL.sub(lambda code: chr(int(code[1], 8)), field) for field in fields[3:5])
        if named[0] == "cgroup2":
            yield V2, top, point
        elif named[0] == "cgroup" and "memory" in named[2].split(","):
            yield V1, top, point


def _place(path: Path, mounts: Sequence[tuple[str, str]]) -> tuple[str, Path]:
    """The mount that shows most of the groups above `path`, and where `path` is below its mount point.

    In a container the path may be the host's, or lead out of the namespace (`/../x`): then its own group is at the top.
    """
    shown = [(top, point) for top, point in mounts if path.is_relative_to(top) and ".." not in path.parts]
    if not shown:
        return mounts[0][1], Path()
    top, point = min(shown, key=lambda mount: len(mount[0]))
    return point, path.relative_to(top)
