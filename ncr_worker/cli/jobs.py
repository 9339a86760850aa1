"""Look at jobs and batches: lists, one job, live or once."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ncr_worker.cli.options import AsJson, Cursor, Limit, OfUser, examples, moment
from ncr_worker.cli.session import console, hint, known_job, opened, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from ncr_worker.views.models import JobList

commands = typer.Typer()

Time = Annotated[
    datetime | None,
    typer.Option(parser=moment, metavar="TIME", help="2026-11-22, 2026-11-22T09:30 (local time), or 15m, 2h, 7d ago"),
]


@commands.command(
    epilog=examples(
        "ncr jobs --status failed --since 2h",
        "ncr jobs --batch 7d1c2b3a-4f5e-4a6b-8c7d-9e0f1a2b3c4d --watch",
        "ncr jobs --user ann --json | jq -r '.jobs[].task_id'",
    )
)
def jobs(
    kind: Annotated[str | None, typer.Option(help="Only of this kind, e.g. deliver")] = None,
    status: Annotated[str | None, typer.Option(help="Only with this status, e.g. pending, uploading, failed")] = None,
    batch: Annotated[str | None, typer.Option(metavar="ID", help="Only of this batch")] = None,
    user: OfUser = None,
    job_id: Annotated[str | None, typer.Option(help="Only with this job_id of your own")] = None,
    since: Time = None,
    until: Time = None,
    limit: Limit = 20,
    cursor: Cursor = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep the list up to date until Ctrl-C")] = False,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    from ncr_worker.cli.follow import keep_up
    from ncr_worker.cli.show import jobs_table
    from ncr_worker.views.lookup import Filter

    wanted = Filter(kind=kind, status=status, batch=batch, user=user, job_id=job_id, since=since, until=until)
    with opened() as app:

        def look() -> JobList:
            return app.look.jobs(wanted, cursor=cursor, limit=limit)

        if watch:
            keep_up(look, jobs_table, as_json=as_json)
            return
        page = look()
    _print_jobs(page, as_json)


@commands.command(
    epilog=examples(
        "ncr job 0b0f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c --audit",
        "ncr job 4711 --watch",
        "ncr job 4711 --json | jq .receipt",
    )
)
def job(
    given: Annotated[str, typer.Argument(metavar="ID", help="A task_id, or a job_id of your own: its latest job")],
    audit: Annotated[bool, typer.Option("--audit", help="Also everything that has happened to it")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow it to its end; exit code 0: succeeded, 3: it did not")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show all of a job.

    How it stands and why; of one that has ended also the validator's answer and the receipt.
    """
    from ncr_worker.cli.follow import wait_for_job
    from ncr_worker.cli.show import job_lines, report

    with opened() as app:
        task_id = known_job(app, given)
        code = wait_for_job(app, task_id, as_json=as_json) if watch else 0
        found = report(app.look, task_id, audit=audit)
    if as_json:
        print_json(found, line=watch)
    else:
        for line in job_lines(found):
            console().print(line, soft_wrap=True)
    raise typer.Exit(code)


@commands.command(epilog=examples("ncr batches", "ncr batches --user ann --json"))
def batches(
    user: OfUser = None,
    limit: Limit = 20,
    cursor: Cursor = None,
    as_json: AsJson = False,
) -> None:
    """List batches, the newest first.

    The jobs of one: ncr jobs --batch ID.
    """
    from ncr_worker.cli.show import batches_table

    with opened() as app:
        page = app.look.batches(user=user, cursor=cursor, limit=limit)
    if as_json:
        print_json(page)
        return
    _print_page(batches_table(page, console().width), "there is no such batch", page.next_cursor)


def _print_jobs(page: JobList, as_json: bool) -> None:
    from ncr_worker.cli.show import jobs_table

    if as_json:
        print_json(page)
        return
    _print_page(jobs_table(page, console().width), "there is no such job", page.next_cursor)


def _print_page(table: Table, empty: str, cursor: str | None) -> None:
    if table.row_count:
        console().print(table)
    else:
        hint(empty)
    if cursor:
        hint(f"more with --cursor {cursor}")
