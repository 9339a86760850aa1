"""How the worker keeps in touch with its broker."""

from __future__ import annotations

from typing import Any

from celery.worker.consumer import Consumer
from kombu.exceptions import OperationalError

ALONE = {"without_mingle": True, "without_gossip": True}
"""Workers have nothing to ask each other: the ledger knows. Asking takes a second of each start."""


class PatientConsumer(Consumer):
    """Connects again whenever the broker goes away.

    Celery ends the worker when that happens at a moment in which kombu says so by an error of its own, as while it
    sends its first messages.
    """

    connection_errors: tuple[type[Exception], ...]

    def __init__(self, *args: Any, **options: Any) -> None:
        options["worker_options"] = {**(options.get("worker_options") or {}), **ALONE}
        super().__init__(*args, **options)
        self.connection_errors = (*self.connection_errors, OperationalError)
