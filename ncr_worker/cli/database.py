"""The ledger's database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ncr_worker.settings import Settings
    from ncr_worker.sql import Database

commands = typer.Typer(help="Prepare the database of the jobs.", no_args_is_help=True)


@commands.callback()
def db() -> None:
    """Prepare the database of the jobs."""


@commands.command()
def upgrade() -> None:
    """Make or update the tables. Safe to run again, and while nothing else runs."""
    from ncr_worker.ledger import schema
    from ncr_worker.settings import load_settings

    settings = load_settings()
    settings.work_folder.mkdir(parents=True, exist_ok=True)  # where SQLite lies by default
    with _opened(settings) as database:
        typer.echo(f"the database is at revision {schema.upgrade(database)}")


def require_current(settings: Settings) -> None:
    """Raises ConfigError when the tables are missing or old. A database that is away is not this process's end."""
    from ncr_worker.ledger import schema
    from ncr_worker.sql import DatabaseAway

    settings.work_folder.mkdir(parents=True, exist_ok=True)
    with _opened(settings) as database:
        try:
            schema.require_current(database)
        except DatabaseAway as error:
            typer.echo(f"ncr: {error}; starting all the same", err=True)


@contextmanager
def _opened(settings: Settings) -> Iterator[Database]:
    from ncr_worker.sql import Database

    database = Database(settings.ledger_url)
    try:
        yield database
    finally:
        database.close()
