"""The command `ncr`. A module here exposes `commands`, a Typer app; it imports what is slow inside its commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from ncr_worker.cli import (
    database,
    doctor,
    health,
    jobs,
    memory,
    orders,
    plan,
    processes,
    sandbox,
    settings,
    submit,
)
from ncr_worker.errors import ConfigError, NcrError

PANELS = {
    "Jobs": (submit, jobs, orders, plan),
    "Services": (processes, health, memory),
    "Try it out": (sandbox,),
    "Setup": (doctor, settings),
}

app = typer.Typer(
    name="ncr",
    help="Memory-aware batch jobs: submit them, follow them, run the services.",
    epilog="`ncr COMMAND --help` has examples. Settings come from the environment and .env: `ncr settings` shows them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for panel, modules in PANELS.items():
    for module in modules:
        for command in (*module.commands.registered_commands, *module.commands.registered_groups):
            command.rich_help_panel = panel
        app.add_typer(module.commands)
app.add_typer(database.commands, name="db", rich_help_panel="Setup")


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; `args` default to those of the process. Exits with 2 when a setting is wrong."""
    try:
        app(args=list(args) if args is not None else None)
    except NcrError as error:
        more = "; ncr doctor says why" if error.code == "database_unavailable" else ""
        print("ncr:", " ".join(str(error).split()) + more, file=sys.stderr)  # drivers write several lines
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from error
