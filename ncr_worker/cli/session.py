"""What a command works with: the App, who asks, and where it prints. Data goes to stdout, all else to stderr."""

from __future__ import annotations

import getpass
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

    from ncr_worker.app import App

WIDE = 1000
"""Columns where there is no terminal: what programs read is never cut."""
LONGEST_ACTOR = 120


@contextmanager
def opened() -> Iterator[App]:
    """The App on a database that is ready. Raises ConfigError, DatabaseAway."""
    from ncr_worker.app import App
    from ncr_worker.ledger import schema
    from ncr_worker.settings import load_settings

    with quiet():
        app = App(load_settings())
        try:
            schema.require_current(app.database)
            yield app
        finally:
            app.close()


@contextmanager
def quiet() -> Iterator[None]:
    """A person gets an answer or an error, not the log's warnings among its lines (Redis away: no live figures)."""
    log = logging.getLogger("ncr_worker")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def actor() -> str:
    """Who asks, for the audit trail."""
    try:
        return f"cli:{getpass.getuser()}"[:LONGEST_ACTOR]
    except (KeyError, OSError):  # a container's user may have no name
        return "cli"


def latest(app: App, job_id: str) -> str | None:
    """The task_id of the latest job with this job_id of the user's own."""
    from ncr_worker.views.lookup import Filter

    found = app.look.jobs(Filter(job_id=job_id), limit=1).jobs
    return found[0].task_id if found else None


def known_job(app: App, given: str) -> str:
    """The task_id; of the latest job with this job_id of the user's own, when it is no task_id. Raises NotFound."""
    from ncr_worker.errors import NotFound

    try:
        return app.ledger.reads.job(given).id
    except NotFound:
        if task_id := latest(app, given):
            return task_id
        raise NotFound(f"there is no job with the task_id or job_id {given}; ncr jobs lists them") from None


def console() -> Console:
    from rich.console import Console

    free = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if free else WIDE, markup=False, highlight=False, emoji=False)


def print_json(model: BaseModel, *, line: bool = False) -> None:
    """`line`: on one line, as one of several."""
    typer.echo(model.model_dump_json(indent=None if line else 2))


def hint(text: str) -> None:
    """What a person may want to know besides; no part of the output."""
    typer.echo(text, err=True)
