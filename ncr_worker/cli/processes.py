"""The long-running processes: API, worker, beat, Flower. Each runs in this process, in the foreground."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ncr_worker.cli.options import examples

if TYPE_CHECKING:
    from ncr_worker.settings import Settings

commands = typer.Typer()

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@commands.command(epilog=examples("ncr api", "ncr api --host 0.0.0.0 --workers 4", "ncr api --reload"))
def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: API_HOST")] = None,
    port: Annotated[int | None, typer.Option(help="Port; default: API_PORT")] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Start again when a source file changes")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that serve; not with --reload")] = 1,
) -> None:
    """Serve the HTTP API until SIGTERM or Ctrl-C."""
    import uvicorn

    settings = _guarded("api")
    with _counting_together(workers):
        uvicorn.run(
            "ncr_worker.api:app",
            host=host or settings.api_host,
            port=settings.api_port if port is None else port,
            reload=reload,
            workers=workers,
            timeout_worker_healthcheck=30,  # seconds; on a busy machine a start takes longer than its usual 5
            log_config=None,  # ncr_worker.logs does it
            timeout_graceful_shutdown=10,  # seconds; whoever follows a job would hold it up for as long as that runs
        )


@commands.command(
    context_settings=PASS_ON, epilog=examples("ncr worker", "ncr worker --concurrency 2 --loglevel debug")
)
def worker(context: typer.Context) -> None:
    """Run jobs on this host until SIGTERM. Further options go to `celery worker`, see `celery worker --help`."""
    settings = _guarded("worker")
    _celery("worker", "-n", f"ncr@{settings.host}", *context.args)


@commands.command(context_settings=PASS_ON, epilog=examples("ncr beat"))
def beat(context: typer.Context) -> None:
    """Submit what is due by schedule. Two of them do no harm. Further options go to `celery beat`."""
    _guarded("beat")
    _celery("beat", *context.args)


@commands.command(context_settings=PASS_ON, epilog=examples("ncr flower", "ncr flower --url_prefix=flower"))
def flower(context: typer.Context) -> None:
    """Serve Flower, the dashboard of Celery. Further options go to `celery flower`."""
    from ncr_worker.settings import load_settings

    settings = load_settings()
    _celery("flower", f"--address={settings.api_host}", f"--port={settings.flower_port}", *context.args)


def _guarded(process: str) -> Settings:
    """The settings of a process that may start; what should be known goes to stderr. Raises ConfigError."""
    from ncr_worker.checks import Process, guard
    from ncr_worker.settings import load_settings

    settings = load_settings()
    for note in guard(settings, Process(process)):
        typer.echo(f"ncr: {note}; starting all the same", err=True)
    return settings


def _celery(*arguments: str) -> None:
    """Run a command of Celery in this process; its exit code is ours."""
    from ncr_worker.worker import app

    raise typer.Exit(app.command(list(arguments)))


@contextmanager
def _counting_together(processes: int) -> Iterator[None]:
    """Whichever of several processes Prometheus asks, it answers for all: they count in files that they share."""
    from ncr_worker.metrics import FOLDER

    if processes == 1 or FOLDER in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="ncr-metrics-") as folder:
        os.environ[FOLDER] = folder
        yield
