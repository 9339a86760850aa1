"""What people ask of the service: run again, stop, pause, go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ncr_worker.cli.options import AsJson, BatchId, TaskId, examples
from ncr_worker.cli.session import actor, hint, latest, opened, print_json

if TYPE_CHECKING:
    from ncr_worker.app import App
    from ncr_worker.ledger.pauses import Scope

commands = typer.Typer()

Work = Annotated[bool, typer.Option("--work", help="The start of waiting jobs, not the intake of new ones")]


@commands.command(
    epilog=examples(
        "ncr retry 0b0f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c",
        "ncr retry --batch 7d1c2b3a-4f5e-4a6b-8c7d-9e0f1a2b3c4d",
    )
)
def retry(task: TaskId = None, batch: BatchId = None, as_json: AsJson = False) -> None:
    """Run a job again that failed or was cancelled, or the failed jobs of a batch.

    From the first step, with all its attempts. Exit code 1: one was refused.
    """
    from ncr_worker.views.answers import BatchRetried

    with opened() as app:
        if job := _one(app, task, batch):
            app.retry(job, actor=actor())
            _tell(app, job, "will run again", as_json)
            return
        found = app.retry_batch(batch or "", actor=actor())
    if as_json:
        print_json(BatchRetried(batch_id=batch or "", retried=found.job_ids, refused=found.refused))
    else:
        typer.echo(f"{len(found.job_ids)} failed jobs of batch {batch} will run again")
    for job, why in found.refused.items():
        hint(f"ncr: {job}: {why}")
    if found.refused:
        raise typer.Exit(1)


@commands.command(
    epilog=examples(
        "ncr cancel 0b0f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c",
        "ncr cancel --batch 7d1c2b3a-4f5e-4a6b-8c7d-9e0f1a2b3c4d",
    )
)
def cancel(task: TaskId = None, batch: BatchId = None, as_json: AsJson = False) -> None:
    """Stop a job, or all of a batch.

    A waiting job ends at once, a running one when it hears of it. What they have left outside is cleaned up.
    """
    from ncr_worker.job import State
    from ncr_worker.views.answers import BatchCancelled

    with opened() as app:
        if job := _one(app, task, batch):
            ended = app.cancel(job, actor=actor()) is State.CANCELLED
            _tell(app, job, "is cancelled" if ended else "was asked to stop", as_json)
            return
        cancelled = app.cancel_batch(batch or "", actor=actor())
    if as_json:
        print_json(BatchCancelled(batch_id=batch or "", cancelled=cancelled))
    else:
        typer.echo(f"{len(cancelled)} jobs of batch {batch} were asked to stop")


@commands.command(epilog=examples('ncr pause --note "the bucket is being moved"', "ncr pause --work"))
def pause(
    work: Work = False,
    note: Annotated[str, typer.Option(help="Why, for those who wonder")] = "",
    as_json: AsJson = False,
) -> None:
    """Take in no more jobs, or start no more of them.

    Submits are refused, over HTTP with 503, until ncr resume. With --work: waiting jobs are not started; what runs
    goes on.
    """
    with opened() as app:
        app.pause(_scope(work), actor=actor(), note=note)
        effect = "waiting jobs are not started" if work else "new jobs are refused"
        _tell_pauses(app, f"paused: {effect} until: ncr resume{' --work' if work else ''}", as_json)


@commands.command(epilog=examples("ncr resume", "ncr resume --work"))
def resume(work: Work = False, as_json: AsJson = False) -> None:
    """End a pause."""
    with opened() as app:
        resumed = app.resume(_scope(work), actor=actor())
        effect = "waiting jobs are started" if work else "new jobs are taken in"
        _tell_pauses(app, f"{'resumed' if resumed else 'it was not paused'}: {effect}", as_json)


def _one(app: App, task: str | None, batch: str | None) -> str | None:
    """The task, or None when a batch was named. Raises NotFound: only a task_id tells surely which job is meant."""
    from ncr_worker.errors import NotFound

    if (task is None) == (batch is None):
        raise typer.BadParameter("name either a job by its task_id or a batch by --batch")
    try:
        return app.ledger.reads.job(task).id if task else None
    except NotFound:
        if meant := latest(app, task or ""):
            raise NotFound(f"{task} is no task_id; the latest job with this job_id is {meant}") from None
        raise


def _scope(work: bool) -> Scope:
    from ncr_worker.ledger.pauses import Scope

    return Scope.WORK if work else Scope.INTAKE


def _tell(app: App, task_id: str, what: str, as_json: bool) -> None:
    record = app.look.record(task_id)
    if as_json:
        print_json(record)
    else:
        typer.echo(f"{record.job_id} {what}: task {task_id}")


def _tell_pauses(app: App, what: str, as_json: bool) -> None:
    from ncr_worker.views.answers import pause_list

    if as_json:
        print_json(pause_list(app.pauses.active()))
    else:
        typer.echo(what)
