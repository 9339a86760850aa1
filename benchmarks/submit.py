"""How fast jobs are taken in: our API, which commits each to the ledger, beside one that only calls Celery's `delay`.

`make bench-submit [QUICK=1] [ROUNDS=n] [DB=postgresql|mariadb]`; the ledger is SQLite by default.
Read ratios, not digits: the figures depend on the machine. README.md tells what is measured and how.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from load import Load, send
from machine import facts
from measure import BenchmarkFailed
from rich.console import Console
from rich.table import Table
from services import MariaDB, PostgreSQL

from ncr_worker.app import App
from ncr_worker.job import TERMINAL
from ncr_worker.ledger import schema
from ncr_worker.sandbox.own import Api, OwnProcess, Worker
from ncr_worker.sandbox.process import LOOPBACK, free_port, http_ok
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings

CONNECTIONS = 16
BATCH = 100
PATIENCE = 900.0
numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Scale:
    singles: int
    batches: int
    down: int
    rounds: int


FULL = Scale(singles=1000, batches=20, down=500, rounds=3)
QUICK = Scale(singles=300, batches=6, down=100, rounds=1)


class PeerApi(OwnProcess):
    name = "peer-api"

    def __init__(self, folder: Path, broker: str) -> None:
        super().__init__(folder, {"PEER_BROKER": broker, "PYTHONPATH": str(Path(__file__).parent)})
        self.port = free_port()
        self.url = f"http://{LOOPBACK}:{self.port}"

    def command(self) -> Sequence[str]:
        options = ("--host", LOOPBACK, "--port", str(self.port), "--no-access-log")
        return [sys.executable, "-m", "uvicorn", "peer:api", *options]

    def ready(self) -> bool:
        return http_ok(f"{self.url}/health/live")


@dataclass(frozen=True, slots=True)
class Bench:
    ours: str  # URL
    peer: str
    app: App
    valkey: Valkey
    start_worker: Callable[[], None]


@contextmanager
def running(folder: Path) -> Iterator[Bench]:
    with ExitStack() as resources:
        valkey, other = Valkey(folder / "valkey"), Valkey(folder / "other")
        for server in (valkey, other):  # the peer has its own: ours is stopped on the way
            resources.enter_context(server)
        environment = {
            "DATABASE_URL": _database(folder, resources),
            "WORK_FOLDER": str(folder / "work"),
            "HOST_ID": "benchmark",
            "CELERY_WORKER_CONCURRENCY": "2",
            "LOG_LEVEL": "WARNING",
            "CELERY_BROKER_URL": "",
            **valkey.env(),
        }
        app = App(Settings.model_validate({name.lower(): value for name, value in environment.items()}))
        resources.callback(app.close)
        schema.upgrade(app.database)
        ours = resources.enter_context(Api(folder / "api", environment))
        peer = resources.enter_context(PeerApi(folder / "peer", other.env()["REDIS_URL"]))

        def start_worker() -> None:
            resources.enter_context(Worker(folder / "worker", environment, lambda: bool(app.ledger.hosts.live())))

        yield Bench(ours.url, peer.url, app, valkey, start_worker)


def _database(folder: Path, resources: ExitStack) -> str:
    match os.environ.get("DB") or "sqlite":
        case "sqlite":
            return f"sqlite:///{folder / 'ncr.sqlite3'}"
        case "postgresql":
            return resources.enter_context(PostgreSQL(folder / "postgresql")).create_database()
        case "mariadb":
            return resources.enter_context(MariaDB(folder / "mariadb")).create_database()
        case other:
            raise SystemExit(f"DB={other}: sqlite, postgresql or mariadb")


def job() -> dict[str, Any]:
    """A job that the catalog does not know: it ends at once, and only its way into the ledger is measured."""
    return {"job_id": f"bench-{next(numbers)}", "username": "benchmark", "campaign": "benchmark"}


def singles(url: str, count: int) -> Load:
    return _taken(send(f"{url}/process-job", [job() for _ in range(count)], connections=CONNECTIONS))


def batches(url: str, count: int) -> Load:
    bodies = [[job() for _ in range(BATCH)] for _ in range(count)]
    return _taken(send(f"{url}/process-batch", bodies, connections=4))


def _taken(load: Load) -> Load:
    if set(load.statuses) != {202}:
        raise BenchmarkFailed(f"not all were taken in: {dict(load.statuses)}; {load.answers[-1]}")
    return load


def compare(bench: Bench, what: Callable[[str, int], Load], count: int, rounds: int) -> tuple[list[Load], list[Load]]:
    """Ours and the peer's, by turns."""
    ours, peer = [], []
    for _ in range(rounds):
        ours.append(what(bench.ours, count))
        peer.append(what(bench.peer, count))
    return ours, peer


def all_end(bench: Bench, expected: int) -> float:
    """Start a worker and wait until every job that was taken in has ended, each once; seconds."""
    began = time.monotonic()
    bench.start_worker()
    while time.monotonic() - began < PATIENCE:
        counts = bench.app.history.counts()
        ended = sum(number for (_, state), number in counts.items() if state in TERMINAL)
        if ended == expected == sum(counts.values()):
            return time.monotonic() - began
        time.sleep(0.5)
    raise BenchmarkFailed(f"{ended} of {expected} jobs have ended after {PATIENCE:g} s")


def main() -> None:
    scale = QUICK if os.environ.get("QUICK") else FULL
    rounds = int(os.environ.get("ROUNDS") or scale.rounds)
    say = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="ncr-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # database servers run as other accounts
        with running(folder) as bench:
            for what, which in [*facts(), ("ledger", bench.app.database.dialect)]:
                say.print(f"{what}: {which}", markup=False, highlight=False, soft_wrap=True)
            for url in (bench.ours, bench.peer):
                singles(url, 100)
            single = compare(bench, singles, scale.singles, rounds)
            batch = compare(bench, batches, scale.batches, rounds)
            bench.valkey.stop()
            down = singles(bench.ours, scale.down)
            bench.valkey.start()
            expected = 100 + rounds * (scale.singles + BATCH * scale.batches) + scale.down
            seconds = all_end(bench, expected)
    table = Table("", "jobs/s", "p50 ms", "p99 ms", "requests")
    for title, loads, size in (
        ("single, ours", single[0], 1),
        ("single, Celery delay", single[1], 1),
        (f"batches of {BATCH}, ours", batch[0], BATCH),
        (f"batches of {BATCH}, Celery delay", batch[1], BATCH),
        ("single, ours, Redis stopped", [down], 1),
    ):
        table.add_row(title, *_figures(loads, size))
    say.print(table)
    say.print(f"all {expected:,} jobs of ours have ended, each once, {seconds:.0f} s after a worker was started")
    print(
        json.dumps(
            {
                "single_ratio": round(_rate(single[0]) / _rate(single[1]), 3),
                "batch_ratio": round(_rate(batch[0]) / _rate(batch[1]), 3),
                "p99_ms_redis_down": round(1000 * down.at(0.99), 1),
            }
        )
    )


def _rate(loads: Sequence[Load]) -> float:
    """Median requests a second."""
    return median(len(load.latencies) / load.seconds for load in loads)


def _figures(loads: Sequence[Load], size: int) -> tuple[str, ...]:
    p50, p99 = (median(1000 * load.at(share) for load in loads) for share in (0.5, 0.99))
    return f"{_rate(loads) * size:,.0f}", f"{p50:.1f}", f"{p99:.1f}", f"{len(loads[0].latencies)}"


if __name__ == "__main__":
    main()
