"""Goes back to the queue with its work kept: it yields for memory, and its last stage fails at first."""

from __future__ import annotations

from faults.counter import Counter, CounterArgs
from faults.gate import count
from faults.large import HOST
from ncr_worker.errors import Transient
from ncr_worker.pipeline import MIB, Pipeline, Run, stage

FAILURES = 2


@stage()
def look(_run: Run, parcel: Counter) -> Counter:
    return parcel


# There is never so much beside another job.
@stage(memory=lambda _parcel: HOST * 9 // 10)
def grow(_run: Run, parcel: Counter) -> Counter:
    return parcel


@stage(attempts=1)
def send(run: Run, parcel: Counter) -> Counter:
    count(run.job.ref, str(run.job.attempt))
    if run.job.attempt <= FAILURES:
        raise Transient("the other side is busy", code="busy")
    return parcel


PIPELINE = Pipeline("wavering", CounterArgs, Counter, (look, grow, send), memory=8 * MIB, words={"send": "uploading"})
