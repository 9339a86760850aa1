"""Mutation testing of what decides which job runs: the code is changed in one place at a time; does a test fail?

usage: mutate.py [--sample N] [--all] [FILE...]     (make mutate ARGS=...)

Tries N mutants of each file, the same each time, or all. Ends with a table; status 1 below 80 percent.
`mutmut show NAME` shows a survivor, `mutmut run NAME` tries it again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil

GOAL = 80  # percent of those that were tried
NAMES = 500  # in one command
MARK = "NCR_MUTATE_RUN"
"""Environment variable of all processes of one run: a mutant that comes to no end leaves its children behind."""

# Exit codes of mutmut's workers.
FAILED = {1, 3}
ENDED = {-24, 24, 36, 152, 255, -9, -11}  # it took too long, or crashed
NOT_TRIED = {None, 34}


def mutants() -> Iterator[tuple[str, dict[str, int | None]]]:
    """A file of the package, and the exit codes of its mutants by name."""
    for path in sorted(Path("mutants").rglob("*.py.meta")):
        codes = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
        if codes:
            yield str(path.relative_to("mutants/ncr_worker")).removesuffix(".meta"), codes


def sample(files: list[str], size: int | None) -> list[str]:
    names = []
    for file, codes in mutants():
        if not files or any(each in file for each in files):
            mine = sorted(codes)
            names += mine if size is None or size >= len(mine) else random.Random(file).sample(mine, size)
    return names


def run(names: list[str]) -> None:
    """Mutants that live are no error to mutmut."""
    mark = uuid4().hex
    try:
        subprocess.run(["mutmut", "run", *names], check=True, env={**os.environ, MARK: mark})
    finally:
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):  # it ended while we looked
                if process.environ().get(MARK) == mark:
                    process.kill()


def report(names: list[str]) -> float:
    """Percent of those tried that a test has noticed."""
    tried, total, alive = set(names), Counter[str](), []
    print(f"\n{'file':<28}{'failed':>8}{'ended':>8}{'alive':>8}{'tried':>8}{'there':>8}")
    for file, codes in mutants():
        mine = {name: code for name, code in codes.items() if name in tried and code not in NOT_TRIED}
        if not mine:
            continue
        failed, ended = sum(code in FAILED for code in mine.values()), sum(code in ENDED for code in mine.values())
        alive += [name for name, code in mine.items() if code not in FAILED | ENDED]
        print(f"{file:<28}{failed:>8}{ended:>8}{len(mine) - failed - ended:>8}{len(mine):>8}{len(codes):>8}")
        total.update(failed=failed, ended=ended, tried=len(mine), there=len(codes))
    rest = total["tried"] - total["failed"] - total["ended"]
    print(f"{'all':<28}{total['failed']:>8}{total['ended']:>8}{rest:>8}{total['tried']:>8}{total['there']:>8}")
    print("\nalive:", *sorted(alive), sep="\n  ")
    return 100 * (total["failed"] + total["ended"]) / max(total["tried"], 1)


def main() -> int:
    options = argparse.ArgumentParser(usage=__doc__)
    options.add_argument("--sample", type=int, default=20)
    options.add_argument("--all", action="store_true")
    options.add_argument("files", nargs="*")
    chosen = options.parse_args()
    begun = time.monotonic()
    run(["ncr_worker.job.*"])  # makes all mutants, and learns which test calls which function
    names = sample(chosen.files, None if chosen.all else chosen.sample)
    for start in range(0, len(names), NAMES):
        run(names[start : start + NAMES])
    percent = report(names)
    print(f"\n{percent:.1f} % killed in {(time.monotonic() - begun) / 60:.0f} min; the goal is {GOAL} %")
    return 0 if percent >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
