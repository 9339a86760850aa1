"""The ledger's database."""

from __future__ import annotations

from contextlib import closing

import typer

from ncr_worker.cli.options import examples

commands = typer.Typer(help="Prepare the database of the jobs.", no_args_is_help=True)


@commands.callback()
def db() -> None:
    """Prepare the database of the jobs."""


@commands.command(epilog=examples("ncr db upgrade"))
def upgrade() -> None:
    """Make or update the tables. Safe to run again, and while nothing else runs."""
    from ncr_worker.ledger import schema
    from ncr_worker.settings import load_settings
    from ncr_worker.sql import Database

    with closing(Database(load_settings().ledger_url)) as database:
        typer.echo(f"the database is at revision {schema.upgrade(database)}")
