"""The command `ncr`. A module here exposes `commands`, a Typer app; it imports what is slow inside its commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from ncr_worker.cli import database, jobs, processes, sandbox, settings
from ncr_worker.errors import ConfigError, NcrError

app = typer.Typer(
    name="ncr",
    help="Memory-aware batch jobs: run the services, try them out, prepare the database.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for module in (processes, jobs, sandbox, settings):
    app.add_typer(module.commands)
app.add_typer(database.commands, name="db")


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; `args` default to those of the process. Exits with 2 when a setting is wrong."""
    try:
        app(args=list(args) if args is not None else None)
    except NcrError as error:
        print("ncr:", " ".join(str(error).split()), file=sys.stderr)  # drivers write several lines
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from error
