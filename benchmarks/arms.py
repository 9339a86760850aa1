"""Three ways to deliver the same job: our worker, the plain way, a shell pipeline."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import psutil
from dataset import Dataset
from measure import BenchmarkFailed, Measured, cpu_seconds, run, sampled
from services import OpenSSH

from ncr_worker.app import App
from ncr_worker.job import Job, State
from ncr_worker.memory.domain import rss_anon
from ncr_worker.sandbox.own import Worker

HERE = Path(__file__).parent
PATIENCE = 900.0


class OurWorker:
    """A real worker with one pool child. `idle`: the child's anonymous bytes after its first, small job.

    `most`: the largest of the peaks in the ledger, which count from what a child has before its first job.
    """

    def __init__(self, app: App, worker: Worker, openssh: OpenSSH) -> None:
        self._app = app
        self._worker = worker
        self._openssh = openssh
        self.idle = 0
        self.most = 0

    def warm_up(self, first: Dataset) -> None:
        self.deliver(first)
        self.idle = rss_anon(self._child())

    def deliver(self, dataset: Dataset) -> Measured:
        """Submit the job and wait for its end. Wall time is the ledger's, CPU and memory are the pool child's."""
        shutil.rmtree(self._openssh.root / dataset.sku, ignore_errors=True)
        child = self._child()
        before = cpu_seconds(child)
        with sampled(lambda: rss_anon(child), 0.01) as peak:
            job = self._ended(self._app.submit("deliver", dataset.args, actor="benchmark").job_ids[0])
        if job.state != State.SUCCEEDED or job.started_at is None or job.finished_at is None:
            raise BenchmarkFailed(f"our job ended {job.state}: {job.error}; see {self._worker.log}")
        if self._child() != child:
            raise BenchmarkFailed("the pool child was renewed: nothing to compare its memory with")
        self.most = max(self.most, job.peak or 0)
        seconds = job.finished_at - job.started_at
        return Measured(seconds, cpu_seconds(child) - before, peak.bytes - self.idle, self._stages(job))

    def _stages(self, job: Job) -> Mapping[str, float]:
        """From the audit trail: when each stage was entered."""
        entered = [event for event in self._app.ledger.reads.events(job.id) if event.state != State.QUEUED]
        steps = [event for event in entered if event.stage and event.state in (State.RUNNING, State.SUCCEEDED)]
        return {str(event.stage): after.at - event.at for event, after in pairwise(steps)}

    def _ended(self, job_id: str) -> Job:
        deadline = time.monotonic() + PATIENCE
        while not (job := self._app.ledger.reads.job(job_id)).terminal:
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"our job is still {job.state} after {PATIENCE:g} s")
            time.sleep(0.05)
        return job

    def _child(self) -> int:
        (child,) = psutil.Process(self._worker.pid).children()
        return child.pid


class Script:
    """A program that delivers one job in an empty folder of its own."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], openssh: OpenSSH) -> None:
        self._command = command
        self._environment = environment
        self._openssh = openssh

    def deliver(self, dataset: Dataset) -> Measured:
        target = f"by-script-{dataset.name}"
        shutil.rmtree(self._openssh.root / target, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="ncr-bench-") as folder:
            command = [*self._command, dataset.prefix, dataset.sku, target]
            measured = run(command, self._environment, Path(folder))
        found = sum(path.stat().st_size for path in (self._openssh.root / target).rglob("*") if path.is_file())
        if found != dataset.count * dataset.size:
            raise BenchmarkFailed(f"{self._command[0]} delivered {found:,} bytes")
        shutil.rmtree(self._openssh.root / target)
        return measured


def plain(environment: Mapping[str, str], openssh: OpenSSH) -> Script:
    return Script([sys.executable, str(HERE / "plain.py")], environment, openssh)


def shell(environment: Mapping[str, str], openssh: OpenSSH) -> Script | None:
    """None when one of its tools is missing."""
    there = all(shutil.which(tool, path=environment["PATH"]) for tool in ("s5cmd", "zip", "curl", "sftp"))
    return Script([str(HERE / "shell.sh")], environment, openssh) if there else None
