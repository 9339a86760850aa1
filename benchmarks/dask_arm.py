"""Submits the work of `make bench-memory` to a Dask cluster: `dask_arm.py SCHEDULER JOBS.json ATTEMPTS`.

Runs in the benchmarks' own virtualenv. Says `connected`, begins when its input is closed, and ends when
each job has ended, well or not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from distributed import Client, wait  # type: ignore[import-not-found]
from memory_work import do


def main() -> None:
    address, jobs, attempts = sys.argv[1:]
    with Client(address) as client:
        many = json.loads(Path(jobs).read_text())
        print("connected", flush=True)
        sys.stdin.read()
        wait([client.submit(do, job, key=f"job-{job['number']}", retries=int(attempts) - 1) for job in many])


if __name__ == "__main__":
    main()
