"""What several commands have in common: their options, and how their help shows examples."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

import typer

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def examples(*lines: str) -> str:
    """An epilog: each line is kept as it is."""
    return "\n\n".join(("Examples:", *lines))


def moment(text: str) -> datetime:
    """`2026-11-22`, `2026-11-22T09:30` (local time, or with a zone), or how long ago: `90s`, `15m`, `2h`, `7d`."""
    number, unit = text[:-1], text[-1:]
    try:
        if unit in UNITS and number.isascii() and number.isdigit():
            return datetime.now().astimezone() - timedelta(**{UNITS[unit]: int(number)})
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        usage = "write it like 2026-11-22, 2026-11-22T09:30, or how long ago: 15m, 2h, 7d"
        raise typer.BadParameter(f"{text!r} is no time; {usage}") from error


def _key(text: str | None) -> str | None:
    if text is not None and not (0 < len(text) <= 200 and text.isascii() and text.isprintable()):
        raise typer.BadParameter("1 to 200 printable ASCII characters")
    return text


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, as the API answers it")]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        callback=_key,
        help="Idempotency key: the same command with the same key stores nothing twice, and gets the first answer",
    ),
]
Wait = Annotated[
    bool, typer.Option("--wait", help="Stay until all has ended; exit code 0: all succeeded, 3: something did not")
]
CatalogJob = Annotated[str, typer.Argument(metavar="JOB", help="The job's id in the catalog")]
CatalogRow = Annotated[int | None, typer.Option("--row-id", help="Its row in the catalog")]
OfUser = Annotated[str | None, typer.Option("--user", help="Only of this user")]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="How many at most")]
Cursor = Annotated[str | None, typer.Option(help="Go on where the page before ended; it has told this cursor")]
TaskId = Annotated[str | None, typer.Argument(metavar="[ID]", help="The task_id of the job", show_default=False)]
BatchId = Annotated[str | None, typer.Option("--batch", metavar="ID", help="All of this batch instead of one job")]
