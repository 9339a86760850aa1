"""Deliveries by our worker, the plain way and a shell pipeline, on the same servers.

`make bench-delivery [QUICK=1] [ROUNDS=n]`.
Read ratios, not digits: the figures depend on the machine. README.md tells what is measured and how.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from arms import OurWorker, plain, shell
from dataset import Dataset, store
from machine import facts, tool
from measure import Measured, middle
from receiver import Receiver
from rich.console import Console
from rich.table import Table
from services import OpenSSH
from sftp_alone import sftp_alone

from ncr_worker.app import App
from ncr_worker.ledger import schema
from ncr_worker.pipeline import MIB
from ncr_worker.sandbox.own import Worker
from ncr_worker.sandbox.s3 import S3
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings

STAGES = ("fetch", "pack", "validate", "upload")
FIRST = Dataset("first", 4, MIB)
Deliver = Callable[[Dataset], Measured]


@dataclass(frozen=True, slots=True)
class Scale:
    small: Dataset
    medium: Dataset
    big: Dataset
    rounds: int


FULL = Scale(Dataset("small", 200, MIB), Dataset("medium", 1, 200 * MIB), Dataset("big", 1, 1024 * MIB), 3)
QUICK = Scale(Dataset("small", 40, MIB), Dataset("medium", 1, 32 * MIB), Dataset("big", 1, 128 * MIB), 1)


@dataclass(frozen=True, slots=True)
class Bench:
    """Servers and our worker, running. `environment`: settings for all arms."""

    ours: OurWorker
    openssh: OpenSSH
    environment: Mapping[str, str]
    seed: Callable[[Dataset], None]


@contextmanager
def running(folder: Path) -> Iterator[Bench]:
    with ExitStack() as resources:
        valkey, s3, validator = Valkey(folder / "valkey"), S3(folder / "s3"), Receiver(folder / "receiver")
        openssh = OpenSSH(folder / "openssh")
        environment = {
            "DATABASE_URL": f"sqlite:///{folder / 'ncr.sqlite3'}",
            "WORK_FOLDER": str(folder / "work"),
            "HOST_ID": "benchmark",
            "CELERY_WORKER_CONCURRENCY": "1",
            "VALIDATOR_TIMEOUT": "600",
            "LOG_LEVEL": "WARNING",
            "CELERY_BROKER_URL": "",
        }
        for server in (valkey, s3, validator, openssh):
            resources.enter_context(server)
            environment |= server.env()
        settings = Settings.model_validate({name.lower(): value for name, value in environment.items()})
        app = App(settings)
        resources.callback(app.close)
        schema.upgrade(app.database)
        worker = Worker(folder / "worker", environment, lambda: bool(app.ledger.hosts.live()))
        resources.enter_context(worker)
        bench_tools = os.pathsep.join([*(str(Path(tools).resolve()) for tools in sys.argv[1:]), os.environ["PATH"]])
        yield Bench(
            OurWorker(app, worker, openssh),
            openssh,
            environment | {"PATH": bench_tools},
            lambda dataset: store(dataset, s3, app.database),
        )


def compare(bench: Bench, dataset: Dataset, rounds: int, say: Console) -> dict[str, Measured]:
    """Arm -> its medians. Rounds of all arms are interleaved, so that a busy moment hits each of them.

    The first round is not counted: a virtual machine gets memory that it has never used slowly, each arm its own part.
    """
    bench.seed(dataset)
    arms: dict[str, Deliver] = {"ours": bench.ours.deliver, "plain": plain(bench.environment, bench.openssh).deliver}
    if script := shell(bench.environment, bench.openssh):
        arms["shell"] = script.deliver
    else:
        say.print("shell: skipped, as s5cmd, zip, curl or sftp is missing", style="yellow")
    found: dict[str, list[Measured]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, deliver in arms.items():
            os.sync()  # what an earlier arm wrote must not be written out in this one's time
            measured = deliver(dataset)
            found[name].append(measured)
            which = f"round {number}" if number else "first, not counted"
            say.print(f"  {dataset.title}, {which}: {name} {measured.seconds:.2f} s", style="bright_black")
    return {name: middle(measured[1:]) for name, measured in found.items()}


def table(dataset: Dataset, found: Mapping[str, Measured]) -> Table:
    shown = Table(title=dataset.title, title_justify="left")
    for heading in ("", "wall s", "CPU s", "peak MiB", *(f"{stage} s" for stage in STAGES), "ours is faster"):
        shown.add_column(heading, justify="right" if heading else "left")
    for name, measured in found.items():
        shown.add_row(
            name,
            f"{measured.seconds:.2f}",
            f"{measured.cpu:.2f}",
            f"{measured.peak / MIB:.0f}",
            *(f"{measured.stages.get(stage, 0):.2f}" for stage in STAGES),
            f"{measured.seconds / found['ours'].seconds:.2f}x",
        )
    return shown


def summary(found: Mapping[str, Measured]) -> dict[str, float | None]:
    shell_s = round(found["shell"].seconds, 3) if "shell" in found else None
    return {
        "ours_s": round(found["ours"].seconds, 3),
        "plain_s": round(found["plain"].seconds, 3),
        "shell_s": shell_s,
        "ours_peak_mib_above_idle": round(found["ours"].peak / MIB, 1),
    }


def show_machine(say: Console, environment: Mapping[str, str]) -> None:
    os.environ["PATH"] = environment["PATH"]
    tools = (("s5cmd", "version"), ("zip", "-v"), ("curl", "--version"), ("ssh", "-V"))
    for what, which in [*facts(), *((name, tool(name, option)) for name, option in tools)]:
        say.print(f"{what}: {which}", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    scale = QUICK if os.environ.get("QUICK") else FULL
    say = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="ncr-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # OpenSSH runs as another account
        with running(folder) as bench:
            show_machine(say, bench.environment)
            bench.seed(FIRST)
            bench.ours.warm_up(FIRST)
            say.print(f"our pool child after its first small job: {bench.ours.idle / MIB:.0f} MiB")
            rounds = int(os.environ.get("ROUNDS") or scale.rounds)
            small = compare(bench, scale.small, rounds, say)
            big = compare(bench, scale.big, rounds, say)
            medium = _ours_alone(bench, scale.medium, rounds)
            alone = sftp_alone(bench.openssh, scale.big.size, rounds)
    for dataset, found in ((scale.small, small), (scale.big, big)):
        say.print(table(dataset, found))
    growth = (big["ours"].peak - medium.peak) / MIB
    say.print(f"our peak for {scale.medium.title} is {medium.peak / MIB:.0f} MiB; {growth:+.0f} MiB for the big one")
    say.print(f"most that any job took above the child before its first one: {bench.ours.most / MIB:.0f} MiB")
    say.print(f"SFTP alone, {scale.big.title}: OpenSSH {alone.openssh:.2f} s, ours {alone.ours:.2f} s")
    result = {"small": summary(small), "big": summary(big), "sftp_over_openssh": round(alone.ratio, 3)}
    print(json.dumps(result))


def _ours_alone(bench: Bench, dataset: Dataset, rounds: int) -> Measured:
    bench.seed(dataset)
    measured: Sequence[Measured] = [bench.ours.deliver(dataset) for _ in range(rounds)]
    return middle(measured)


if __name__ == "__main__":
    main()
