"""Look at one job: what it would deliver, how it went."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.tree import Tree

    from ncr_worker.app import App
    from ncr_worker.job import Job
    from ncr_worker.pipelines.deliver.preview import Preview

commands = typer.Typer()

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON")]


@commands.command()
def plan(
    job: Annotated[str, typer.Argument(help="The job's id in the catalog")],
    row_id: Annotated[int | None, typer.Option(help="Its row in the catalog")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a delivery would put where, and what it needs, without doing anything."""
    from pydantic import ValidationError
    from rich.console import Console

    from ncr_worker.errors import Rejected
    from ncr_worker.pipelines.deliver.model import PlanArgs

    try:
        args = PlanArgs(job_id=job, row_id=row_id)
    except ValidationError as error:
        raise Rejected(f"{job!r}: {error.errors()[0]['msg']}") from error
    with _app() as app:
        planned = app.plan(args)
    if as_json:
        typer.echo(planned.model_dump_json(indent=2))
        return
    console = Console()
    console.print(_tree(planned))
    console.print(
        f"{planned.total_files:,} files, {planned.total_bytes:,} bytes; "
        f"needs {planned.disk_bytes:,} bytes of disk and {planned.memory_bytes:,} of memory on a worker host",
        highlight=False,
    )
    for key in planned.left_out:
        console.print(f"left out: {key}", style="bright_black", markup=False, highlight=False)


@commands.command()
def job(
    task: Annotated[str, typer.Argument(help="The task_id of the answer to the submit")], as_json: AsJson = False
) -> None:
    """Show how a job stands; of one that has ended the validator's answer and the receipt."""
    import json

    with _app() as app:
        found = app.ledger.reads.job(task)
    typer.echo(json.dumps(_facts(found), indent=2) if as_json else "\n".join(_lines(found)))


@contextmanager
def _app() -> Iterator[App]:
    from ncr_worker.app import App
    from ncr_worker.cli.database import require_current
    from ncr_worker.settings import load_settings

    settings = load_settings()
    require_current(settings)
    app = App(settings)
    try:
        yield app
    finally:
        app.close()


def _tree(planned: Preview) -> Tree:
    """The target folder as it would be."""
    from rich.text import Text
    from rich.tree import Tree

    root = Tree(Text(f"{planned.server}:{planned.target}"))
    branches: dict[tuple[str, ...], Tree] = {}
    for file in planned.files:
        *folders, name = file.target.removeprefix(f"{planned.folder}/").split("/")
        branch = root
        for depth, folder in enumerate(folders, 1):
            path = tuple(folders[:depth])
            branch = branches[path] = branches.get(path) or branch.add(Text(f"{folder}/"))
        branch.add(Text(f"{name}  {file.size:,}  <- {file.key}"))
    return root


def _facts(found: Job) -> dict[str, Any]:
    kept = found.result or {}
    return {
        "task_id": found.id,
        "kind": found.kind,
        "job_id": found.ref,
        "state": found.state,
        "stage": found.stage,
        "reason": found.reason,
        "attempt": found.attempt,
        "error": {"code": found.error_code, "detail": found.error} if found.error_code else None,
        "verdict": kept.get("verdict"),
        "receipt": kept.get("receipt"),
    }


def _lines(found: Job) -> Iterator[str]:
    facts = _facts(found)
    verdict, receipt, error = facts.pop("verdict"), facts.pop("receipt"), facts.pop("error")
    yield from (f"{name:9} {value}" for name, value in facts.items() if value is not None)
    if error:
        yield f"error     {error['code']}: {error['detail']}"
    if verdict:
        yield f"verdict   {verdict['result']}: {verdict['answer']}"
    if receipt:
        yield f"delivered {receipt['delivered_at']} to {receipt['server']}:{receipt['target']} ({receipt['host_key']})"
        for file in receipt["files"]:
            yield f"  {file['sha256']}  {file['size']:>12,}  {file['target']}"
