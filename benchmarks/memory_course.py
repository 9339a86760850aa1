"""How an arm of `make bench-memory` is watched and counted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from memory_group import MemoryGroup

STALL = 20.0  # seconds without a job done after which what is left counts as lost
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
    """Sums what is used and reserved over time, while entered. Bytes, byte-seconds."""

    def __init__(self, used: Callable[[], int], reserved: Callable[[], int]) -> None:
        self.used = self.reserved = 0.0
        self._looks = used, reserved
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter")

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._over.wait(0.1):
            now, (used, reserved) = time.monotonic(), (look() for look in self._looks)
            self.used += used * (now - last)
            self.reserved += reserved * (now - last)
            last = now


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
    """Submit, and watch until all is done or nothing goes on."""
    kills, began = course.group.kernel_kills, time.monotonic()
    latest, known = began, 0
    with Meter(lambda: course.group.anonymous, course.reserved or (lambda: course.group.limit)) as meter:
        course.submit()
        while known < count and time.monotonic() - max(latest, began) < STALL:
            over = course.over()  # asked first: what was done until then is in the file
            done = len(_done(course.effects))
            if done > known:
                known, latest = done, time.monotonic()
                say(known)
            if over:
                break
            time.sleep(0.02)
    if known == count:
        time.sleep(SETTLE)
    done_by = _done(course.effects)
    return Outcome(
        seconds=latest - began,
        kernel_kills=course.group.kernel_kills - kills,
        lost=count - len(done_by),
        duplicated=sum(times > 1 for times in done_by.values()),
        reserved=meter.reserved,
        used=meter.used,
    )


def _done(effects: Path) -> Counter[int]:
    return Counter(map(int, effects.read_text().split())) if effects.exists() else Counter()
