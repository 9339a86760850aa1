"""Store jobs, one or a file of them, and wait for their end when asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ncr_worker.cli.options import AsJson, CatalogJob, CatalogRow, Key, Wait, examples
from ncr_worker.cli.session import actor, hint, opened, print_json

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ncr_worker.ledger.idempotency import Stored

KIND = "deliver"

commands = typer.Typer()


@commands.command(
    epilog=examples(
        "ncr submit 4711 --user ann --campaign spring",
        "ncr submit 4711 --user ann --campaign spring --wait",
        "ncr submit 4711 --user ann --campaign spring --key order-4711 --json",
    )
)
def submit(
    job: CatalogJob,
    user: Annotated[str, typer.Option(help="Whose job it is")],
    campaign: Annotated[str, typer.Option(help="What it belongs to")],
    row_id: CatalogRow = None,
    wait: Wait = False,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Deliver the files of one job.

    Once this has named its task the job is stored, and runs whether or not this command does. Exit code 1: it was
    refused, nothing is stored.
    """
    from ncr_worker.cli.follow import wait_for_job
    from ncr_worker.pipelines.deliver.model import DeliverArgs
    from ncr_worker.views.answers import accepted

    args = checked(DeliverArgs, job_id=job, username=user, campaign=campaign, row_id=row_id)
    with opened() as app:
        stored = app.submit(KIND, args, actor=actor(), key=key)
        answer = accepted(args, stored)
        _tell(answer, f"{answer.job_id}: {_said(stored)}; task {answer.task_id}", as_json, wait)
        if wait:
            raise typer.Exit(wait_for_job(app, answer.task_id, as_json=as_json))
    if not as_json:
        hint(f"see it with: ncr job {answer.task_id} --watch")


@commands.command(
    epilog=examples(
        "ncr batch orders.csv --wait",
        "cat orders.ndjson | ncr batch - --key orders-2026-11-22",
        "CSV begins with the line job_id,username,campaign,row_id; row_id may be empty or left out.",
    )
)
def batch(
    file: Annotated[
        typer.FileBinaryRead,
        typer.Argument(metavar="FILE", help="JSON array, NDJSON (an object a line) or CSV; - is stdin"),
    ],
    wait: Wait = False,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Deliver the jobs in a file.

    All are stored, or none when a line is wrong. At most BATCH_SIZE of them run at once.
    """
    from ncr_worker.cli.batchfile import read
    from ncr_worker.cli.follow import wait_for_batch
    from ncr_worker.errors import Rejected
    from ncr_worker.views.answers import accepted_batch

    many = read(file.name, file.read())
    with opened() as app:
        most = app.settings.max_batch_jobs
        if len(many) > most:
            text = f"{file.name}: {len(many):,} jobs, a batch may have {most:,} (MAX_BATCH_JOBS); send several batches"
            raise Rejected(text, code="batch_too_large")
        tenants = {args.tenant for args in many}
        tenant = tenants.pop() if len(tenants) == 1 else ""
        stored = app.submit_batch(KIND, many, tenant=tenant, actor=actor(), key=key)
        answer = accepted_batch(many, stored)
        _tell(answer, f"{answer.total_jobs} jobs: {_said(stored)}; batch {answer.batch_id}", as_json, wait)
        if wait:
            raise typer.Exit(wait_for_batch(app, answer.batch_id, as_json=as_json))
    if not as_json:
        hint(f"see them with: ncr jobs --batch {answer.batch_id} --watch")


def _said(stored: Stored) -> str:
    return "stored before" if stored.again else stored.message


def _tell(answer: BaseModel, text: str, as_json: bool, wait: bool) -> None:
    if as_json:
        print_json(answer, line=wait)
    else:
        typer.echo(text)


def checked(model: Any, **values: Any) -> Any:
    """The arguments of a job. Raises Rejected, which names the field."""
    from pydantic import ValidationError

    from ncr_worker.cli.batchfile import explain
    from ncr_worker.errors import Rejected

    try:
        return model(**values)
    except ValidationError as error:
        problems = "; ".join(explain(wrong).removeprefix(", ") for wrong in error.errors())
        raise Rejected(f"{values['job_id']!r}: {problems}", code="invalid_request") from error
