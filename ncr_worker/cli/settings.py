"""Settings and version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ncr_worker.cli.options import AsJson, examples

if TYPE_CHECKING:
    from ncr_worker.settings import Settings

commands = typer.Typer()


@commands.command(
    epilog=examples("ncr settings", "ncr settings --sample > .env", "ncr settings --json | jq .REDIS_URL")
)
def settings(
    sample: Annotated[bool, typer.Option("--sample", help="Print env_sample: each setting with its default")] = False,
    as_json: AsJson = False,
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
    if as_json:
        typer.echo(_document(current))
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


def _document(current: Settings) -> str:
    import json

    from ncr_worker.settings import mask_passwords

    values = {name.upper(): value for name, value in current.model_dump(mode="json").items()}
    return mask_passwords(json.dumps(values, indent=2, ensure_ascii=False))


@commands.command(epilog=examples("ncr version"))
def version() -> None:
    """Print the version."""
    from ncr_worker import __version__

    typer.echo(f"ncr_worker {__version__}")
