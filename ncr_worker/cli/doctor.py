"""Whether everything that the settings name is there, works, and is safe; else what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ncr_worker.cli.options import examples

if TYPE_CHECKING:
    from rich.text import Text

    from ncr_worker.checks import Finding

commands = typer.Typer()

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}
NAMES_WIDTH = 13

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: the findings, and the worst of their levels")]


@commands.command(
    epilog=examples("ncr doctor", "ncr doctor --json | jq '.findings[] | select(.level != \"ok\")'"),
)
def doctor(as_json: AsJson = False) -> None:
    """Check every connection and setting, and say what to do.

    Settings, database and migrations, connections against the server's limit, catalog, Redis, broker, result backend,
    S3 bucket, validator, SFTP (host key, login, writing), work folder, clock, memory: in 20 seconds at most. Nothing
    that lasts is changed, and no secret is printed. Exit code 0: no errors; 1: something has to be done.
    """
    import logging

    from ncr_worker.cli.session import console

    found: list[tuple[str, Finding]] = []
    out = None if as_json else console()
    logging.disable()  # what a library logs of a failure is in the findings
    try:
        for name, finding in _findings():
            found.append((name, finding))
            if out:
                out.print(_line(name, finding))
    finally:
        logging.disable(logging.NOTSET)
    levels = [finding.level.value for _, finding in found]
    worst = next(level for level in reversed(MARKS) if level in levels)
    if out:
        counts = [f"{levels.count(level)} {level}" for level in MARKS if level in levels]
        out.print(", ".join(counts), style=MARKS[worst][1])
    else:
        _print_json(worst, found)
    raise typer.Exit(1 if worst == "error" else 0)


def _findings() -> Iterator[tuple[str, Finding]]:
    from ncr_worker.checks import examine
    from ncr_worker.checks.finding import error
    from ncr_worker.errors import ConfigError
    from ncr_worker.settings import load_settings, mask_passwords

    try:
        settings = load_settings()
    except ConfigError as wrong:  # without settings there is nothing to look at
        yield "settings", error("settings", mask_passwords(wrong.problem), wrong.setting, wrong.remedy)
        return
    yield from examine(settings)


def _line(name: str, finding: Finding) -> Text:
    from rich.text import Text

    mark, style = MARKS[finding.level.value]
    text = Text.assemble((f"{mark} ", f"bold {style}"), (f"{name:{NAMES_WIDTH}}", "bold"), finding.what)
    text.append(f"\n  {'':{NAMES_WIDTH}}{finding.setting} {finding.problem}" if finding.problem else "", style=style)
    text.append(f"\n  {'':{NAMES_WIDTH}}{finding.remedy}" if finding.remedy else "")
    return text


def _print_json(worst: str, found: list[tuple[str, Finding]]) -> None:
    import json
    from dataclasses import asdict

    findings = [{"check": name, **asdict(finding)} for name, finding in found]
    typer.echo(json.dumps({"level": worst, "findings": findings}, indent=2, ensure_ascii=False))
