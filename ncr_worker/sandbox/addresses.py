"""Where the parts of a sandbox are, and how to use them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from ncr_worker.sandbox.launcher import Sandbox
from ncr_worker.sandbox.process import LOOPBACK
from ncr_worker.sandbox.samples import SampleJob


def table(sandbox: Sandbox) -> Table:
    """Every part with its address and how to look at it."""
    rows = (
        ("API", sandbox.api.url, f"{sandbox.api.url}/docs"),
        ("Flower", sandbox.flower.url, "the Celery workers and their tasks"),
        ("Valkey (Redis)", sandbox.valkey.url, "board and broker"),
        ("S3", sandbox.s3.endpoint_url, f"bucket {sandbox.s3.bucket}; keys are in {sandbox.env_file}"),
        (
            "SFTP",
            f"sftp -P {sandbox.sftp.port} {sandbox.sftp.user_name}@{LOOPBACK}",
            f"password {sandbox.sftp.password}",
        ),
        ("Validator", sandbox.validator.url, f"{sandbox.validator.url}/calls"),
        ("Ledger", sandbox.database_url, "SQLite"),
        ("Logs", f"{sandbox.folder}/*/*.log", "worker, beat: log only"),
    )
    found = Table(box=box.ROUNDED, header_style="bold")
    for heading in ("part", "address", ""):
        found.add_column(heading, overflow="fold")
    for part, address, note in rows:
        found.add_row(Text(part, style="bold"), Text(address, style="cyan"), Text(note, style="bright_black"))
    return found


def usage(sandbox: Sandbox, jobs: Sequence[SampleJob]) -> Text:
    """Lines to paste into another shell; `jobs` are in the catalog. To be printed without wrapping."""
    url = sandbox.api.url
    body = json.dumps(jobs[0].request())
    lines = [
        ("Every ncr command uses this sandbox after", f". {shlex.quote(str(sandbox.env_file))}"),
        ("Deliver a job", f"curl -s {url}/process-job -H 'Content-Type: application/json' -d '{body}'"),
        ("See how it goes", f"curl -s {url}/job-status/TASK_ID"),
        ("Make a job of files of your own", "ncr sandbox put FOLDER --job 1"),
        ("See what has arrived", f"find {shlex.quote(str(sandbox.sftp.root))} -type f"),
    ]
    text = Text()
    for what, command in lines:
        text.append(f"{what}:\n").append(f"  {command}\n", style="cyan")
    text.append("Jobs in the catalog:\n")
    for job in jobs:
        text.append(f"  {job.job_id}", style="cyan").append(f"  {job.sku:<20} {job.note or job.verdict}\n")
    return text.append("Ctrl-C stops all and removes it.", style="bold")
