"""Settings and version."""

from __future__ import annotations

from typing import Annotated

import typer

commands = typer.Typer()


@commands.command()
def settings(
    sample: Annotated[bool, typer.Option("--sample", help="Print env_sample: each setting with its default")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only tell whether they are valid: exit code 0 or 2")] = False,
) -> None:
    """Show the settings that hold here, secrets masked, and what each means."""
    from ncr_worker.settings import env_sample, load_settings

    if sample:
        typer.echo(env_sample(), nl=False)
        return
    current = load_settings()
    if check:
        typer.echo("the settings are valid")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ncr_worker.settings import mask_passwords

    table = Table("setting", "value", "meaning", caption="bold: not the default")
    for name, field in type(current).model_fields.items():
        value = getattr(current, name)
        text = ",".join(value) if isinstance(value, tuple) else mask_passwords(str(value))
        style = "" if value == field.default else "bold"
        table.add_row(name.upper(), Text(text), field.description, style=style)
    Console().print(table)


@commands.command()
def version() -> None:
    """Print the version."""
    from ncr_worker import __version__

    typer.echo(f"ncr_worker {__version__}")
