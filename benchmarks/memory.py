"""Jobs whose memory nobody has declared, on a host of 4 GiB: ours, ours with an oracle, Celery in three ways, Dask.

`make bench-memory [QUICK=1] [TRACES="a.csv.gz b.csv.gz"]`. Read ratios, not digits: the figures depend on the machine.
README.md tells what is measured and how.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from machine import facts
from memory_arms import ARMS, Scene
from memory_course import Outcome
from memory_group import NoMemoryGroup
from memory_kinds import write_kinds
from memory_mix import TABLE_BYTES, mix, synthetic
from memory_report import Found, report, told
from memory_trace import Trace, TraceError, read
from memory_work import Work, table_peak, write_table
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ncr_worker.pipeline import GIB

LIMIT = 4 * GIB
SLOTS = 16  # more than the memory has room for: where it has, nothing has to be decided
MOST = LIMIT * 6 // 10  # bytes that a kind may ask for: more than a host can spend is not taken in
HOST = 128 * 10**9  # bytes of the hosts that the traces are of
SYNTHETIC = 1000  # tasks
FULL, QUICK = (5, 120), (1, 60)  # seeds, jobs


def main() -> None:
    options = _options()
    say = Console(width=120)
    for what, which in facts():
        say.print(f"{what}: {which}", markup=False, highlight=False, soft_wrap=True)
    try:
        traces = [read(path, HOST) for path in options.traces]
        with tempfile.TemporaryDirectory(prefix="ncr-memory-") as name:
            found = run(Path(name), traces, options, say)
    except (NoMemoryGroup, TraceError) as error:
        sys.exit(str(error))
    names = {arm: name for arm, (name, _) in ARMS.items()}
    title = f"{options.jobs} jobs, {SLOTS} slots, {LIMIT / GIB:g} GiB; medians over {options.seeds} seeds"
    say.print(told(found, names, title))
    print(json.dumps(report(found)))
    if any(each.kernel_kills or each.lost or each.duplicated for each in found.get("ours", ())):
        sys.exit(1)


def _options() -> argparse.Namespace:
    seeds, jobs = QUICK if os.environ.get("QUICK") else FULL
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("traces", nargs="*", type=Path, help="CSV files; without any: jobs of a like shape are made up")
    parser.add_argument("--bench", type=Path, required=True, help="programs of the benchmarks' own virtualenv")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--jobs", type=int, default=jobs)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    return parser.parse_args()


def run(folder: Path, traces: Sequence[Trace], options: argparse.Namespace, say: Console) -> Found:
    """Every seed has its own mix, and one of the traces, by turns; each arm runs it with a host of its own."""
    table, modules = folder / "table.csv", folder / "modules"
    write_table(table, TABLE_BYTES[1])
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        ratio = fresh.submit(table_peak, table, TABLE_BYTES[1]).result() / TABLE_BYTES[1]
    mixes = [
        mix(traces[seed % len(traces)] if traces else synthetic(seed, SYNTHETIC), seed, options.jobs, ratio, MOST)
        for seed in range(options.seeds)
    ]
    modules.mkdir()
    kinds = write_kinds(modules, (job for jobs in mixes for job in jobs))
    sys.path.append(str(modules))
    scene = Scene(LIMIT, SLOTS, table, modules, kinds, options.bench.absolute())
    found: dict[str, list[Outcome]] = {arm: [] for arm in options.arms}
    for seed, jobs in enumerate(mixes):
        say.print(_mixed(seed, jobs))
        for arm in found:
            place = folder / f"{arm}-{seed}"
            place.mkdir()
            found[arm].append(_followed(arm, scene, jobs, place, say))
    return found


def _mixed(seed: int, jobs: Sequence[Work]) -> str:
    """What a seed runs, in words."""
    seconds = sum(job.seconds for job in jobs)
    used = sum(job.peak * job.seconds for job in jobs)
    kinds, largest = {job.kind for job in jobs}, max(job.peak for job in jobs)
    return (
        f"seed {seed}: {len(jobs)} jobs of {len(kinds)} kinds, {seconds:.0f} s; at least {seconds / SLOTS:.0f} s by "
        f"slots, {used / LIMIT:.0f} s by memory; the largest takes {largest / GIB:.2f} GiB"
    )


def _followed(arm: str, scene: Scene, jobs: Sequence[Work], folder: Path, say: Console) -> Outcome:
    """One arm, with progress, and a line that stays."""
    name, run_arm = ARMS[arm]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=say, transient=True) as progress:
        bar = progress.add_task(name, total=len(jobs))
        outcome = run_arm(scene, jobs, folder, lambda done: progress.update(bar, completed=done))
    troubles = f"{outcome.kernel_kills} kernel kills, {outcome.lost} lost, {outcome.duplicated} doubled"
    say.print(f"  {name}: {outcome.seconds:.1f} s, {troubles}", highlight=False)
    return outcome


if __name__ == "__main__":
    main()
