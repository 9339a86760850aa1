"""How an arm of `make bench-memory` is watched and counted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from measure import repeated
from memory_group import MemoryGroup

STALL = 20.0  # seconds without a job done after which what is left counts as lost
CALM = 1.0  # ... after which it is asked whether there is anything left to do
SETTLE = 1.0  # seconds in which a job that is done twice shows up


@dataclass(frozen=True, slots=True)
class Outcome:
    """`seconds`: from the first submit to the last job done. `reserved`, `used`: byte-seconds. `lost`: jobs never done;
    `duplicated`: done more than once."""

    seconds: float
    kernel_kills: int
    lost: int
    duplicated: int
    reserved: float
    used: float


class Meter:
    """Sums over time what is `used` and `reserved`: byte-seconds. `looks`: at both, in bytes."""

    def __init__(self, *looks: Callable[[], int]) -> None:
        self.used = self.reserved = 0.0
        self._looks = looks
        self._last = time.monotonic()

    def read(self) -> None:
        used, reserved = (look() for look in self._looks)
        now = time.monotonic()
        self.used += used * (now - self._last)
        self.reserved += reserved * (now - self._last)
        self._last = now


@dataclass(frozen=True, slots=True)
class Course:
    """How an arm is watched. `over`: whether nothing can be done any more. `reserved`: bytes now; None: all of it."""

    group: MemoryGroup
    effects: Path
    submit: Callable[[], None]
    over: Callable[[], bool] = lambda: False
    reserved: Callable[[], int] | None = None


Say = Callable[[int], None]
"""Told how many jobs are done."""


def follow(course: Course, count: int, say: Say) -> Outcome:
    """Submit, and watch until all is done or nothing goes on. What is used after the last job counts no more."""
    kills, began = course.group.kernel_kills, time.monotonic()
    known, used, reserved = 0, 0.0, 0.0
    meter = Meter(lambda: course.group.anonymous, course.reserved or (lambda: course.group.limit))
    with repeated(meter.read, lambda: 0.1):
        course.submit()
        last = time.monotonic()
        while known < count and (idle := time.monotonic() - last) < STALL:
            over = idle > CALM and course.over()  # asked first: what was done until then is in the file
            done = len(_done(course.effects))
            if done > known:
                known, last, used, reserved = done, time.monotonic(), meter.used, meter.reserved
                say(known)
            elif over:
                break
            time.sleep(0.02)
        if known == count:
            time.sleep(SETTLE)
    times = _done(course.effects)
    return Outcome(
        seconds=last - began if known else 0.0,
        kernel_kills=course.group.kernel_kills - kills,
        lost=count - len(times),
        duplicated=sum(often > 1 for often in times.values()),
        reserved=reserved,
        used=used,
    )


def _done(effects: Path) -> Counter[int]:
    return Counter(map(int, effects.read_text().split())) if effects.exists() else Counter()
