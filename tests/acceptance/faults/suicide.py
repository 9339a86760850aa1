"""Kills its own process, every time."""

from __future__ import annotations

import os
import signal

from faults.counter import Counter, CounterArgs
from faults.gate import count
from ncr_worker.pipeline import MIB, Pipeline, Run, stage


@stage()
def jump(run: Run, parcel: Counter) -> Counter:
    count(run.job.ref, str(os.getpid()))
    os.kill(os.getpid(), signal.SIGKILL)
    return parcel


ATTEMPTS = 3
PIPELINE = Pipeline("suicide", CounterArgs, Counter, (jump,), memory=8 * MIB, attempts=ATTEMPTS)
