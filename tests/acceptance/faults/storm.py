"""Touches more and more memory for a moment, perhaps more than it has said, and leaves a line in a file."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

from ncr_worker.pipeline import MIB, Args, Parcel, Pipeline, Run, stage

EFFECTS = "STORM_EFFECTS"
"""Environment variable: the file that gets a line, the job's number, for each time a job has done its work."""


class StormArgs(Args):
    """`need`: bytes that it says it touches; `touch`: bytes that it does touch; `seconds`: how long it takes for that.

    `deaf`: it does not listen to orders meanwhile.
    """

    name: str
    need: int
    touch: int
    seconds: float = 0.0
    deaf: bool = False

    @property
    def ref(self) -> str:
        return self.name


class Storm(Parcel):
    args: StormArgs


@stage(memory=lambda parcel: parcel.args.need)
def touch(run: Run, parcel: Storm) -> Storm:
    args = parcel.args
    page, pause = bytes(MIB), args.seconds * MIB / args.touch
    with mmap.mmap(-1, args.touch, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)  # the storm is to load the engine, not the kernel's page faults
        for start in range(0, args.touch, MIB):
            memory[start : start + MIB] = page[: args.touch - start]
            if not args.deaf:
                run.advance(bytes=start, total_bytes=args.touch)
            time.sleep(pause)
    run.confirm_ownership()
    fd = os.open(Path(os.environ[EFFECTS]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(fd, f"{run.job.number}\n".encode())
    finally:
        os.close(fd)
    return parcel


PIPELINE = Pipeline("storm", StormArgs, Storm, (touch,), memory=64 * MIB, attempts=8)
