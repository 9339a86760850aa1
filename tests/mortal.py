"""A pipeline for real workers: a job that is fatal kills the process of its first attempt."""

from __future__ import annotations

import os
import signal

from ncr_worker.pipeline import MIB, Args, Parcel, Pipeline, Run, stage


class MortalArgs(Args):
    name: str
    fatal: bool = False

    @property
    def ref(self) -> str:
        return self.name


class Mortal(Parcel):
    args: MortalArgs


@stage()
def begin(run: Run, parcel: Mortal) -> Mortal:
    return parcel


@stage()
def end(run: Run, parcel: Mortal) -> Mortal:
    if parcel.args.fatal and run.job.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return parcel


PIPELINE = Pipeline("mortal", MortalArgs, Mortal, (begin, end), memory=8 * MIB)
