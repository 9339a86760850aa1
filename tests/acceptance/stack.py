"""A whole system of real processes: servers, worker hosts, jobs, and the proof that everything is settled."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import psutil
from faults import gate, large
from sqlalchemy import func, insert, select

from ncr_worker.app import App
from ncr_worker.job import TERMINAL, Event, Job, NewJob, State
from ncr_worker.ledger import Offer, schema
from ncr_worker.ledger.tables import checkpoint, hold, host
from ncr_worker.pipeline import GIB, Args
from ncr_worker.pipelines.deliver.catalog import delivery_history, job_details, job_files
from ncr_worker.sandbox.process import ServerProcess
from ncr_worker.sandbox.s3 import S3
from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.sandbox.validator import Validator
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings
from ncr_worker.sql import now
from ncr_worker.worker.celery_app import create_celery

T = TypeVar("T")
HERE = Path(__file__).parent
KINDS = ("gated", "counter", "brief", "large", "suicide", "wavering")
HEARTBEAT, LEASE = 1.0, 3.0


def patience(seconds: float) -> float:
    """What is promised in so many seconds takes longer on a machine whose processors others use too."""
    return seconds * max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0)


def eventually(ask: Callable[[], T], what: str, *, within: float = 60.0) -> T:
    """The first true answer. Fails when there is none within so many seconds."""
    begun = time.monotonic()
    while not (answer := ask()):
        assert time.monotonic() - begun < patience(within), f"not within {within:g} s: {what}"
        time.sleep(0.03)
    return answer


class Worker(ServerProcess):
    """One worker host: a real `celery worker` with its pool children."""

    name = "worker"
    start_patience = 60.0

    def __init__(self, folder: Path, app: App, host_id: str, settings: Mapping[str, str]) -> None:
        super().__init__(folder)
        self.host_id = host_id
        self._app = app
        self._settings = {**settings, "HOST_ID": host_id, "WORK_FOLDER": str(self.folder / "work")}

    def command(self) -> Sequence[str]:
        celery = [sys.executable, "-m", "celery", "-A", "ncr_worker.worker"]
        return [*celery, "worker", "-n", f"ncr@{self.host_id}", "--loglevel=INFO"]

    def environment(self) -> dict[str, str]:
        paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
        # A killed worker leaves its temporary files behind.
        here = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "TMPDIR": str(self.folder)}
        return self._settings | here

    def ready(self) -> bool:
        query = select(host.c.pid).where(host.c.id == self.host_id)
        return self._app.database.read(lambda connection: connection.scalar(query)) == self.pid

    def env(self) -> dict[str, str]:
        return {}

    @property
    def jobs_folder(self) -> Path:
        return self.folder / "work" / "jobs" / self.host_id

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def await_exit(self, *, within: float) -> int:
        assert self._process is not None
        return self._process.wait(within)

    def freeze(self) -> None:
        """Nothing of the whole host moves, as on a machine that is suspended."""
        os.kill(self.pid, signal.SIGSTOP)
        self.signal_children(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal_children(signal.SIGCONT)
        os.kill(self.pid, signal.SIGCONT)

    def signal_children(self, what: signal.Signals) -> None:
        for process in psutil.Process(self.pid).children():
            process.send_signal(what)

    def received(self, job_id: str) -> int:
        """Messages about a job that the pool was given."""
        lines = self.log.read_text(errors="replace").splitlines()
        return sum(f"[{job_id}] received" in line for line in lines)


@dataclass(frozen=True, slots=True)
class Servers:
    valkey: Valkey
    s3: S3
    sftp: SFTP
    validator: Validator

    def env(self) -> dict[str, str]:
        servers: tuple[ServerProcess, ...] = (self.valkey, self.s3, self.sftp, self.validator)
        return {name: value for server in servers for name, value in server.env().items()}


class Stack:
    """One ledger, one broker, any number of worker hosts, and every job that a test submits.

    `settings`: further settings of all hosts, by their names in lower case.
    """

    def __init__(
        self, servers: Servers, folder: Path, *, database_url: str, broker_url: str, **settings: object
    ) -> None:
        self.servers = servers
        self.folder = folder
        self.name = uuid4().hex[:8]
        self.gates = folder / "gates"
        self.gates.mkdir()
        self.target = servers.sftp.root / self.name
        self.target.mkdir()
        self.workers: list[Worker] = []
        self.jobs: list[str] = []
        self.expected: dict[str, bytes] = {}
        self.env = servers.env() | {
            "DATABASE_URL": database_url,
            "CELERY_BROKER_URL": broker_url,
            "SFTP_ROOT": self.name,
            "EXTRA_PIPELINES": ",".join(f"faults.{kind}" for kind in KINDS),
            "HOST_MEMORY_BYTES": str(large.HOST),
            "HOST_HEARTBEAT": str(HEARTBEAT),
            "HOST_LEASE": str(LEASE),
            "SHUTDOWN_GRACE": "10",
            "CELERY_WORKER_CONCURRENCY": "4",
            "LOG_FORMAT": "console",
            gate.FOLDER: str(self.gates),
        }
        self.env |= {name.upper(): str(value) for name, value in settings.items()}
        self.settings = self.settings_of("nobody")
        self.app = App(self.settings, patience=30)
        schema.upgrade(self.app.database)

    def settings_of(self, host_id: str) -> Settings:
        names = {name.lower(): value for name, value in self.env.items()}
        return Settings.model_validate(names | {"host_id": host_id, "work_folder": self.folder})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in self.workers:
            worker.kill()
        self.app.close()

    def worker(self, name: str, **settings: object) -> Worker:
        """A started host. Its id is this stack's alone, since its queue is named after it."""
        changed = self.env | {key.upper(): str(value) for key, value in settings.items()}
        worker = Worker(self.folder / name, self.app, f"{name}-{self.name}", changed)
        self.workers.append(worker)
        worker.start()
        return worker

    # --- jobs -----------------------------------------------------------------------------------------
    def submit(self, kind: str, args: Args | None = None, **values: Any) -> str:
        """One job of any kind; its id."""
        given = args or self.app.pipeline(kind).args.model_validate({"name": f"{kind}-{uuid4().hex[:8]}", **values})
        (job_id,) = self.app.submit(kind, given, actor="test").job_ids
        self.jobs.append(job_id)
        return job_id

    def submit_batch(self, kind: str, many: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
        """A batch; its id and those of its jobs."""
        model = self.app.pipeline(kind).args
        submitted = self.app.submit_batch(kind, [model.model_validate(dict(values)) for values in many], actor="test")
        assert submitted.batch_id is not None
        self.jobs += submitted.job_ids
        return submitted.batch_id, list(submitted.job_ids)

    def deliver(self, *points: str) -> str:
        """A delivery over an older one, stopped at each of these points; its id."""
        name = f"job-{uuid4().hex[:8]}"
        sku = f"SKU-{name}"
        noise = random.Random(name)
        files = {
            "GLB_files/chair.glb": (f"{sku}.glb", b"glTF" + noise.randbytes(600_000)),
            "Materials/oak.glb": ("materials/oak.glb", b"glTF" + b"wood " * 1000),
            "Materials/oak.png": ("materials/oak.png", noise.randbytes(70_000)),
        }
        client = self.servers.s3.client()
        for path, (target, content) in files.items():
            client.put_object(Bucket=self.servers.s3.bucket, Key=f"{name}/{sku}/{path}", Body=content)
            self.expected[f"{sku}/{target}"] = content
        client.close()
        old = self.target / sku / "old.txt"
        old.parent.mkdir()
        old.write_text("an older delivery")
        self._enter_in_catalog(name, sku, [f"{name}/{sku}/{path}" for path in files])
        for point in points:
            gate.gate(self.gates, name, point).touch()
        values = {"job_id": name, "username": "ann", "campaign": "spring"}
        return self.submit("gated", self.app.pipeline("gated").args.model_validate(values))

    def _enter_in_catalog(self, name: str, sku: str, keys: Sequence[str]) -> None:
        at = datetime.now(UTC).replace(tzinfo=None)
        rows = [{"job_id": name, "key": key, "uploaded_at": at} for key in keys]
        self.app.database.transact(
            lambda connection: (
                connection.execute(insert(job_details).values(job_id=name, sku_id=sku)),
                connection.execute(insert(job_files), rows),
            )
        )

    def job(self, job_id: str) -> Job:
        return self.app.ledger.reads.job(job_id)

    def events(self, job_id: str) -> list[Event]:
        return self.app.ledger.reads.events(job_id)

    def runs(self, job_id: str) -> int:
        """How often a counter has run."""
        path = gate.runs(self.gates, self.job(job_id).ref)
        return len(path.read_text().splitlines()) if path.exists() else 0

    # --- gates ----------------------------------------------------------------------------------------
    def close(self, ref: str, point: str) -> None:
        gate.gate(self.gates, ref, point).touch()

    def open(self, job_id: str, point: str) -> None:
        gate.gate(self.gates, self.job(job_id).ref, point).unlink()

    def open_all(self) -> None:
        for path in self.gates.glob("*.gate"):
            path.unlink()

    def reached(self, job_id: str, point: str, *, within: float = 60.0) -> int:
        """Waits until the job has come to the point; pid of the process that stands there."""
        path = gate.mark(self.gates, self.job(job_id).ref, point)
        eventually(path.exists, f"job {job_id} reaches {point}", within=within)
        return int(path.read_text())

    def publish(self, worker: Worker, job: Job, *, slot: int, times: int) -> None:
        """Send the message of a dispatched job again, by hand, with the worker's own Celery application."""
        with create_celery(self.settings_of(worker.host_id)) as celery:
            for _ in range(times):
                celery.tasks[job.kind].apply_async((job.id, job.token, slot), task_id=job.id)

    def delete_queues(self) -> None:
        """For brokers that a FLUSHALL does not reach."""
        for worker in self.workers:
            with create_celery(self.settings_of(worker.host_id)) as celery, celery.connection() as connection:
                celery.amqp.queues[celery.conf.task_default_queue].bind(connection).delete()

    def pick_in_the_name_of(self, worker: Worker) -> str:
        """A job that the ledger counts as dispatched to a host that knows nothing of it."""
        room = 1 * GIB  # what its kind needs may have been learned meanwhile
        while True:
            number = uuid4().hex[:8]
            args = {"name": f"orphan-{number}"}
            job_id = str(uuid4())
            self.app.ledger.intake.submit([NewJob(job_id, "counter", 1, args["name"], "", args, 0)])  # wakes nobody
            self.jobs.append(job_id)
            picked = self.app.ledger.queue.pick(Offer(worker.host_id, 1, room, False, room))
            if [job.job_id for job in picked] == [job_id]:
                return job_id

    # --- what must be true at the end -----------------------------------------------------------------
    def ended(self, *, within: float = 60.0) -> None:
        """Waits until every job has ended."""

        def unfinished() -> list[tuple[str, str, str | None, str | None]]:
            jobs = self.app.ledger.reads.jobs(self.jobs)
            return [(job.id, job.state, job.reason, job.stage) for job in jobs if not job.terminal]

        begun = time.monotonic()
        while left := unfinished():
            assert time.monotonic() - begun < patience(within), f"not ended within {within:g} s: {left}"
            time.sleep(0.05)

    def assert_settled(self, *, within: float = 60.0, **otherwise: State) -> None:
        """All jobs succeeded (`otherwise`: kind=state), each once, and nothing but their effect is left."""
        self.ended(within=within)
        for job in self.app.ledger.reads.jobs(self.jobs):
            assert job.state == otherwise.get(job.kind, State.SUCCEEDED), (job.state, job.error_code, job.error)
            assert job.reserved == 0
            ends = [event for event in self.events(job.id) if event.state in TERMINAL]
            assert [event.state for event in ends] == [job.state], "it ended more than once"
        eventually(lambda: not self.reserved(), "no host holds a reservation", within=10)
        eventually(lambda: not self._folders(), "no work folder is left", within=10)
        for table in (hold, checkpoint):
            assert self._scalar(select(func.count()).select_from(table)) == 0, f"{table.name} is not empty"
        delivered = self._delivered()
        wrong = {path for path in delivered | self.expected if delivered.get(path) != self.expected.get(path)}
        assert not wrong, f"not as planned on the target server: {sorted(wrong)}"
        self._assert_recorded_once()

    def _assert_recorded_once(self) -> None:
        query = select(delivery_history.c.run)
        recorded = Counter(self.app.database.read(lambda connection: connection.scalars(query).all()))
        jobs = [job.id for job in self.app.ledger.reads.jobs(self.jobs) if job.kind == "gated"]
        assert recorded == Counter(jobs)

    def reserved(self, host_id: str | None = None) -> int | None:
        """Bytes and jobs that a host, or all hosts, hold at their last heartbeat; None: there is no such host."""
        query = select(func.sum(host.c.reserved + host.c.running))
        found = self._scalar(query if host_id is None else query.where(host.c.id == host_id))
        return None if found is None else int(found)

    def up_for(self, host_id: str) -> float:
        """Seconds since the host registered."""
        return float(self._scalar(select(now() - host.c.started_at).where(host.c.id == host_id)))

    def _scalar(self, query: Any) -> Any:
        return self.app.database.read(lambda connection: connection.scalar(query))

    def _folders(self) -> list[Path]:
        return [path for worker in self.workers for path in worker.jobs_folder.glob("*")]

    def _delivered(self) -> dict[str, bytes]:
        """All that lies on the target server, hidden leftovers too: path -> content."""
        return dict(_files(self.target))


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()
        elif not any(path.iterdir()):
            yield f"{path.relative_to(folder)}/", b""


MakeStack = Callable[..., Stack]
"""Makes a stack that is stopped and removed when the test ends."""
