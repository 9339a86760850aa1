"""The ledger: the truth about every job, and the queue. SQL is its only storage.

ledger.intake   submit, cancel, retry                (API, CLI)
ledger.queue    pick what fits a host                (feeder)
ledger.work     claim, enter, confirm, finish, …     (pool child, runner)
ledger.hosts    register, beat, reap                 (feeder)
ledger.reads    single jobs and their events         (API, CLI, sweep)
"""

from __future__ import annotations

from ncr_worker.ledger.hosts import Host, HostFigures, Hosts
from ncr_worker.ledger.intake import Intake
from ncr_worker.ledger.queue import Offer, Picked, Queue
from ncr_worker.ledger.reads import Reads
from ncr_worker.ledger.work import Checkpoint, Claim, Work
from ncr_worker.sql import Database

__all__ = [
    "Checkpoint",
    "Claim",
    "Host",
    "HostFigures",
    "Ledger",
    "Offer",
    "Picked",
    "Work",
]


class Ledger:
    """`lease`, `batch_timeout`: seconds. `overtake_limit`: smaller jobs that may pass one waiting for memory."""

    def __init__(self, database: Database, *, lease: float, batch_timeout: float, overtake_limit: int) -> None:
        self.database = database
        self.intake = Intake(database)
        self.queue = Queue(database, overtake_limit=overtake_limit, batch_timeout=batch_timeout)
        self.work = Work(database)
        self.hosts = Hosts(database, lease=lease)
        self.reads = Reads(database)
