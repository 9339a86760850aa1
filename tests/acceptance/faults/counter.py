"""Adds a line to a file each time it runs, so that nothing that runs twice stays unseen."""

from __future__ import annotations

import os
import time

from faults.gate import count, deaf, pause
from ncr_worker.pipeline import MIB, Args, Parcel, Pipeline, Run, stage


class CounterArgs(Args):
    """`seconds`: how long it works. It does not listen to orders meanwhile."""

    name: str
    seconds: float = 0.0

    @property
    def ref(self) -> str:
        return self.name


class Counter(Parcel):
    args: CounterArgs


@stage()
def work(run: Run, parcel: Counter) -> Counter:
    count(run.job.ref, str(os.getpid()))
    time.sleep(parcel.args.seconds)
    for place in ("work", f"work.{run.settings.host}"):
        pause(run.job.ref, place, deaf)
    return parcel


PIPELINE = Pipeline("counter", CounterArgs, Counter, (work,), memory=8 * MIB)
