"""S3, validator and SFTP: what deliveries need outside."""

from __future__ import annotations

import posixpath
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx2
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from ncr_worker.checks.finding import Finding, error, ok, warning
from ncr_worker.errors import NcrError
from ncr_worker.settings import Settings
from ncr_worker.stores import s3
from ncr_worker.stores.sftp import SftpTarget

TIMEOUT = 8.0
PROBE = ".ncr-doctor-"

_S3_SAYS = {
    "NoSuchBucket": ("S3_BUCKET", "there is no such bucket", "Make it, or name another one; check S3_REGION too"),
    "InvalidAccessKeyId": ("S3_ACCESS_KEY_ID", "the key id is unknown there", "Check S3_ACCESS_KEY_ID"),
    "SignatureDoesNotMatch": ("S3_SECRET_ACCESS_KEY", "the secret key is wrong", "Check S3_SECRET_ACCESS_KEY"),
    "AccessDenied": (
        "S3_ACCESS_KEY_ID",
        "the key may not list the bucket",
        "Grant it s3:ListBucket and s3:GetObject, or use another key",
    ),
}


def bucket(settings: Settings) -> Iterator[Finding]:
    """That we may list it: without that right a missing file cannot be told from a forbidden one."""
    name = settings.s3_bucket
    what = f"bucket {name} at {settings.s3_endpoint_url or 'AWS'}"
    if not name:
        yield error("S3 bucket", "is empty", "S3_BUCKET", "Name the bucket that holds the files of the jobs")
        return
    try:
        with closing(s3.connect(f"s3://{name}", settings)) as store:
            store.client.list_objects_v2(Bucket=name, MaxKeys=1)
    except ClientError as failure:
        said = failure.response.get("Error", {})
        code = str(said.get("Code", ""))
        unknown = ("S3_BUCKET", f"S3 says {code}: {said.get('Message', '')}", "Check bucket, keys, region and endpoint")
        setting, problem, remedy = _S3_SAYS.get(code, unknown)
        yield error(what, problem, setting, remedy)
    except NoCredentialsError:
        remedy = "Set it and S3_SECRET_ACCESS_KEY, or give this machine a role"
        yield error(what, "there are no credentials", "S3_ACCESS_KEY_ID", remedy)
    except (BotoCoreError, ValueError) as failure:
        remedy = "Check the address, e.g. https://s3.wasabisys.com, and that it can be reached from here"
        yield error(what, f"cannot be reached ({failure})", "S3_ENDPOINT_URL", remedy, away=True)
    else:
        yield ok(f"{what}: may be listed")


def validator(settings: Settings) -> Iterator[Finding]:
    """Any answer means that it can be reached: only a delivery knows whether it judges."""
    url = settings.validator_url
    if not url:
        yield error("validator", "is empty", "VALIDATOR_URL", "Set the address of the validator")
        return
    what = f"validator {url}"
    key = settings.validator_api_key.get_secret_value()
    try:
        answer = httpx2.get(url, headers={settings.validator_api_key_header: key}, timeout=TIMEOUT)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as failure:
        remedy = "Check the address, and that it can be reached from here"
        yield error(what, f"cannot be reached ({failure})", "VALIDATOR_URL", remedy, away=True)
        return
    if not key:
        yield warning(what, "no key is sent", "VALIDATOR_API_KEY", "Set it, unless the validator needs none")
    elif answer.status_code in (401, 403):
        problem = f"refuses the key with HTTP {answer.status_code}"
        yield warning(what, problem, "VALIDATOR_API_KEY", "Check it and VALIDATOR_API_KEY_HEADER")
    yield ok(f"{what}: answers (HTTP {answer.status_code})")


def sftp(settings: Settings) -> Iterator[Finding]:
    """Host key, login, and all that publishing a delivery does, with a small hidden folder that is removed again."""
    if not settings.sftp_host:
        yield error("SFTP", "is empty", "SFTP_HOST", "Name the SFTP server that deliveries go to")
        return
    what = f"SFTP {settings.sftp_user}@{settings.sftp_host}:{settings.sftp_port}"
    quick = settings.model_copy(update={"sftp_timeout": min(settings.sftp_timeout, TIMEOUT)})
    with closing(SftpTarget(quick)) as server:
        what += f", host key {server.host_key()}"
        root = settings.sftp_root
        if not server.exists(root):
            yield error(what, f"there is no folder {root}", "SFTP_ROOT", "Have it made, or name another folder")
            return
        probe = posixpath.join(root, f"{PROBE}{uuid.uuid4().hex[:12]}")
        try:
            _publish(server, probe, symlink=settings.sftp_publish == "symlink")
        except NcrError as failure:
            remedy = "The user must be allowed to make, rename and remove files and folders there (docs/delivery.md)"
            setting = "SFTP_PUBLISH" if failure.code in ("sftp_link_refused", "sftp_rename_refused") else "SFTP_ROOT"
            yield error(what, f"{root} cannot be written: {failure}", setting, remedy)
            return
        finally:
            for left in (probe, f"{probe}.new"):
                with suppress(NcrError):  # what is wrong is told already
                    server.remove_folder(left)
    yield ok(f"{what}: logged in, {root} can be written")


def _publish(server: SftpTarget, probe: str, *, symlink: bool) -> None:
    staging = f"{probe}.new"
    server.make_folder(staging)
    with tempfile.NamedTemporaryFile() as local:
        local.write(b"ncr doctor")
        local.flush()
        server.upload(Path(local.name), posixpath.join(staging, "probe"))
    if symlink:
        server.link(staging, probe)
    else:
        server.rename(staging, probe)
