"""The work of `make bench-memory`, the same in every arm. Needs nothing but Python: Dask's workers import it too."""

from __future__ import annotations

import csv
import mmap
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20
PAGE = 4096
TABLE = "table"
"""The kind of job that parses CSV; all others touch as many pages as a task of a trace had."""
ATTEMPTS = 5
"""How often a job may be begun, in every arm."""
EFFECTS = "STORM_EFFECTS"
"""Environment variable: the file that gets a line, the job's number, for each time a job has done its work."""
CSV = "BENCH_CSV"
"""Environment variable: the CSV file of which table jobs read the head."""


@dataclass(frozen=True, slots=True)
class Work:
    """One job. `input_bytes`: known before it starts. `peak`: bytes that it takes, known to nobody but the oracle.
    `declared`: bytes that its kind asks for. `seconds`: how long it takes at least."""

    number: int
    kind: str
    input_bytes: int | None
    peak: int
    seconds: float
    declared: int

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def do(work: Mapping[str, Any], step: Callable[[], object] = lambda: None) -> None:
    """Take the memory, hold it, leave a line. `work`: the fields of a Work. `step`: called again and again."""
    ends = time.monotonic() + work["seconds"]
    if work["kind"] == TABLE:
        tabulate(Path(os.environ[CSV]), work["input_bytes"])
        step()
        time.sleep(max(ends - time.monotonic(), 0))
    else:
        _touch(work["peak"], work["seconds"], ends, step)
    fd = os.open(os.environ[EFFECTS], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(fd, f"{work['number']}\n".encode())
    finally:
        os.close(fd)


def _touch(size: int, seconds: float, ends: float, step: Callable[[], object]) -> None:
    """Pages are touched evenly over the first half of the time, then all of them are held."""
    mark, pause = bytes(MIB // PAGE), seconds / 2 * MIB / size
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)  # what is measured is who gets memory, not the kernel's page faults
        due = time.monotonic()
        for start in range(0, size, MIB):
            memory[start : start + MIB : PAGE] = mark[: -(-(size - start) // PAGE)]
            step()
            due += pause
            time.sleep(max(due - time.monotonic(), 0))
        time.sleep(max(ends - time.monotonic(), 0))


def tabulate(path: Path, size: int) -> dict[str, int]:
    """Totals by name over the first `size` bytes of a CSV file, all rows held at once. Bytes of Python objects per
    byte of input: about ten."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file.read(size).splitlines()[:-1]))
    rows.sort(key=lambda row: row[1])
    totals: dict[str, int] = defaultdict(int)
    for row in rows:
        totals[row[1]] += int(row[3])
    return totals


def write_table(path: Path, size: int) -> None:
    """A CSV file of at least `size` bytes, the same at each call."""
    dice = random.Random(size)
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        while file.tell() < size:
            lines.writerows(
                (dice.randrange(1 << 30), f"name-{dice.randrange(5000)}", "2026-11-22", dice.randrange(1000), "unit")
                for _ in range(1000)
            )


def table_peak(path: Path, size: int) -> int:
    """Bytes that `tabulate` takes. To be called once in a fresh process: it is the growth of its peak."""
    before = _high_water()
    tabulate(path, size)
    return _high_water() - before


def _high_water() -> int:
    """Bytes. That of getrusage would begin with what the parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
