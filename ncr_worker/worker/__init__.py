"""The worker: Celery pool, feeder, recycling. `celery -A ncr_worker.worker worker` finds `app` here."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # Built at first use: importing a module must not read the environment.
    if name in ("app", "celery"):
        from ncr_worker.worker.celery_app import create_celery

        globals()["app"] = globals()["celery"] = create_celery()
        return globals()[name]
    raise AttributeError(name)
