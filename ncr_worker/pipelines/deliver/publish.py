"""Stages prepare, upload, publish, confirm: all or nothing on the target server.

Files go to a hidden folder beside the target. Two renames make them the target: old -> backup, staging -> target;
or, with SFTP_PUBLISH=symlink, a link at the target is switched to that folder.
What `upload` leaves in the parcel is the publishing record; after a crash at any point `publish` decides by what
exists on the server (docs/decisions/0011-sftp-publish.md), so there is never a second delivery and never none.
"""

from __future__ import annotations

import posixpath

from ncr_worker.errors import NcrError, Rejected, StageError, Transient
from ncr_worker.pipeline import Run, stage
from ncr_worker.pipelines.deliver.catalog import catalog
from ncr_worker.pipelines.deliver.collect import catalog_entry, files_intact, local_path, zip_path
from ncr_worker.pipelines.deliver.model import Delivery, Item, Receipt, is_backup, is_version, moment
from ncr_worker.pipelines.deliver.transfer import transfer
from ncr_worker.stores import Progress
from ncr_worker.stores.sftp import SftpTarget
from ncr_worker.stores.sftp import target as sftp_target


def _on_server(run: Run, path: str) -> str:
    return posixpath.join(run.settings.sftp_root, path)


@stage(weight=0.5, local=True, intact=files_intact)
def prepare(run: Run, parcel: Delivery) -> Delivery:
    """Reach the target before anything is sent: the staging folder and the folders in it."""
    server = run.use(sftp_target)
    run.confirm_ownership()
    zip_path(run).unlink(missing_ok=True)  # the validator has judged it: an upload may take long, and disks fill
    staging = _on_server(run, parcel.staging)
    for folder in sorted({posixpath.dirname(posixpath.join(staging, path)) for path in parcel.manifest} | {staging}):
        server.make_folder(folder)
    return parcel


@stage(weight=4, attempts=5)
def upload(run: Run, parcel: Delivery) -> Delivery:
    server = run.use(sftp_target)
    run.confirm_ownership()
    staging = _on_server(run, parcel.staging)
    there = server.sizes(staging)  # by an attempt that was cut short

    def send(item: Item, progress: Progress) -> None:
        name = posixpath.relpath(item.target, parcel.folder)
        path = posixpath.join(staging, name)
        server.upload(local_path(run, item), path, progress, done=there.get(name, 0), sha256=item.sha256)

    transfer(run, parcel.items, run.settings.sftp_parallel, send)
    _require_manifest(server, staging, parcel)
    return parcel.evolve(replaces=server.exists(_on_server(run, parcel.folder)))


@stage(weight=0.5, attempts=5)
def publish(run: Run, parcel: Delivery) -> Delivery:
    server = run.use(sftp_target)
    target, staging, backup = (_on_server(run, name) for name in (parcel.folder, parcel.staging, parcel.backup))
    if run.settings.sftp_publish == "symlink":
        _publish_link(run, parcel, server)
    elif server.exists(staging):
        run.confirm_ownership()
        _publish_staging(run, parcel, server)
    elif parcel.replaces and not server.exists(backup):
        # The old delivery went nowhere, so it is still the one at the target.
        raise Rejected(f"{staging} has vanished from the server; nothing was replaced", code="staging_lost")
    elif not server.exists(target):
        _restore(server, backup, target)
        raise Rejected(f"{staging} has vanished from the server", code="staging_lost")
    _require_manifest(server, target, parcel)
    return parcel.evolve(published_at=moment())


def _publish_staging(run: Run, parcel: Delivery, server: SftpTarget) -> None:
    target, staging, backup = (_on_server(run, name) for name in (parcel.folder, parcel.staging, parcel.backup))
    if server.exists(target):
        if server.exists(backup):
            # Published by an earlier round and uploaded again since, or put there by somebody else.
            _require_manifest(server, target, parcel)
            server.remove_folder(staging)
            return
        server.rename(target, backup)
    # No stopping here: between the renames there is nothing at the target. A run that has lost the job meanwhile
    # does no harm, since a rename never replaces.
    try:
        server.rename(staging, target)
    except StageError:
        _restore(server, backup, target)
        raise


def _publish_link(run: Run, parcel: Delivery, server: SftpTarget) -> None:
    """The staging folder stays where it is; the link at the target is switched to it in one step."""
    target, staging, backup = (_on_server(run, name) for name in (parcel.folder, parcel.staging, parcel.backup))
    earlier = server.linked(target)
    if earlier == staging:
        return
    if not server.exists(staging):
        _restore(server, backup, target)
        raise Rejected(f"{staging} has vanished from the server", code="staging_lost")
    run.confirm_ownership()
    if earlier is None and server.exists(target):  # a folder, from before there were links
        server.rename(target, backup)
    try:
        server.link(staging, target)
    except NcrError:
        _restore(server, backup, target)
        raise


def _restore(server: SftpTarget, backup: str, target: str) -> None:
    """Put the previous delivery back where nothing is at the target."""
    if server.exists(backup) and not server.exists(target):
        server.rename(backup, target)


def _require_manifest(server: SftpTarget, folder: str, parcel: Delivery) -> None:
    found, planned = server.sizes(folder), parcel.manifest
    if found != planned:
        wrong = sorted(path for path in found.keys() | planned.keys() if found.get(path) != planned.get(path))
        raise Transient(f"{folder} is not as planned: {', '.join(wrong[:5])}", code="sftp_not_as_planned")


@stage(weight=0.5, attempts=5)
def confirm(run: Run, parcel: Delivery) -> Delivery:
    """Write the delivery down, then remove backups that are not kept any more."""
    if parcel.verdict is None:
        raise NcrError("a delivery without the validator's word cannot be confirmed")
    server = run.use(sftp_target)
    run.confirm_ownership()
    settings = run.settings
    receipt = Receipt(
        target=_on_server(run, parcel.folder),
        server=f"{settings.sftp_host}:{settings.sftp_port}",
        host_key=server.host_key(),
        files=parcel.items,
        total_files=len(parcel.items),
        total_bytes=parcel.total_bytes,
        verdict=parcel.verdict,
        submitted_at=moment(run.job.created_at),
        validated_at=parcel.validated_at,
        published_at=parcel.published_at,
        delivered_at=moment(),
    )
    run.use(catalog).record_delivery(
        catalog_entry(run, parcel), receipt.target, receipt.total_files, receipt.total_bytes, parcel.verdict.result
    )
    _remove_old_backups(run, parcel, server)
    return parcel.evolve(receipt=receipt)


def _remove_old_backups(run: Run, parcel: Delivery, server: SftpTarget) -> None:
    parent = posixpath.dirname(parcel.folder)
    names = [posixpath.join(parent, name) for name in server.names(_on_server(run, parent) or ".")]
    if run.settings.sftp_publish == "symlink":
        backups = [name for name in names if name != parcel.staging and is_version(parcel.folder, name)]
    else:
        backups = [name for name in names if is_backup(parcel.folder, name)]
    for name in backups[run.settings.sftp_backups :]:
        server.remove_folder(_on_server(run, name))


def abandon(run: Run, parcel: Delivery) -> None:
    """The job ends without success: the previous delivery stays or comes back, nothing of ours is left."""
    if not parcel.staging:
        return
    server = run.use(sftp_target)
    target, staging, backup = (_on_server(run, name) for name in (parcel.folder, parcel.staging, parcel.backup))
    _restore(server, backup, target)
    if server.linked(target) != staging:
        server.remove_folder(f"{staging}.link")
        server.remove_folder(staging)
