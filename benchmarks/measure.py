"""Wall time, CPU time and peak of anonymous memory: of a command with all its descendants, or of one process."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from ncr_worker.memory.domain import rss_anon


@dataclass(frozen=True, slots=True)
class Measured:
    """`seconds` of wall time, `cpu` seconds, `peak` bytes of anonymous memory; `stages`: name -> seconds of each."""

    seconds: float
    cpu: float
    peak: int
    stages: Mapping[str, float] = field(default_factory=dict)


def middle(rounds: Sequence[Measured]) -> Measured:
    """The median of each figure by itself."""
    return Measured(
        median(each.seconds for each in rounds),
        median(each.cpu for each in rounds),
        int(median(each.peak for each in rounds)),
        {name: median(each.stages[name] for each in rounds) for name in rounds[0].stages},
    )


class BenchmarkFailed(Exception):
    """An arm did not do its work; its output is in the message."""


class Peak:
    """`bytes`: the most that `look()` has seen."""

    def __init__(self) -> None:
        self.bytes = 0


@contextmanager
def repeated(work: Callable[[], object], pause: Callable[[], float]) -> Iterator[None]:
    """While inside, `work` is done again and again in a thread of its own, each time after so many seconds."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(pause()):
            work()

    thread = threading.Thread(target=run, name=work.__qualname__)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def sampled(look: Callable[[], int], every: float) -> Iterator[Peak]:
    """While inside, `look()` is called every so many seconds."""
    peak = Peak()

    def sample() -> None:
        peak.bytes = max(peak.bytes, look())

    with repeated(sample, lambda: every):
        yield peak
    sample()


def run(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Measured:
    """Run a command to its end. Its last line must be JSON: stage -> seconds. Raises BenchmarkFailed."""
    with (folder / "output").open("w+") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            command, env=os.environ | environment, cwd=folder, stdout=output, stderr=subprocess.STDOUT
        )
        with sampled(lambda: _family_anon(process.pid), 0.05) as peak:
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
    if process.returncode:
        raise BenchmarkFailed(f"{command[0]} ended with status {process.returncode}:\n{said[-2000:]}")
    stages: dict[str, Any] = json.loads(said.splitlines()[-1])
    return Measured(seconds, usage.ru_utime + usage.ru_stime, peak.bytes, stages)


def _family_anon(pid: int) -> int:
    with suppress(psutil.Error):
        leader = psutil.Process(pid)
        return sum(rss_anon(member.pid) for member in (leader, *leader.children(recursive=True)))
    return 0


def cpu_seconds(pid: int) -> float:
    """CPU time of one process so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
