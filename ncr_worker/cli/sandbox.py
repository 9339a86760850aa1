"""Everything on this machine, without any server of its own: to try things out, and the demo."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ncr_worker.sandbox.launcher import Sandbox

commands = typer.Typer()

Folder = Annotated[Path, typer.Option(help="Where all its state lies; removed in the end")]
DEFAULT_FOLDER = Path(".sandbox")
SANDBOX_JOBS = 4


@commands.command()
def sandbox(folder: Folder = DEFAULT_FOLDER) -> None:
    """Start Redis, S3, SFTP, validator, API, worker, beat and Flower on free ports; Ctrl-C stops all of it."""
    with _sandbox(folder) as (running, console):
        from ncr_worker.sandbox import addresses, samples

        jobs = samples.sample_jobs(SANDBOX_JOBS)
        samples.store(jobs, running.s3, running.database_url)
        console.print(addresses.table(running))
        console.print(addresses.usage(running, jobs), soft_wrap=True)
        running.watch()


@commands.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Stay up afterwards, until Ctrl-C")] = False,
    jobs: Annotated[int, typer.Option(min=2, help="How many jobs to deliver")] = 24,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Deliver made-up products through a sandbox, watch them, and prove that all of it arrived."""
    outcome = None
    with _sandbox(folder) as (running, console):
        from ncr_worker.sandbox import addresses
        from ncr_worker.sandbox.demo import run

        outcome = run(running, jobs, console)
        if keep:
            typer.echo(outcome)
            console.print(addresses.table(running))
            running.watch()
    if outcome is None:
        raise typer.Exit(128 + signal.SIGINT)  # stopped before there was anything to tell
    typer.echo(outcome)
    raise typer.Exit(outcome.exit_code)


@contextmanager
def _sandbox(folder: Path) -> Iterator[tuple[Sandbox, Console]]:
    """A running sandbox. A signal to stop ends the `with` block, and is no error."""
    from rich.console import Console

    from ncr_worker.errors import ConfigError

    try:
        from ncr_worker.sandbox.launcher import Stopped, running
    except ModuleNotFoundError as error:
        remedy = "Install the servers too: pip install 'ncr-worker[sandbox]'"
        raise ConfigError("sandbox", f"{error.name} is not installed", remedy) from error
    console = Console()

    def say(text: str) -> None:
        console.print(text, style="bright_black", markup=False, highlight=False, soft_wrap=True)

    began = time.monotonic()
    try:
        with running(folder, say) as sandbox:
            say(f"all parts are up after {time.monotonic() - began:.1f} s")
            yield sandbox, console
    except Stopped as stopped:
        say(f"{stopped}: all parts have ended, {folder} is removed")
