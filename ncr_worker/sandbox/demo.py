"""The demo: a realistic catalog, a single job and a batch through the public API, and proof of what was delivered."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpx2
from rich.console import Console

from ncr_worker.errors import NcrError
from ncr_worker.sandbox.display import ENDED, MIB, HostLine, JobLine, Snapshot, display
from ncr_worker.sandbox.launcher import Sandbox
from ncr_worker.sandbox.proof import prove
from ncr_worker.sandbox.samples import SampleJob, sample_jobs, store

LOOK_EVERY = 0.3
PATIENCE = 900.0
"""Seconds after which the demo gives up on jobs that have not ended."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`delivered`: jobs whose files are proven to be there. `failed`: those that ended otherwise than they should.

    `problems`: all that is wrong, in words.
    """

    jobs: int
    delivered: int
    rejected: int
    problems: Sequence[str]

    @property
    def failed(self) -> int:
        return self.jobs - self.delivered - self.rejected

    @property
    def exit_code(self) -> int:
        return 1 if self.failed or self.problems else 0

    def __str__(self) -> str:
        return (
            f"demo: delivered {self.delivered} of {self.jobs} jobs, "
            f"rejected {self.rejected} as expected, {self.failed} failed"
        )


def run(sandbox: Sandbox, count: int, console: Console) -> Outcome:
    """The whole demo in a running sandbox. Raises NcrError when a part of the sandbox or the API fails."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    jobs = sample_jobs(count)
    began = time.monotonic()
    store(jobs, sandbox.s3, sandbox.database_url)
    files, size = sum(len(job.files) for job in jobs), sum(job.size for job in jobs)
    say(f"put {files} files, {size // MIB:,} MiB, into S3 in {time.monotonic() - began:.1f} s")
    with Client(sandbox.api.url) as client:
        client.submit(jobs)
        say(f"submitted 1 job by POST /process-job, {count - 1} by POST /process-batch")
        statuses = _follow(client, jobs, sandbox, console)
    began = time.monotonic()
    differences = prove(sandbox.sftp, _plan(jobs), sandbox.folder / "received")
    left = sorted(path.name for path in (sandbox.work_folder / "jobs").glob("*/*"))
    outcome = judge(jobs, statuses, differences, left)
    say(f"fetched all that lies on the SFTP server and compared it in {time.monotonic() - began:.1f} s")
    for problem in outcome.problems:
        console.print(f"problem: {problem}", style="red", markup=False, highlight=False, soft_wrap=True)
    return outcome


def _plan(jobs: Sequence[SampleJob]) -> dict[str, str]:
    """What must lie on the SFTP server when all is over: path -> SHA-256 in hex."""
    return {path: sha256 for job in jobs for path, sha256 in job.manifest().items()}


def judge(
    jobs: Sequence[SampleJob], statuses: Mapping[str, str], differences: Mapping[str, str], left: Sequence[str]
) -> Outcome:
    """`statuses`: job id -> how it ended. `differences`: see `prove`. `left`: work folders that are still there."""
    problems = [f"{path}: {problem}" for path, problem in differences.items()]
    problems += [f"the work folder of {name} is still there" for name in left]
    spoiled = {path.partition("/")[0] for path in differences}
    delivered = rejected = 0
    for job in jobs:
        wanted = "completed" if job.delivered else "validation_failed"
        if statuses[job.job_id] != wanted:
            problems.append(f"job {job.job_id} should have ended {wanted}, but is {statuses[job.job_id]}")
        elif job.sku not in spoiled:
            delivered += job.delivered
            rejected += not job.delivered
    return Outcome(len(jobs), delivered, rejected, problems)


def _follow(client: Client, jobs: Sequence[SampleJob], sandbox: Sandbox, console: Console) -> dict[str, str]:
    """Show how the jobs go until the last has ended: job id -> status."""
    began = time.monotonic()
    with display(console) as shown:
        while True:
            elapsed = time.monotonic() - began
            snapshot = Snapshot(client.lines(jobs), client.hosts(), elapsed)
            shown.show(snapshot)
            if snapshot.over:
                return {line.job_id: line.status for line in snapshot.jobs}
            if elapsed > PATIENCE:
                raise NcrError(f"after {PATIENCE:g} s there are still {snapshot.counts}", code="demo_failed")
            sandbox.check()
            time.sleep(LOOK_EVERY)


class Client:
    """What a user's program does with the public API. Raises NcrError with the answer's own words."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.Client(base_url=url, timeout=30)
        self._single = self._batch = ""
        self._ended: dict[str, Mapping[str, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._http.close()

    def submit(self, jobs: Sequence[SampleJob]) -> None:
        """The first as a single job, the others as a batch."""
        first, *others = (job.request() for job in jobs)
        self._single = self._ask("POST", "/process-job", first)["task_id"]
        self._batch = self._ask("POST", "/process-batch", others)["batch_id"]

    def lines(self, jobs: Sequence[SampleJob]) -> list[JobLine]:
        """How the submitted jobs stand now."""
        records = {record["job_id"]: record for record in self._ask("GET", f"/batch-status/{self._batch}")["jobs"]}
        single = self._ask("GET", f"/job-status/{self._single}")
        records |= {single["job_id"]: single}
        records |= {record["job_id"]: record for record in self._ask("GET", "/jobs/active")["active_jobs"]}
        for job_id, record in records.items():
            if record["status"] in ENDED and job_id not in self._ended:
                self._ended[job_id] = self._ask("GET", f"/job-status/{record['task_id']}")
        records |= self._ended
        return [_line(job, records[job.job_id]) for job in jobs]

    def hosts(self) -> list[HostLine]:
        return [
            HostLine(
                host["host"],
                host["limit_bytes"],
                host["used_bytes"],
                host["reserved_bytes"],
                host["observed_bytes"],
                host["running_jobs"],
                host["slots"],
            )
            for host in self._ask("GET", "/memory-stats")["hosts"]
        ]

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx2.HTTPError as error:
            raise NcrError(f"{method} {path}: {error}", code="demo_failed") from error
        if answer.is_error:
            raise NcrError(f"{method} {path}: {answer.status_code} {answer.text[:500]}", code="demo_failed")
        return answer.json()


def _line(job: SampleJob, record: Mapping[str, Any]) -> JobLine:
    """`record`: of `/job-status`, or the short one of `/batch-status` for a job that has not begun."""
    status, progress = record["status"], record.get("progress", {})
    percentage = progress.get("percentage", record.get("percentage", 0.0))
    return JobLine(job.job_id, job.sku, job.size, status, percentage, _text(job, record, progress))


def _text(job: SampleJob, record: Mapping[str, Any], progress: Mapping[str, Any]) -> str:
    """What is worth knowing about it beside its status."""
    if not progress or record["status"] in ("pending", "waiting"):
        return job.note
    match record["status"]:
        case "completed":
            return f"{progress['total_files']} files, {progress['bytes_total'] / MIB:.1f} MiB"
        case "validation_failed" | "failed" | "cancelled":
            return str((record.get("error") or {}).get("detail", ""))
    step, files, message = progress["current_step"], progress["total_files"], record["message"]
    count = f" {progress['processed_files']}/{files}" if files else ""
    detail = progress["current_file"].rpartition("/")[2] or ("" if step in message else message)
    return f"{step}{count} {detail}"
