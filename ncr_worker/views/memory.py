"""Where the memory is, who waits for it and why: the same for HTTP, command line and dashboard."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import psutil
from pydantic import ValidationError

from ncr_worker.board import Board
from ncr_worker.errors import NotFound
from ncr_worker.history import Backlog, History
from ncr_worker.job import Job
from ncr_worker.ledger import Host, Ledger
from ncr_worker.memory.admission import Admission
from ncr_worker.memory.domain import Domain, rss_anon
from ncr_worker.memory.drain import Asked
from ncr_worker.memory.live import EVERY, LiveMemory, Snapshot, Use
from ncr_worker.memory.needs import Needs
from ncr_worker.pipeline import Pipeline
from ncr_worker.settings import Settings
from ncr_worker.views.explain import JobExplanation, Present, Situation, explanation, places
from ncr_worker.views.figures import (
    AdmissionExplanation,
    HostMemory,
    JobMemory,
    MemoryHistory,
    MemorySample,
    MemoryStats,
    ProcessMemory,
    SystemMemory,
    Waiting,
)
from ncr_worker.views.job import FOR_MEMORY, moment
from ncr_worker.views.prediction import NeedExplanation, explained

MAIN_KIND = "deliver"
"""Whose need answers "how many fit" where no kind is named."""


class MemoryLook:
    """All methods raise DatabaseAway."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        history: History,
        board: Board,
        admission: Admission,
        pipelines: Mapping[str, Pipeline[Any]],
        needs: Needs,
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.history = history
        self.live = LiveMemory(board)
        self.admission = admission
        self.pipelines = pipelines
        self.needs = needs

    def stats(self) -> MemoryStats:
        main = self.pipelines[MAIN_KIND]
        need = self.needs.at_submit(main.kind, main.version, None, main.memory)
        verdict = self.admission.explain(Asked(MAIN_KIND, need))
        here = Domain(self.settings.host_memory_bytes).read()
        share = int(here.limit * self.settings.max_memory_usage_percent / 100)
        pid = os.getpid()
        return MemoryStats(
            process=ProcessMemory(pid=pid, rss_bytes=psutil.Process().memory_info().rss, anonymous_bytes=rss_anon(pid)),
            system=SystemMemory(
                limit_bytes=here.limit,
                limit_source=here.source,
                used_bytes=here.anonymous,
                used_percent=round(100 * here.anonymous / here.limit, 1),
                swap_bytes=here.swap,
                pressure_percent=here.pressure,
            ),
            recommended_concurrency=_fitting(share - here.anonymous, need),
            accepting_jobs=verdict.accepting,
            reason=verdict.reason,
            hosts=self._hosts(verdict.hosts, need),
            timestamp=_now(),
        )

    def hour(self, host: str) -> MemoryHistory:
        """Raises NotFound for a host that is not up and was not in the last hour."""
        samples = self.live.hour(host)
        if not samples and all(each.id != host for each in self.ledger.hosts.live()):
            raise NotFound(f"there is no worker host {host!r}")
        return MemoryHistory(
            host=host,
            every_seconds=EVERY,
            samples=[
                MemorySample(
                    at=moment(each.at),
                    limit_bytes=each.limit,
                    budget_bytes=each.budget,
                    used_bytes=each.others,
                    reserved_bytes=each.reserved,
                    observed_bytes=each.observed,
                    swap_bytes=each.swap,
                    pressure_percent=each.pressure,
                    running_jobs=each.running,
                )
                for each in samples
            ],
        )

    def explain_admission(
        self, kind: str = MAIN_KIND, need: int | None = None, user: str | None = None
    ) -> AdmissionExplanation:
        """`need`: bytes; None: as a job of the kind is expected to need. Raises NotFound for an unknown kind."""
        if kind not in self.pipelines:
            raise NotFound(f"there is no kind {kind!r}; known: {', '.join(sorted(self.pipelines))}")
        pipeline = self.pipelines[kind]
        prediction = self._prediction(kind, pipeline.version, None, pipeline.memory)
        usual = self.needs.at_submit(kind, pipeline.version, None, pipeline.memory)
        asked = Asked(kind, usual if need is None else need, user)
        verdict = self.admission.explain(asked)
        scene, limits = self.admission.look(), self.admission.limits
        seconds = self.admission.workload.seconds([kind]).get(kind)
        return AdmissionExplanation(
            accepting_jobs=verdict.accepting,
            code=verdict.code or None,
            reason=verdict.reason,
            retry_after_seconds=None if verdict.accepting or not verdict.retry_in else round(verdict.retry_in, 1),
            kind=kind,
            user=user,
            need_bytes=asked.need,
            wait_seconds=round(scene.drain.wait(user), 1),
            drain_seconds=round(scene.drain.whole, 1),
            run_seconds=None if seconds is None else round(seconds, 2),
            waiting_jobs=scene.queued,
            max_waiting_jobs=limits.backlog,
            max_wait_seconds=limits.wait,
            hosts=places(asked.need, self._present()),
            prediction=prediction,
            timestamp=_now(),
        )

    def explain_job(self, task_id: str) -> JobExplanation:
        """Raises NotFound."""
        job = self.ledger.reads.job(task_id)
        self.admission.forget()
        held_by = self.history.held_up_by(self.settings.overtake_limit)
        situation = Situation(
            job=job,
            present=self._present(),
            ahead=self.admission.workload.ahead(job),
            batch=self.history.batch(job.batch_id) if job.batch_id else None,
            held_by=None if held_by == job.id else held_by,
            noted=self.ledger.reads.events(job.id)[-1].reason,
            prediction=self._prediction(job.kind, job.version, job.input_bytes, self._declared(job)),
        )
        return explanation(situation, _now())

    def _declared(self, job: Job) -> int:
        """As its pipeline says now; of one that this version cannot read, what it had at its submit."""
        pipeline = self.pipelines.get(job.kind)
        with suppress(ValidationError):
            if pipeline:
                return pipeline.declared(pipeline.args.model_validate(job.args))
        return job.predicted or job.need

    def _prediction(self, kind: str, version: int, input_bytes: int | None, declared: int) -> NeedExplanation:
        known = (kind, version)
        stages = self.pipelines[kind].stages if kind in self.pipelines else ()
        steps = {each.name: self.needs.predict(*known, each.name, input_bytes, declared) for each in stages}
        learned = {name: found for name, found in steps.items() if found.samples}
        return explained(self.needs.basis(*known, None, input_bytes, declared), version, learned)

    def _present(self) -> Present:
        scene = self.admission.look()
        loads = self.live.now([host.id for host in scene.hosts]).values()
        bytes_now = {use.job_id: max(use.reserved, use.observed) for load in loads for use in load.jobs}
        return Present(scene, self.history.active(), bytes_now, time.time())

    def _hosts(self, hosts: Sequence[Host], need: int) -> list[HostMemory]:
        waiting = _waiting(self.history.backlog())
        live = self.live.now([host.id for host in hosts])
        jobs = self.history.active() if hosts else []
        return [
            _host(host, live.get(host.id), [job for job in jobs if job.host == host.id], waiting, need)
            for host in hosts
        ]


