"""The Celery application: one task for each pipeline, one queue for each host, messages acked on receipt.

A message is a hint: job id, token, slot. The ledger decides whether it still means anything.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import Any

from billiard.process import current_process
from celery import Celery
from celery.bin.celery import celery as celery_command
from celery.signals import setup_logging, worker_process_init
from kombu import Exchange, Queue

from ncr_worker import logs
from ncr_worker.app import App
from ncr_worker.ledger import Picked
from ncr_worker.memory.slots import Slots
from ncr_worker.memory.watch import end_descendants
from ncr_worker.metrics import CountedWork, Metrics
from ncr_worker.runner import Runner
from ncr_worker.settings import Settings, load_settings
from ncr_worker.worker import recycling, results
from ncr_worker.worker.bootstep import FeederStep
from ncr_worker.worker.inspection import queue_name
from ncr_worker.worker.results import Results

PR_SET_PDEATHSIG = 1
NICE = 10  # jobs, with all that they start, give way to the process that watches them


class Child:
    """What one pool process needs to run jobs; built in that process, at its first job."""

    def __init__(self, settings: Settings, slots: Slots, metrics: Metrics, celery: Celery) -> None:
        app = App(settings, patience=settings.db_patience)
        app.ledger.work = CountedWork(app.database, metrics)
        self.runner = Runner(settings, app.ledger, app.board, app.pipelines, slots)
        self.results = Results(app, celery) if settings.celery_result_backend else None
        self.recycling = recycling.Recycling(settings.celery_worker_max_memory_per_child * 1024)
        self.pid = os.getpid()


class WorkerApp(Celery):
    """Celery with our settings, the slots of this worker, and this process's Child."""

    settings: Settings
    slots: Slots
    metrics_folder: Path
    _child: Child | None = None
    _metrics: Metrics | None = None

    @property
    def child(self) -> Child:
        if self._child is None or self._child.pid != os.getpid():
            self._child = Child(self.settings, self.slots, self.metrics, self)
        return self._child

    @property
    def metrics(self) -> Metrics:
        """Those of this process: of the worker, or of the pool child that has this place in the pool."""
        if self._metrics is None or self._metrics.pid != os.getpid():
            place = getattr(current_process(), "index", None)
            self._metrics = Metrics(self.metrics_folder, "main" if place is None else f"child-{place}")
        return self._metrics

    def command(self, argv: list[str]) -> int:
        """Run a Celery command in this process; its exit code, which Celery's own `start` drops."""
        celery_command.params[0].default = self
        code: int | None = celery_command.main(args=argv, standalone_mode=False)
        return code or 0

    def send_job(self, job: Picked, slot: int) -> None:
        """Put a picked job on this host's own queue. Raises when the broker is away."""
        self.tasks[job.kind].apply_async((job.job_id, job.token, slot), task_id=job.job_id, retry=False)


def create_celery(settings: Settings | None = None) -> WorkerApp:
    """Raises ConfigError."""
    settings = settings or load_settings()
    settings.work_folder.mkdir(parents=True, exist_ok=True)  # the worker's lock, files of jobs
    app = WorkerApp("ncr_worker", broker=settings.broker_url, backend=settings.celery_result_backend or None)
    app.settings = settings
    app.conf.update(_configuration(settings))
    app.steps["worker"].add(FeederStep)
    with_pipelines = App(settings)
    for kind, pipeline in with_pipelines.pipelines.items():
        _add_task(app, kind, pipeline.max_jobs_per_child)
    with_pipelines.close()
    setup_logging.connect(lambda **_: logs.configure(settings), weak=False)
    worker_process_init.connect(_die_with_parent, weak=False)
    worker_process_init.connect(_lead_a_group, weak=False)
    worker_process_init.connect(lambda **_: app.metrics.children.inc(), weak=False)
    return app


def _add_task(app: WorkerApp, kind: str, most: int | None) -> None:
    @app.task(name=kind, shared=False)  # another app of this process has its own
    def run(job_id: str, token: int, slot: int) -> None:
        try:
            app.child.runner.run(kind, job_id, token, slot)
        finally:
            end_descendants(os.getpid())  # what the job has started and left behind is not in the next one's bill
        if app.child.results is not None:
            app.child.results.tell(job_id)
        app.child.recycling.after(kind, most)


def _die_with_parent(**_: Any) -> None:
    """A child whose worker was killed must not go on: its memory is no longer in anybody's books."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _lead_a_group(**_: Any) -> None:
    """So that all that its jobs have started can be found when it dies. And should the kernel have to choose, then
    one of these, never the worker itself."""
    os.setpgid(0, 0)
    os.nice(NICE)
    Path("/proc/self/oom_score_adj").write_text("500")


def _configuration(settings: Settings) -> dict[str, Any]:
    name = queue_name(settings.host)
    amqp = "amqp" in settings.broker_url.split(":")[0]
    # Through the default exchange a queue needs no binding, which a FLUSHALL would take away. Where it cannot expire
    # kombu declares it once, not with every message.
    arguments = {"x-expires": 3_600_000} if amqp else None
    queue = Queue(name, Exchange(""), routing_key=name, queue_arguments=arguments)
    return {
        "task_queues": [queue],
        "task_default_queue": name,
        "task_default_exchange": "",
        "task_default_routing_key": name,
        "task_acks_late": False,
        **results.SETTINGS,
        "task_serializer": "json",
        "accept_content": ["json"],
        "worker_consumer": "ncr_worker.worker.consumer:PatientConsumer",
        "worker_concurrency": settings.celery_worker_concurrency,
        "worker_prefetch_multiplier": 4,
        "worker_max_tasks_per_child": settings.celery_worker_max_tasks_per_child,
        "worker_max_memory_per_child": recycling.POOL_LIMIT,
        # Flower asks for them while it runs. They cost the main loop as much as all else that it does.
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "beat_scheduler": "ncr_worker.worker.schedule:Beat",
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": 3,
        "broker_transport_options": {
            # The feeder publishes: a broker that is away must not hold it up. It sends again later.
            "max_retries": 0,
            "interval_start": 0,
            "interval_step": 0,
            "socket_connect_timeout": 2,
            "socket_timeout": 5,
            # On Redis no message is kept until it is acknowledged: it is but a hint. Putting kept ones back, when Redis
            # has gone away, raises in kombu and ends the whole worker.
            **({"write_timeout": 5} if amqp else {"ack_emulation": False}),
        },
    }
