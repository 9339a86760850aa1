"""Which jobs `make bench-memory` runs: tasks of a trace, made small, and jobs that parse CSV. Pure."""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from memory_trace import Task, Trace
from memory_work import MIB, TABLE, Work

SMALLER = 20  # times less memory than in the trace
SHORTEST, LONGEST, MEAN = 0.2, 5.0, 0.7  # seconds; touching 1 GiB alone takes a core a quarter of one
KINDS = 8  # of a trace, in one mix
TABLES = 10  # one job of so many parses CSV
TABLE_BYTES = (MIB // 2, 6 * MIB)
TABLE_DECLARED = 512 * MIB
GB = 10**9
_SHAPES = (  # kind, least and most GB of input, GB of memory for no input, GB for a GB, spread, seconds, preset GB
    ("count", (0.1, 8.0), 0.02, 0.0, 0.05, 30.0, 4.0),
    ("quality", (0.1, 8.0), 0.9, 0.06, 0.1, 120.0, 8.0),
    ("trim", (0.1, 8.0), 0.4, 0.5, 0.15, 400.0, 16.0),
    ("sort", (0.05, 6.0), 0.2, 0.9, 0.1, 150.0, 12.0),
    ("mark", (0.05, 6.0), 4.0, 2.5, 0.25, 350.0, 24.0),
    ("align", (0.1, 8.0), 30.0, 0.3, 0.01, 900.0, 48.0),
)


def mix(trace: Trace, seed: int, count: int, table_ratio: float, most: int) -> list[Work]:
    """`count` jobs, fewer of a short trace: tasks of some of its kinds, in their order, and table jobs among them.

    `table_ratio`: bytes of memory a table job takes for each byte of input. `most`: bytes above which nothing is asked.
    """
    dice = random.Random(seed)
    tasks = _drawn(trace.tasks, dice, count - count // TABLES)
    tables = set(dice.sample(range(len(tasks) + count // TABLES), count // TABLES))
    replayed = iter(tasks)
    return _timed(
        [
            _table(number, dice, table_ratio)
            if number in tables
            else _replayed(number, trace.name, next(replayed), most)
            for number in range(len(tasks) + len(tables))
        ]
    )


def _drawn(tasks: Sequence[Task], dice: random.Random, count: int) -> list[Task]:
    """Tasks of at most KINDS kinds. The more memory a kind holds, and the longer, the likelier it is: where there is
    enough for everybody, nothing has to be decided."""
    held: dict[str, float] = defaultdict(float)
    for task in tasks:
        held[task.kind] += task.peak * task.seconds
    # The largest of u ** (1 / weight) are a weighted draw without repeats (Efraimidis and Spirakis).
    keys = {kind: math.log(1 - dice.random()) / max(weight, 1.0) for kind, weight in held.items()}
    kinds = set(sorted(keys, key=lambda kind: keys[kind])[-KINDS:])
    those = [place for place, task in enumerate(tasks) if task.kind in kinds]
    return [tasks[place] for place in sorted(dice.sample(those, min(count, len(those))))]


def _table(number: int, dice: random.Random, ratio: float) -> Work:
    size = dice.randint(*TABLE_BYTES)
    return Work(number, TABLE, size, int(size * ratio), 0.0, TABLE_DECLARED)


def _replayed(number: int, trace: str, task: Task, most: int) -> Work:
    kind = re.sub(r"\W+", "_", f"{trace}_{task.kind}").lower()
    peak, declared = max(task.peak // SMALLER, MIB), min(max(task.preset // SMALLER, MIB), most)
    return Work(number, kind, task.input_bytes, peak, task.seconds, declared)


def _timed(jobs: Sequence[Work]) -> list[Work]:
    """Scaled by one factor, then none is too short or too long, so that they last MEAN seconds on average."""
    low, high = 0.0, LONGEST / min((job.seconds for job in jobs if job.seconds), default=LONGEST)
    for _ in range(60):
        factor = (low + high) / 2
        if sum(_clamped(job.seconds * factor) for job in jobs) > MEAN * len(jobs):
            high = factor
        else:
            low = factor
    return [replace(job, seconds=round(_clamped(job.seconds * high), 3)) for job in jobs]


def _clamped(seconds: float) -> float:
    return min(max(seconds, SHORTEST), LONGEST)


def synthetic(seed: int, count: int) -> Trace:
    """A trace of the shape that real ones have: few kinds, most of them small, need and time grow with the input."""
    dice = random.Random(seed)
    tasks = list[Task]()
    for number in range(count):
        kind, (least, largest), base, slope, spread, seconds, preset = dice.choice(_SHAPES)
        given = least * (largest / least) ** dice.random()
        peak = (base + slope * given) * dice.uniform(1 - spread, 1 + spread)
        lasts = seconds * given / largest * dice.lognormvariate(0, 0.5)
        tasks.append(Task(number, kind, int(given * GB), int(peak * GB), lasts, int(preset * GB)))
    return Trace("synthetic", tasks)
