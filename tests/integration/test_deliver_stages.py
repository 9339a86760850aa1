"""Deliveries through real S3, validator and SFTP servers, stage by stage."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko
import pytest
from deliveries import STAGES, World, a_world, as_delivered
from services import OpenSSH
from sqlalchemy import select

from ncr_worker.errors import Cancelled, ConfigError, NcrError, Rejected, Transient
from ncr_worker.pipelines.deliver.catalog import delivery, delivery_history, job_details, model_validation
from ncr_worker.pipelines.deliver.collect import zip_path
from ncr_worker.pipelines.deliver.publish import abandon
from ncr_worker.sandbox.process import ServerProcess
from ncr_worker.sandbox.s3 import S3
from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.sandbox.validator import Validator
from ncr_worker.sql import Database


@pytest.fixture(params=["sftp", "openssh"])
def target(request: pytest.FixtureRequest) -> SFTP | OpenSSH:
    server: SFTP | OpenSSH = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def world(s3: S3, validator: Validator, target: ServerProcess, tmp_path: Path) -> Iterator[World]:
    world = a_world(s3, validator, target, tmp_path)
    yield world
    world.close()


@pytest.fixture
def small_world(s3: S3, validator: Validator, sftp: SFTP, tmp_path: Path) -> Iterator[World]:
    """Where it makes no difference which SFTP server it is."""
    world = a_world(s3, validator, sftp, tmp_path)
    yield world
    world.close()


# --- the whole way ------------------------------------------------------------------------------------
def test_a_delivery_puts_every_file_in_its_place(world: World) -> None:
    run = world.run()
    done = world.deliver(run)
    assert world.delivered() == as_delivered(world)
    assert world.hidden() == []
    assert done.left_out == (world.key("source_photo.jpg"),)
    assert run.held == [f"deliver-target:{world.sku}"]
    assert done.receipt is not None
    assert done.receipt.host_key == world.settings.sftp_host_keys[0]
    assert done.receipt.verdict.result == "Valid"
    contents = as_delivered(world)
    assert {item.target: item.sha256 for item in done.receipt.files} == {
        f"{world.sku}/{path}": hashlib.sha256(content).hexdigest() for path, content in contents.items()
    }
    assert done.receipt.total_bytes == sum(map(len, contents.values()))


def test_a_second_delivery_replaces_the_first_as_a_whole(world: World) -> None:
    world.deliver(world.run())
    (world.root / world.sku / "stray.txt").write_text("not ours")
    world.put("Materials/oak.png", b"another grain")
    world.deliver(world.run())
    assert world.delivered() == as_delivered(world)
    assert world.hidden() == []


def test_earlier_deliveries_are_kept_as_many_as_wished(world: World) -> None:
    for day, content in enumerate((b"one", b"two", b"three", b"four"), 1):
        world.put("Docs/sheet.csv", content)
        world.deliver(world.run(sftp_backups=2))
        os.utime(world.root / world.sku, (86_400 * day, 86_400 * day))  # SFTP tells times in whole seconds
    kept = [(world.root / name / "docs/sheet.csv").read_bytes() for name in world.hidden()]
    assert sorted(kept) == [b"three", b"two"]
    assert world.delivered()["docs/sheet.csv"] == b"four"


def test_progress_reaches_the_whole(small_world: World) -> None:
    run = small_world.run()
    parcel = small_world.deliver(run, until="plan")
    for name in ("fetch", "pack", "validate", "prepare", "upload"):
        run.told.clear()
        parcel = STAGES[name](run, parcel)
        if name in ("fetch", "upload"):
            last = run.told[-1]
            assert (
                (last["files"], last["bytes"]) == (last["total_files"], last["total_bytes"]) == (5, parcel.total_bytes)
            )
        if name == "pack":
            assert max(told.get("bytes", 0) for told in run.told) == parcel.total_bytes


def test_a_judged_zip_takes_no_disk_while_its_files_are_sent(small_world: World) -> None:
    run = small_world.run()
    parcel = small_world.deliver(run, until="validate")
    assert zip_path(run).stat().st_size == parcel.archive_bytes
    for _ in range(2):  # again, as after a crash
        parcel = STAGES["prepare"](run, parcel)
        assert [path.name for path in run.folder.iterdir()] == ["files"]
    upload = STAGES["upload"](run, parcel)
    assert upload.manifest == {path: len(content) for path, content in as_delivered(small_world).items()}


def test_the_catalog_knows_of_each_delivery_once(small_world: World) -> None:
    run = small_world.run()
    parcel = small_world.deliver(run)
    STAGES["confirm"](run, parcel)  # again, as after a crash
    database = Database(small_world.settings.ledger_url)
    with database.engine.connect() as connection:
        assert connection.execute(select(delivery.c.state, delivery.c.deliveries, delivery.c.files)).all() == [
            ("delivered", 1, 5)
        ]
        assert len(connection.execute(select(delivery_history)).all()) == 1
        assert connection.scalar(select(job_details.c.status)) == "delivered"
        answer = connection.execute(select(model_validation.c.answer)).scalar_one()
        assert answer["data"][0]["files"] == 5
    database.close()


# --- what must not be delivered -----------------------------------------------------------------------
def fails_with(code: str, world: World, *, until: str = "confirm", **settings: Any) -> NcrError:
    """The delivery fails so, and after `abandon` nothing of it is on the server."""
    run = world.run(**settings)
    parcel = world.deliver(run, until="plan") if until != "plan" else None
    with pytest.raises(NcrError) as caught:
        world.deliver(run, until=until)
    assert caught.value.code == code
    if parcel is not None and code not in ("sftp_host_key", "sftp_auth_failed", "sftp_unreachable"):
        abandon(run, parcel)
    assert world.hidden() == []
    return caught.value


def test_what_the_validator_rejects_is_not_delivered(small_world: World) -> None:
    small_world.put("Materials/oak.glb", b"not a model")
    error = fails_with("validation_failed", small_world)
    assert isinstance(error, Rejected)
    assert "oak.glb: not a binary glTF file" in str(error)
    assert small_world.delivered() == {}


def test_a_warning_passes(small_world: World) -> None:
    small_world.put("Materials/oak.png", bytes(5_000_000))
    done = small_world.deliver(small_world.run())
    assert done.receipt is not None
    assert done.receipt.verdict.result == "Warning"


def test_a_validator_that_is_busy_says_when_to_come_again(
    s3: S3, validator: Validator, sftp: SFTP, tmp_path: Path
) -> None:
    world = a_world(s3, validator, sftp, tmp_path, sku="X-flaky")
    run = world.run()
    parcel = world.deliver(run, until="pack")
    for _ in range(2):
        with pytest.raises(Transient) as caught:
            STAGES["validate"](run, parcel)
        assert (caught.value.code, caught.value.retry_in) == ("validator_unavailable", 1.0)
    assert STAGES["validate"](run, parcel).verdict is not None
    world.close()


def test_a_validator_with_another_key_is_a_matter_of_settings(small_world: World) -> None:
    changed = small_world.settings.model_validate(small_world.settings.model_dump() | {"validator_api_key": "wrong"})
    assert isinstance(
        fails_with("validator_denied", small_world, validator_api_key=changed.validator_api_key), ConfigError
    )


def test_a_missing_object_is_named_by_the_plan(small_world: World) -> None:
    with small_world.client() as client:
        client.delete_object(Bucket=small_world.s3.bucket, Key=small_world.key("Materials/oak.png"))
    assert "Materials/oak.png" in str(fails_with("s3_missing", small_world, until="plan"))


@pytest.mark.parametrize(("change", "code"), [("remove", "s3_missing"), ("replace", "s3_changed")])
def test_an_object_that_changes_after_the_plan_fails_the_job(small_world: World, change: str, code: str) -> None:
    run = small_world.run()
    parcel = small_world.deliver(run, until="plan")
    if change == "replace":
        small_world.put("Materials/oak.png", bytes(70_000))
    else:
        with small_world.client() as client:
            client.delete_object(Bucket=small_world.s3.bucket, Key=small_world.key("Materials/oak.png"))
    with pytest.raises(Rejected) as caught:
        STAGES["fetch"](run, parcel)
    assert caught.value.code == code


def test_files_that_are_here_already_are_hashed_not_fetched(small_world: World) -> None:
    run = small_world.run()
    planned = small_world.deliver(run, until="plan")
    fetched = STAGES["fetch"](run, planned)
    assert STAGES["fetch"].intact is not None
    assert not STAGES["fetch"].intact(run, planned)  # as by a version that worked out the hashes later
    with small_world.client() as client:
        for item in planned.items:
            client.delete_object(Bucket=small_world.s3.bucket, Key=item.key)
    assert STAGES["fetch"](run, planned) == fetched
    contents = as_delivered(small_world)
    assert {item.target.partition("/")[2]: item.sha256 for item in fetched.items} == {
        path: hashlib.sha256(content).hexdigest() for path, content in contents.items()
    }


def test_a_cancelled_transfer_stops_and_leaves_nothing(world: World) -> None:
    run = world.run()
    parcel = world.deliver(run, until="prepare")
    run.while_moving = _raise_cancelled
    with pytest.raises(Cancelled):
        STAGES["upload"](run, parcel)
    run.while_moving = None
    abandon(run, parcel)
    assert world.hidden() == []
    assert world.delivered() == {}


def _raise_cancelled() -> None:
    raise Cancelled("by test")


# --- the SFTP server is who it should be ------------------------------------------------------------------
@pytest.mark.parametrize("pins", [(), ("SHA256:somebodyelse",)])
def test_an_unpinned_host_key_is_refused_before_credentials_are_sent(
    world: World, pins: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    for name in ("auth_password", "auth_publickey", "auth_none", "auth_interactive"):
        monkeypatch.setattr(paramiko.Transport, name, lambda *_args, name=name, **_named: sent.append(name))
    error = fails_with("sftp_host_key", world, sftp_host_keys=pins)
    assert isinstance(error, ConfigError)
    assert world.settings.sftp_host_keys[0] in str(error)
    assert sent == []


def test_wrong_credentials_are_a_matter_of_settings(small_world: World) -> None:
    fails_with("sftp_auth_failed", small_world, sftp_user="nobody-here")


def test_a_server_that_is_not_there_is_worth_another_try(small_world: World) -> None:
    assert isinstance(fails_with("sftp_unreachable", small_world, sftp_port=1), Transient)
