"""The arms of `make bench-memory`: the same jobs, in the same order, on as many slots of a memory group as large."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from celery import Celery
from confined import confined
from memory_course import Course, Outcome, Say, follow
from memory_group import MemoryGroup, memory_group
from memory_work import ATTEMPTS, CSV, EFFECTS, MIB, Work

from ncr_worker.job import TERMINAL
from ncr_worker.sandbox.process import LOOPBACK, ServerProcess, accepts, free_port
from ncr_worker.sandbox.valkey import Valkey

HERE = Path(__file__).parent
PROCESS = 64 * MIB  # what a Celery process takes by itself
ORACLE = 8 * MIB  # what a pool child takes besides the pages that the job touches


@dataclass(frozen=True, slots=True)
class Scene:
    """`limit`: bytes of the group. `table`: the CSV file. `kinds`: our modules, which lie in `modules`.
    `bench`: programs of the benchmarks' own virtualenv."""

    limit: int
    slots: int
    table: Path
    modules: Path
    kinds: Sequence[str]
    bench: Path


def ours(scene: Scene, jobs: Sequence[Work], folder: Path, say: Say, *, oracle: bool = False) -> Outcome:
    """Cold: nothing is known of any kind. `oracle`: every job says exactly what it will take."""
    if oracle:
        jobs = [replace(job, declared=job.peak + ORACLE) for job in jobs]
    settings: dict[str, object] = {
        "celery_worker_concurrency": scene.slots,
        "max_memory_usage_percent": 90,  # the host is for this alone
        "memory_prediction": "declared" if oracle else "learned",
        "extra_pipelines": ",".join(scene.kinds),
        "pythonpath": os.pathsep.join([str(HERE), str(scene.modules)]),
        "host_heartbeat": 0.5,  # how often what is reserved can be read
        CSV.lower(): scene.table,
    }
    with confined(folder, scene.limit, [], **settings) as host:
        app = host.app

        def submit() -> None:
            for job in jobs:
                app.submit(job.kind, app.pipeline(job.kind).args.model_validate(job.plain()))

        def over() -> bool:
            states = {state for (_, state) in app.history.counts()}
            return not host.worker.running or (bool(states) and states <= TERMINAL)

        def reserved() -> int:
            return sum(each.figures.reserved for each in app.ledger.hosts.live())

        return follow(Course(host.group, host.effects, submit, over, reserved), len(jobs), say)


class CeleryWorker(ServerProcess):
    name = "celery"
    start_patience = 90.0

    def __init__(
        self, folder: Path, group: MemoryGroup, environment: Mapping[str, str], options: Sequence[str]
    ) -> None:
        super().__init__(folder)
        self.group = group
        self.settings = dict(environment)
        self.options = options
        self._client = Celery(broker=environment["PEER_BROKER"])

    def command(self) -> Sequence[str]:
        words = ("-m", "celery", "-A", "memory_celery", "worker", "--loglevel", "WARNING", *self.options)
        return self.group.inside([sys.executable, *words])

    def environment(self) -> dict[str, str]:
        return self.settings

    def env(self) -> dict[str, str]:
        return {"PEER_BROKER": self.settings["PEER_BROKER"]}

    def ready(self) -> bool:
        return bool(self._client.control.ping(timeout=0.5))

    def submit(self, jobs: Sequence[Work]) -> None:
        for job in jobs:
            self._client.send_task("memory_celery.work", (job.plain(),))


