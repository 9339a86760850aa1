"""Starts many processes that outlast their stage; nothing but the engine ends them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from ncr_worker.pipeline import MIB, Args, Parcel, Pipeline, Run, stage


class SwarmArgs(Args):
    """`count` processes that touch `each` bytes. Each run adds theirs to the file `pids`; they live until they are
    ended. `away`: each in a session of its own."""

    name: str
    pids: Path
    count: int = 100
    each: int = 0
    away: bool = False

    @property
    def ref(self) -> str:
        return self.name


class Swarm(Parcel):
    args: SwarmArgs


BEE = """
import os, signal, sys
held = b"x" * int(sys.argv[2])
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(fd, f"{os.getpid()}\\n".encode())
signal.pause()
"""


@stage()
def swarm(run: Run, parcel: Swarm) -> Swarm:
    args = parcel.args
    command = [sys.executable, "-ISc", BEE, str(args.pids), str(args.each)]
    args.pids.touch()
    earlier = number_of(args.pids)
    for number in range(args.count):
        subprocess.Popen(command, start_new_session=args.away)
        run.advance(files=number, total_files=args.count)
    while number_of(args.pids) < earlier + args.count:
        run.advance()
        time.sleep(0.01)
    return parcel


def number_of(pids: Path) -> int:
    return len(pids.read_text().split())


PIPELINE = Pipeline("swarm", SwarmArgs, Swarm, (swarm,), memory=64 * MIB, attempts=3)
