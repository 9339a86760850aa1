"""The process that publishes is killed at every point: never a second delivery, never none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deliveries import STAGES, LooseRun, World, a_world, as_delivered
from services import OpenSSH

from ncr_worker.pipelines.deliver.model import Delivery
from ncr_worker.pipelines.deliver.publish import abandon
from ncr_worker.sandbox.s3 import S3
from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.sandbox.validator import Validator

PUBLISHER = Path(__file__).parents[1] / "publisher.py"


@pytest.fixture(params=["sftp", "openssh"])
def world(request: pytest.FixtureRequest, s3: S3, validator: Validator, tmp_path: Path) -> Iterator[World]:
    target: SFTP | OpenSSH = request.getfixturevalue(request.param)
    world = a_world(s3, validator, target, tmp_path)
    yield world
    world.close()


def kill_while_publishing(world: World, run: LooseRun, parcel: Delivery, changes: int, way: str) -> None:
    record = world.folder / "parcel.json"
    record.write_text(parcel.model_dump_json())
    environment = os.environ | world.target.env() | {"SFTP_PUBLISH": way, "WORK_FOLDER": str(world.folder)}
    command = [sys.executable, str(PUBLISHER), str(record), run.job.id, str(changes)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.kill()


@pytest.mark.parametrize(
    ("way", "changes", "then"),
    [
        ("rename", 1, "go on"),
        ("rename", 1, "give up"),
        ("rename", 2, "go on"),
        ("symlink", 0, "go on"),
        ("symlink", 1, "give up"),
    ],
)
def test_a_kill_while_publishing_loses_no_delivery(world: World, way: str, changes: int, then: str) -> None:
    world.put("Docs/sheet.csv", b"old")
    world.deliver(world.run(sftp_publish=way))
    before = world.delivered()
    world.put("Docs/sheet.csv", b"new")
    run = world.run(sftp_publish=way)
    parcel = world.deliver(run, until="upload")
    kill_while_publishing(world, run, parcel, changes, way)
    again = world.run(job_id=run.job.id, sftp_publish=way)
    published = changes == (2 if way == "rename" else 1)
    if then == "go on":
        for name in ("publish", "confirm"):
            parcel = STAGES[name](again, parcel)
        assert world.delivered() == as_delivered(world)
        assert len(world.hidden()) == (way == "symlink")  # the folder that the link names
        return
    abandon(again, parcel)
    assert world.delivered() == (as_delivered(world) if published else before)
    staged = [name for name in world.hidden() if ".ncr-new-" in name and not (published or way == "symlink")]
    assert staged == []
