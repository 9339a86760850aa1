"""Look at a delivery before it is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from ncr_worker.cli.options import AsJson, CatalogJob, CatalogRow, examples
from ncr_worker.cli.session import console, opened, print_json
from ncr_worker.cli.submit import checked

if TYPE_CHECKING:
    from rich.tree import Tree

    from ncr_worker.pipelines.deliver.preview import Preview

commands = typer.Typer()


@commands.command(epilog=examples("ncr plan 4711", "ncr plan 4711 --json | jq '.files[].target'"))
def plan(
    job: CatalogJob,
    row_id: CatalogRow = None,
    as_json: AsJson = False,
) -> None:
    """Show what a delivery would put where, and what it needs, without doing anything."""
    from rich.filesize import decimal

    from ncr_worker.cli.show import clean
    from ncr_worker.pipelines.deliver.model import PlanArgs

    args = checked(PlanArgs, job_id=job, row_id=row_id)
    with opened() as app:
        planned = app.plan(args)
    if as_json:
        print_json(planned)
        return
    out = console()
    out.print(_tree(planned))
    out.print(
        f"{planned.total_files:,} files, {decimal(planned.total_bytes)}; needs {decimal(planned.disk_bytes)} of disk "
        f"and {decimal(planned.memory_bytes)} of memory on a worker host",
        soft_wrap=True,
    )
    for key in planned.left_out:
        out.print(f"left out: {clean(key)}", style="bright_black", soft_wrap=True)


def _tree(planned: Preview) -> Tree:
    """The target folder as it would be."""
    from rich.filesize import decimal
    from rich.text import Text
    from rich.tree import Tree

    from ncr_worker.cli.show import clean

    root = Tree(Text(clean(f"{planned.server}:{planned.target}")))
    branches: dict[tuple[str, ...], Tree] = {}
    for file in planned.files:
        *folders, name = file.target.removeprefix(f"{planned.folder}/").split("/")
        branch = root
        for depth, folder in enumerate(folders, 1):
            path = tuple(folders[:depth])
            branch = branches[path] = branches.get(path) or branch.add(Text(clean(f"{folder}/")))
        branch.add(Text(clean(f"{name}  {decimal(file.size)}  <- {file.key}")))
    return root
