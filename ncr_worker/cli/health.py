"""Whether all is well."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from ncr_worker.cli.options import AsJson, examples
from ncr_worker.cli.session import hint, print_json, quiet

if TYPE_CHECKING:
    from ncr_worker.views.answers import Health

EXIT_CODES = {"healthy": 0, "degraded": 1, "unhealthy": 2}

commands = typer.Typer()


@commands.command(epilog=examples("ncr health", "ncr health --json | jq -r .status"))
def health(as_json: AsJson = False) -> None:
    """Tell whether jobs can be stored and run.

    Exit code 0: healthy; 1: degraded, jobs are stored but no worker is up, or Redis is away; 2: unhealthy, jobs cannot
    be stored.
    """
    from ncr_worker.app import App
    from ncr_worker.settings import load_settings
    from ncr_worker.views import answers

    with quiet():
        app = App(load_settings())
        try:
            found = answers.health(app.ledger, app.board, datetime.now(UTC))
        finally:
            app.close()
    if as_json:
        print_json(found)
    else:
        hosts = f"{found.workers} worker host{'' if found.workers == 1 else 's'} up"
        typer.echo(f"{found.status}: database {found.database}, Redis {found.redis}, {hosts}")
        for remedy in _remedies(found):
            hint(remedy)
    raise typer.Exit(EXIT_CODES[found.status])


def _remedies(found: Health) -> Iterator[str]:
    if found.database == "not_migrated":
        yield "the tables are missing or old; run: ncr db upgrade"
    elif found.database == "disconnected":
        yield "jobs cannot be stored; check DATABASE_URL and the database itself: ncr doctor"
    elif not found.workers:
        yield "no job runs; start a worker: ncr worker"
    if found.redis == "disconnected":
        yield "nobody sees live progress, and workers get no messages if it is the broker; check REDIS_URL: ncr doctor"
