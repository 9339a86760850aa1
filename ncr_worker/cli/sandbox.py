"""Everything on this machine, without any server of its own: to try things out, and the demo."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ncr_worker.cli.options import examples
from ncr_worker.cli.session import hint

if TYPE_CHECKING:
    from rich.console import Console

    from ncr_worker.sandbox.demo import Outcome
    from ncr_worker.sandbox.launcher import Sandbox

commands = typer.Typer()
sandbox = typer.Typer(invoke_without_command=True)
commands.add_typer(sandbox, name="sandbox")

Folder = Annotated[Path, typer.Option(help="Where all its state lies; removed in the end")]
DEFAULT_FOLDER = Path(".sandbox")
SANDBOX_JOBS = 4


@sandbox.callback(
    subcommand_metavar="[put]",
    epilog=examples("ncr sandbox", "then, in another shell: . .sandbox/env; ncr jobs", "ncr sandbox put chair --job 1"),
)
def start(context: typer.Context, folder: Folder = DEFAULT_FOLDER) -> None:
    """Start Redis, S3, SFTP, validator, API, worker, beat and Flower on free ports; Ctrl-C stops all of it."""
    if context.invoked_subcommand is not None:
        return

    def use(running: Sandbox, console: Console) -> None:
        from ncr_worker.sandbox import addresses, samples

        jobs = samples.sample_jobs(SANDBOX_JOBS)
        samples.store(jobs, running.s3, running.database_url)
        console.print(addresses.table(running))
        console.print(addresses.usage(running, jobs), soft_wrap=True)
        running.watch()

    _in_sandbox(folder, use)


@sandbox.command(
    epilog=examples(
        "ncr sandbox put chair --job 1",
        "ncr sandbox put ~/models/chair --job 1 --sku CHAIR-1",
        "then: . .sandbox/env; ncr plan 1; ncr submit 1 --user ann --campaign spring --wait",
    )
)
def put(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", exists=True, file_okay=False, help="Files of your own")],
    job: Annotated[str, typer.Option(help="Id for the job in the catalog")],
    sku: Annotated[str | None, typer.Option(help="Product they belong to; default: the folder's name")] = None,
    place: Annotated[Path, typer.Option("--sandbox", help="Folder of the running sandbox")] = DEFAULT_FOLDER,
) -> None:
    """Put files of your own into the bucket of a running sandbox, and their job into its catalog.

    For a job that is there already, the catalog then says what this folder holds. Hidden files are left out.
    """
    with _installed():
        from ncr_worker.sandbox.launcher import settings_of
    from ncr_worker.cli.submit import checked
    from ncr_worker.pipelines.deliver.model import PlanArgs
    from ncr_worker.sandbox.upload import upload

    checked(PlanArgs, job_id=job)
    sku = sku or folder.resolve().name
    done = upload(folder, job, sku, settings_of(place))
    left_out = f"; the layout leaves {done.left_out} of them out" if done.left_out else ""
    typer.echo(f"job {job}, sku {sku}: {done.files} files, {done.size:,} bytes{left_out}")
    hint(f"see where they would go with: ncr plan {job}")


@commands.command(epilog=examples("ncr demo", "ncr demo --jobs 8 --keep"))
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Stay up afterwards, until Ctrl-C")] = False,
    jobs: Annotated[int, typer.Option(min=2, help="How many jobs to deliver")] = 24,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Deliver made-up products through a sandbox, watch them, and prove that all of it arrived."""
    outcome: Outcome | None = None

    def use(running: Sandbox, console: Console) -> None:
        from ncr_worker.sandbox import addresses
        from ncr_worker.sandbox.demo import run

        nonlocal outcome
        outcome = run(running, jobs, console)
        if keep:
            console.print(str(outcome), highlight=False)
            console.print(addresses.table(running))
            console.print("Ctrl-C stops all and removes it.", style="bold")
            running.watch()

    number = _in_sandbox(folder, use)
    if outcome is None:
        raise typer.Exit(128 + number)
    typer.echo(outcome)
    raise typer.Exit(outcome.exit_code)


def _in_sandbox(folder: Path, use: Callable[[Sandbox, Console], None]) -> int:
    """Call `use` with a running sandbox; the signal that ended it, or 0. Raises NcrError."""
    from rich.console import Console

    with _installed():
        from ncr_worker.sandbox.launcher import Stopped, running
    console = Console()

    def say(text: str) -> None:
        console.print(text, style="bright_black", markup=False, highlight=False, soft_wrap=True)

    began = time.monotonic()
    try:
        with running(folder, say) as sandbox:
            say(f"all parts are up after {time.monotonic() - began:.1f} s")
            use(sandbox, console)
    except Stopped as stopped:
        say(f"{stopped}: all parts have ended, {folder} is removed")
        return stopped.number
    return 0


@contextmanager
def _installed() -> Iterator[None]:
    """Raises ConfigError when what is imported inside is not there."""
    from ncr_worker.errors import ConfigError

    try:
        yield
    except ModuleNotFoundError as error:
        remedy = "Install the servers too: pip install 'ncr-worker[sandbox]'"
        raise ConfigError("sandbox", f"{error.name} is not installed", remedy) from error
