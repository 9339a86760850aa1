"""Where the memory is, why a job waits, and why it needs so much."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from ncr_worker.cli.options import AsJson, examples
from ncr_worker.cli.session import console, known_job, opened, print_json

if TYPE_CHECKING:
    from ncr_worker.views.explain import JobExplanation

commands = typer.Typer()
group = typer.Typer(invoke_without_command=True)
commands.add_typer(group, name="memory", epilog=examples("ncr memory", "ncr memory --watch", "ncr memory explain 4711"))


@group.callback()
def memory(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Keep it up to date until Ctrl-C")] = False,
    as_json: AsJson = False,
) -> None:
    """Show where the memory of each worker host is.

    A bar for each: what others use, what jobs use, what is reserved for them, what is free. Below it its jobs.
    """
    if context.invoked_subcommand:
        return
    from ncr_worker.cli.follow import keep_up
    from ncr_worker.cli.gauge import memory_view

    with opened() as app:
        if watch:
            keep_up(app.memory.stats, memory_view, as_json=as_json)
            return
        found = app.memory.stats()
    if as_json:
        print_json(found)
    else:
        console().print(memory_view(found, console().width))


@group.command(
    epilog=examples(
        "ncr memory explain 4711",
        "ncr memory explain deliver --user ann",
        "ncr memory explain deliver --need 4000000000 --json",
    )
)
def explain(
    given: Annotated[
        str, typer.Argument(metavar="JOB|KIND", help="A task_id, a job_id of your own (its latest job), or a kind")
    ],
    need: Annotated[int | None, typer.Option(min=0, help="Of a kind: bytes that such a job needs")] = None,
    user: Annotated[str | None, typer.Option(help="Of a kind: whose job it is")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell why a job waits, or whether one of a kind would be taken in; and why it needs so much memory.

    What stands before it, and which running jobs have to end first. A plot of what earlier jobs of its kind took.
    """
    from ncr_worker.cli.gauge import admission_lines, explanation_lines, prediction_view
    from ncr_worker.views.figures import AdmissionExplanation

    with opened() as app:
        if given in app.pipelines:
            found: AdmissionExplanation | JobExplanation = app.memory.explain_admission(given, need, user)
        else:
            found = app.memory.explain_job(known_job(app, given))
    if as_json:
        print_json(found)
        return
    width = console().width
    lines = admission_lines(found) if isinstance(found, AdmissionExplanation) else explanation_lines(found)
    job = None if isinstance(found, AdmissionExplanation) else found.memory
    for line in chain(lines, [""], prediction_view(found.prediction, width, job)):
        console().print(line, soft_wrap=True)