def _host(host: Host, live: Snapshot | None, jobs: Sequence[Job], waiting: Waiting, need: int) -> HostMemory:
    figures = host.figures
    uses = {use.job_id: use for use in live.jobs} if live else {}
    return HostMemory(
        host=host.id,
        state=host.state,
        limit_bytes=live.limit if live else figures.limit_bytes,
        limit_source=figures.limit_source,
        budget_bytes=live.budget if live else figures.budget,
        used_bytes=live.others if live else figures.others,
        reserved_bytes=live.reserved if live else figures.reserved,
        observed_bytes=live.observed if live else figures.observed,
        swap_bytes=live.swap if live else None,
        pressure_percent=live.pressure if live else None,
        waiting=waiting,
        slots=figures.slots,
        running_jobs=live.running if live else figures.running,
        recommended_concurrency=_fitting(live.budget if live else figures.budget, need),
        seconds_since_heartbeat=round(host.seconds_since_seen, 1),
        jobs=[_job(job, uses.get(job.id)) for job in jobs],
    )


def _job(job: Job, use: Use | None) -> JobMemory:
    return JobMemory(
        task_id=job.id,
        job_id=job.ref,
        kind=job.kind,
        stage=job.stage,
        predicted_bytes=job.predicted,
        reserved_bytes=use.reserved if use else job.reserved,
        observed_bytes=use.observed if use else None,
        peak_bytes=use.peak if use else None,
    )


def _waiting(backlog: Sequence[Backlog]) -> Waiting:
    short = [entry for entry in backlog if entry.reason in FOR_MEMORY]
    return Waiting(jobs=sum(entry.jobs for entry in short), bytes=sum(entry.need for entry in short))


def _fitting(budget: int, need: int) -> int:
    """Jobs of `need` bytes that fit at once; one always may run, alone."""
    return max(budget // max(need, 1), 1)


def _now() -> datetime:
    return datetime.now(UTC)