def celery(
    scene: Scene, jobs: Sequence[Work], folder: Path, say: Say, *, concurrency: int = 0, recycling: bool = False
) -> Outcome:
    """`concurrency`: 0: all slots. `recycling`: a pool child that has taken more than its share is renewed."""
    options = ["--concurrency", str(concurrency or scene.slots)]
    if recycling:
        options += ["--max-memory-per-child", str(scene.limit // scene.slots // 1024)]
    with memory_group(scene.limit) as group, Valkey(folder / "valkey") as valkey:
        environment = _environment(scene, folder) | {"PEER_BROKER": valkey.url}
        with CeleryWorker(folder / "celery", group, environment, options) as worker:
            course = Course(group, folder / "effects", lambda: worker.submit(jobs), lambda: not worker.running)
            return follow(course, len(jobs), say)


def celery_worst_case(scene: Scene, jobs: Sequence[Work], folder: Path, say: Say) -> Outcome:
    """As many processes, and the one above them, as fit if every job were as large as the largest."""
    fit = (scene.limit - PROCESS) // (max(job.peak for job in jobs) + PROCESS)
    return celery(scene, jobs, folder, say, concurrency=min(max(fit, 1), scene.slots))


class DaskProcess(ServerProcess):
    """A part of Dask, from the benchmarks' own virtualenv."""

    start_patience = 90.0

    def __init__(self, folder: Path, scene: Scene, port: int) -> None:
        super().__init__(folder)
        self.scene = scene
        self.port = port
        self.address = f"tcp://{LOOPBACK}:{port}"

    def environment(self) -> dict[str, str]:
        failures = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(ATTEMPTS - 1)}
        return _environment(self.scene, self.folder.parent) | failures

    def env(self) -> dict[str, str]:
        return {}


class DaskScheduler(DaskProcess):
    name = "dask-scheduler"

    def command(self) -> Sequence[str]:
        options = ("--host", LOOPBACK, "--port", str(self.port), "--no-dashboard")
        return [str(self.scene.bench / "dask"), "scheduler", *options]

    def ready(self) -> bool:
        return accepts(self.port)


class DaskWorkers(DaskProcess):
    name = "dask-workers"

    def __init__(self, folder: Path, scene: Scene, port: int, group: MemoryGroup) -> None:
        super().__init__(folder, scene, port)
        self.group = group

    def command(self) -> Sequence[str]:
        share = str(self.scene.limit // self.scene.slots)
        options = ("--nworkers", str(self.scene.slots), "--nthreads", "1", "--memory-limit", share, "--no-dashboard")
        program = str(self.scene.bench / "dask")
        return self.group.inside([program, "worker", self.address, *options, "--local-directory", str(self.folder)])

    def ready(self) -> bool:
        return self.log.read_text(errors="replace").count("Registered to:") >= self.scene.slots


def dask(scene: Scene, jobs: Sequence[Work], folder: Path, say: Say) -> Outcome:
    """A process for each slot, with an equal share of the memory as its limit."""
    port = free_port()
    with (
        memory_group(scene.limit) as group,
        DaskScheduler(folder / "dask-scheduler", scene, port) as scheduler,
        DaskWorkers(folder / "dask-workers", scene, port, group),
        _dask_client(scene, jobs, folder, scheduler.address) as (client, submit),
    ):
        course = Course(group, folder / "effects", submit, lambda: client.poll() is not None)
        return follow(course, len(jobs), say)


@contextmanager
def _dask_client(
    scene: Scene, jobs: Sequence[Work], folder: Path, address: str
) -> Iterator[tuple[subprocess.Popen[str], Callable[[], None]]]:
    """It is connected, and submits when it is told to."""
    (folder / "jobs.json").write_text(json.dumps([job.plain() for job in jobs]))
    words = (scene.bench / "python", HERE / "dask_arm.py", address, folder / "jobs.json", ATTEMPTS)
    command = list(map(str, words))
    with (
        (folder / "client.log").open("w") as log,
        subprocess.Popen(
            command, env=os.environ | _environment(scene, folder), stdin=-1, stdout=-1, stderr=log, text=True
        ) as client,
    ):
        try:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdout.readline()
            yield client, client.stdin.close
        finally:
            client.kill()


def _environment(scene: Scene, folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(HERE), EFFECTS: str(folder / "effects"), CSV: str(scene.table)}


Arm = Callable[[Scene, Sequence[Work], Path, Say], Outcome]
ARMS: Mapping[str, tuple[str, Arm]] = {
    "ours": ("ours", ours),
    "oracle": ("ours, peaks known", lambda *what: ours(*what, oracle=True)),
    "celery": ("Celery", celery),
    "celery_recycling": ("Celery, max_memory_per_child", lambda *what: celery(*what, recycling=True)),
    "celery_worst_case": ("Celery for the worst case", celery_worst_case),
    "dask": ("Dask, memory limits", dask),
}
"""Short name -> what it is called, and how it runs."""
