"""What SFTP servers and the way to them can do to a delivery."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from deliveries import STAGES, LooseRun, World, a_world, as_delivered, largest
from hashing import hashing_sftp
from paramiko.sftp_server import _hash_class  # type: ignore[attr-defined]
from proxy import Proxy, proxy_to
from services import OpenSSH
from small_disk import small_disk
from wilful import PASSWORD, WilfulSftp, wilful_sftp

from ncr_worker.errors import ConfigError, NcrError, Rejected, StageError, Transient
from ncr_worker.pipelines.deliver.model import Delivery
from ncr_worker.pipelines.deliver.publish import abandon
from ncr_worker.sandbox.s3 import S3
from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.sandbox.validator import Validator
from ncr_worker.settings import Settings
from ncr_worker.stores.sftp import target as sftp_target

LARGE = 24_000_000
MIB = 1024 * 1024


@pytest.fixture(params=["sftp", "openssh"])
def target(request: pytest.FixtureRequest) -> SFTP | OpenSSH:
    server: SFTP | OpenSSH = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def path(target: SFTP | OpenSSH) -> Iterator[Proxy]:
    with proxy_to(target.port) as proxy:
        yield proxy


@pytest.fixture
def world(s3: S3, validator: Validator, target: SFTP | OpenSSH, tmp_path: Path) -> Iterator[World]:
    world = a_world(s3, validator, target, tmp_path)
    yield world
    world.close()


@pytest.fixture
def wilful(tmp_path: Path) -> Iterator[WilfulSftp]:
    with wilful_sftp(tmp_path / "wilful") as server:
        yield server


@pytest.fixture
def wilful_world(s3: S3, validator: Validator, wilful: WilfulSftp, tmp_path: Path) -> Iterator[World]:
    world = a_world(s3, validator, wilful, tmp_path)
    yield world
    world.close()


def patiently(run: LooseRun, name: str, parcel: Delivery, tries: int = 5) -> Delivery:
    """A stage as the runner does it, without the pauses."""
    for _ in range(tries - 1):
        try:
            return STAGES[name](run, parcel)
        except Transient:
            continue
    return STAGES[name](run, parcel)


def failure(run: LooseRun, parcel: Delivery, *names: str) -> NcrError:
    """Of the first of these stages that fails."""
    try:
        for name in names:
            parcel = STAGES[name](run, parcel)
    except NcrError as error:
        return error
    pytest.fail(f"{' and '.join(names)} did not fail")


# --- the way there ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_after_a_cut_only_what_is_missing_is_sent(world: World, path: Proxy, share: float) -> None:
    world.put("GLB_files/chair.glb", b"glTF" + random.Random(share).randbytes(LARGE))
    run = world.run(sftp_port=path.port)
    parcel = world.deliver(run, until="prepare")
    before = path.sent
    path.cut_after = before + int(share * parcel.total_bytes)
    parcel = patiently(run, "upload", parcel)
    assert path.cuts == 1
    assert path.sent - before <= 1.1 * parcel.total_bytes
    STAGES["publish"](run, parcel)
    assert world.delivered() == as_delivered(world)
    assert world.hidden() == []


def test_a_path_that_stalls_is_left_in_time_and_the_rest_is_sent(world: World, path: Proxy) -> None:
    run = world.run(sftp_port=path.port, sftp_timeout=2)
    parcel = world.deliver(run, until="prepare")
    path.stall_after = path.sent + parcel.total_bytes // 2
    began = time.monotonic()
    error = failure(run, parcel, "upload")
    assert (type(error), error.code) == (Transient, "sftp_cut")
    assert time.monotonic() - began < 10
    path.stall_after = None
    STAGES["publish"](run, patiently(run, "upload", parcel))
    assert world.delivered() == as_delivered(world)


def test_a_slow_path_is_no_stall(world: World, path: Proxy) -> None:
    run = world.run(sftp_port=path.port, sftp_timeout=2)
    parcel = world.deliver(run, until="prepare")
    path.delay = 0.01
    STAGES["publish"](run, STAGES["upload"](run, parcel))
    assert path.connections == 1
    assert world.delivered() == as_delivered(world)


# --- the server's disk and rights -------------------------------------------------------------------------
def test_a_full_disk_is_named_and_room_is_all_that_is_needed(
    s3: S3, validator: Validator, target: SFTP | OpenSSH, tmp_path: Path
) -> None:
    name = f"small-{target.name}"
    with small_disk(target.root / name, 1 * MIB) as resize:
        world = a_world(s3, validator, target, tmp_path, sftp_root=name)
        run = world.run()
        parcel = world.deliver(run, until="prepare")
        error = failure(run, parcel, "upload")
        assert (type(error), error.code) == (Transient, "sftp_disk_full")
        assert "disk is full" in str(error)
        resize(16 * MIB)
        STAGES["publish"](run, STAGES["upload"](run, parcel))
        assert world.delivered() == as_delivered(world)
        again = world.run()
        resize(4 * MIB)
        parcel = world.deliver(again, until="prepare")
        assert failure(again, parcel, "upload").code == "sftp_disk_full"
        abandon(again, parcel)
        assert world.hidden() == []
        assert world.delivered() == as_delivered(world), "the delivery before is still there"
        world.close()


def test_what_the_server_denies_is_not_tried_again(
    s3: S3, validator: Validator, openssh: OpenSSH, tmp_path: Path
) -> None:
    if not openssh.user:
        pytest.skip("NOT TESTED: rights can only be taken away by root")
    closed = openssh.root / "closed"
    closed.mkdir(mode=0o755)
    world = a_world(s3, validator, openssh, tmp_path, sftp_root="closed")
    run = world.run()
    parcel = world.deliver(run, until="validate")
    error = failure(run, parcel, "prepare")
    assert (type(error), error.code) == (Rejected, "sftp_denied")
    abandon(run, parcel)
    assert list(closed.iterdir()) == []
    world.close()
    closed.rmdir()


def test_a_refused_write_leaves_nothing_to_go_on_with(wilful_world: World, wilful: WilfulSftp) -> None:
    """A server that refuses one write and takes the next would leave a gap in a file of the right size."""
    run = wilful_world.run()
    parcel = wilful_world.deliver(run, until="prepare")
    wilful.refuse["write"] = asyncssh.SFTPFailure
    error = failure(run, parcel, "upload")
    assert (type(error), error.code) == (Transient, "sftp_failed")
    wilful.refuse.clear()
    assert not wilful_world.staged(parcel, largest(parcel)).exists()
    STAGES["publish"](run, STAGES["upload"](run, parcel))
    assert wilful_world.delivered() == as_delivered(wilful_world)


def test_one_write_that_is_refused_among_others_is_noticed(wilful_world: World, wilful: WilfulSftp) -> None:
    run = wilful_world.run()
    parcel = wilful_world.deliver(run, until="prepare")

    def once(text: str) -> asyncssh.SFTPError:
        wilful.refuse.clear()
        return asyncssh.SFTPFailure(text)

    wilful.refuse["write"] = once
    error = failure(run, parcel, "upload")
    assert (type(error), error.code) == (Transient, "sftp_failed")
    STAGES["publish"](run, STAGES["upload"](run, parcel))
    assert wilful_world.delivered() == as_delivered(wilful_world)


def test_a_file_of_which_the_server_lost_a_part_is_not_gone_on_with(wilful_world: World, wilful: WilfulSftp) -> None:
    run = wilful_world.run()
    parcel = wilful_world.deliver(run, until="prepare")
    wilful.forgetful = True
    error = failure(run, parcel, "upload")
    assert (type(error), error.code) == (Transient, "sftp_failed")
    assert not wilful_world.staged(parcel, largest(parcel)).exists()
    wilful.forgetful = False
    STAGES["publish"](run, STAGES["upload"](run, parcel))
    assert wilful_world.delivered() == as_delivered(wilful_world)


# --- who the server is ------------------------------------------------------------------------------------
@pytest.mark.parametrize("pins", [(), ("SHA256:somebodyelse",)])
def test_a_server_that_is_not_pinned_never_sees_the_credentials(
    wilful_world: World, wilful: WilfulSftp, pins: tuple[str, ...]
) -> None:
    run = wilful_world.run(sftp_host_keys=pins)
    parcel = wilful_world.deliver(run, until="validate")
    error = failure(run, parcel, "prepare")
    assert (type(error), error.code) == (ConfigError, "sftp_host_key")
    assert wilful.fingerprint in str(error)
    assert len(wilful.doors) == 1
    assert wilful.logins == []


def test_a_key_that_changed_is_refused_until_it_is_pinned_beside_the_old_one(
    s3: S3, validator: Validator, tmp_path: Path
) -> None:
    with wilful_sftp(tmp_path / "before") as before, wilful_sftp(tmp_path / "after") as after:
        world = a_world(s3, validator, before, tmp_path)
        world.deliver(world.run())
        assert (before.logins[-1][1], after.logins) == (PASSWORD, [])
        moved = world.run(sftp_port=after.port)
        parcel = world.deliver(moved, until="validate")
        assert failure(moved, parcel, "prepare").code == "sftp_host_key"
        assert after.logins == []
        both = (before.fingerprint, after.fingerprint)
        done = world.deliver(world.run(sftp_port=after.port, sftp_host_keys=both))
        assert done.receipt is not None
        assert done.receipt.host_key == after.fingerprint
        world.deliver(world.run(sftp_host_keys=both))
        world.close()


# --- rename -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (asyncssh.SFTPPermissionDenied, Rejected),
        (asyncssh.SFTPOpUnsupported, Rejected),
        (asyncssh.SFTPFailure, Transient),
    ],
)
def test_a_server_that_refuses_to_rename_is_told_about_with_the_remedy(
    wilful_world: World, wilful: WilfulSftp, error: type[asyncssh.SFTPError], kind: type[StageError]
) -> None:
    wilful_world.deliver(wilful_world.run())
    before = wilful_world.delivered()
    wilful_world.put("Docs/sheet.csv", b"new")
    run = wilful_world.run()
    parcel = wilful_world.deliver(run, until="upload")
    wilful.refuse["rename"] = error
    refused = failure(run, parcel, "publish")
    assert (type(refused), refused.code) == (kind, "sftp_rename_refused")
    assert "SFTP_PUBLISH=symlink" in str(refused)
    abandon(run, parcel)
    assert wilful_world.delivered() == before
    assert wilful_world.hidden() == []


# --- modes and hashes -------------------------------------------------------------------------------------
def test_modes_are_as_wished(world: World) -> None:
    world.deliver(world.run(sftp_file_mode="0640", sftp_folder_mode="0750"))
    modes = {path.stat().st_mode & 0o777 for path in (world.root / world.sku).rglob("*") if path.is_file()}
    folders = {path.stat().st_mode & 0o777 for path in [world.root / world.sku, world.root / world.sku / "materials"]}
    assert (modes, folders) == ({0o640}, {0o750})


def test_hashes_are_compared_where_the_server_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_hash_class, "sha256", hashlib.sha256)
    content = tmp_path / "content"
    content.write_bytes(bytes(range(256)) * 100)
    right = hashlib.sha256(content.read_bytes()).hexdigest()
    with hashing_sftp(tmp_path / "files") as settings:
        server = sftp_target(Settings.model_validate(settings))
        server.upload(content, "file", sha256=right)
        with (tmp_path / "files" / "file").open("r+b") as stored:
            stored.write(b"not this")
        with pytest.raises(Transient) as caught:
            server.upload(content, "file", sha256=right)
        assert caught.value.code == "sftp_not_as_planned"
        server.upload(content, "file", sha256=right)  # all of it, as the wrong one was removed
        server.close()
    assert (tmp_path / "files" / "file").read_bytes() == content.read_bytes()


@pytest.mark.parametrize("setting", ["sftp_file_mode", "sftp_folder_mode"])
def test_a_server_that_refuses_modes_is_a_matter_of_settings(
    wilful_world: World, wilful: WilfulSftp, setting: str
) -> None:
    wilful.refuse["setstat"] = asyncssh.SFTPOpUnsupported
    changes: dict[str, Any] = {setting: "0700"}
    run = wilful_world.run(**changes)
    parcel = wilful_world.deliver(run, until="validate")
    error = failure(run, parcel, "prepare", "upload")
    assert (type(error), error.code) == (ConfigError, "sftp_mode_refused")
    assert setting.upper() in str(error)
    wilful_world.deliver(wilful_world.run())  # the default asks for none


# --- links ------------------------------------------------------------------------------------------------
def linked(world: World) -> str:
    return (world.root / world.sku).readlink().name


def test_a_link_is_switched_to_each_delivery(world: World) -> None:
    for content, kept in ((b"one", 1), (b"two", 2), (b"three", 2)):
        world.put("Docs/sheet.csv", content)
        world.deliver(world.run(sftp_publish="symlink", sftp_backups=1))
        assert world.delivered() == as_delivered(world)
        assert len(world.hidden()) == kept
        assert linked(world) in world.hidden()
    world.put("Docs/sheet.csv", b"four")
    world.deliver(world.run(sftp_publish="symlink"))
    assert world.hidden() == [linked(world)]


def test_the_way_of_publishing_may_be_changed(world: World) -> None:
    for way in ("rename", "symlink", "rename", "rename"):
        world.put("Docs/sheet.csv", way.encode())
        world.deliver(world.run(sftp_publish=way))
        assert world.delivered() == as_delivered(world)
        assert (world.root / world.sku).is_symlink() == (way == "symlink")
    assert world.hidden() == []


@pytest.mark.parametrize("way", ["rename", "symlink"], ids=["over a folder", "over a link"])
def test_a_link_survives_a_crash_at_any_point(world: World, way: str) -> None:
    world.put("Docs/sheet.csv", b"old")
    world.deliver(world.run(sftp_publish=way))
    before = world.delivered()
    world.put("Docs/sheet.csv", b"new")
    run = world.run(sftp_publish="symlink")
    parcel = world.deliver(run, until="upload")
    link = world.root / f"{parcel.staging}.link"
    link.symlink_to(parcel.staging)  # made, not yet moved
    if way == "rename":
        (world.root / parcel.folder).rename(world.root / parcel.backup)
    abandoned = world.run(job_id=run.job.id, sftp_publish="symlink")
    abandon(abandoned, parcel)
    assert world.delivered() == before
    parcel = world.deliver(run, until="upload")
    link.symlink_to(parcel.staging)
    for name in ("publish", "publish", "confirm"):
        parcel = STAGES[name](run, parcel)
    abandon(run, parcel)  # too late: what is published stays
    assert world.delivered() == as_delivered(world)
    assert world.hidden() == [linked(world)]


@pytest.mark.parametrize("request_", ["symlink", "posix_rename"])
def test_a_server_without_links_is_a_matter_of_settings(wilful_world: World, wilful: WilfulSftp, request_: str) -> None:
    wilful_world.deliver(wilful_world.run())
    before = wilful_world.delivered()
    run = wilful_world.run(sftp_publish="symlink")
    parcel = wilful_world.deliver(run, until="upload")
    wilful.refuse[request_] = asyncssh.SFTPOpUnsupported
    error = failure(run, parcel, "publish")
    assert (type(error), error.code) == (ConfigError, "sftp_link_refused")
    abandon(run, parcel)
    assert wilful_world.delivered() == before
    assert wilful_world.hidden() == []


def test_a_server_that_only_refuses_to_rename_folders_can_have_links(wilful_world: World, wilful: WilfulSftp) -> None:
    wilful.refuse["rename"] = asyncssh.SFTPPermissionDenied
    for content in (b"one", b"two"):
        wilful_world.put("Docs/sheet.csv", content)
        wilful_world.deliver(wilful_world.run(sftp_publish="symlink"))
        assert wilful_world.delivered() == as_delivered(wilful_world)
