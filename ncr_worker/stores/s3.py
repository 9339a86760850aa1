"""Wasabi, SeaweedFS, AWS or any S3: `s3://bucket`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from ncr_worker.errors import ConfigError, NcrError, Rejected, Transient
from ncr_worker.settings import Settings
from ncr_worker.stores import CHUNK, Entry, Progress, unwatched
from ncr_worker.stores.file import disk_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

T = TypeVar("T")

_MISSING = {"NoSuchKey", "404", "NotFound"}
_CHANGED = {"PreconditionFailed", "412"}
# Wasabi throttles with HTTP 400 and a code of its own, which botocore does not take for throttling.
_THROTTLED = {"RequestRateLimitExceeded", "SlowDown", "Throttling", "TooManyRequests", "429", "503"}
_DENIED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket"}
_MD5 = re.compile(r"[0-9a-f]{32}")


def connect(url: str, settings: Settings) -> S3Store:
    return S3Store(_client(settings), urlsplit(url).netloc)


def _client(settings: Settings) -> S3Client:
    # The newer default checksums break S3-compatible stores. A host such as `s3` has no subdomain for each bucket.
    config = Config(
        connect_timeout=5,
        read_timeout=30,
        retries={"mode": "standard", "total_max_attempts": 3},
        max_pool_connections=max(10, 2 * settings.s3_parallel),
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if settings.s3_endpoint_url else "auto"},
    )
    return boto3.client(
        "s3",
        endpoint_url=settings.s3_endpoint_url or None,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key_id.get_secret_value() or None,
        aws_secret_access_key=settings.s3_secret_access_key.get_secret_value() or None,
        config=config,
    )


class S3Store:
    def __init__(self, client: S3Client, bucket: str) -> None:
        self.client = client
        self.bucket = bucket

    def head(self, key: str) -> Entry:
        answer = self._ask(key, lambda: self.client.head_object(Bucket=self.bucket, Key=key))
        return Entry(key, answer["ContentLength"], answer["ETag"])

    def list(self, prefix: str) -> Iterator[Entry]:
        pages = iter(self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix))
        while page := self._ask(prefix, lambda: next(pages, None)):
            for found in page.get("Contents", ()):
                yield Entry(found["Key"], found["Size"], found["ETag"])

    def read(self, entry: Entry, path: Path, progress: Progress = unwatched) -> str:
        key, condition = entry.key, entry.etag
        answer = self._ask(key, lambda: self.client.get_object(Bucket=self.bucket, Key=key, IfMatch=condition))
        size, sha256, md5 = self._save(key, answer, path, progress)
        if size != entry.size:
            raise Transient(f"{key}: {size:,} of {entry.size:,} bytes arrived", code="s3_failed")
        if (expected := _md5_of(answer)) and md5 != expected:
            raise Transient(f"{key}: its MD5 is {md5}, expected {expected}", code="s3_failed")
        return sha256

    def _save(self, key: str, answer: GetObjectOutputTypeDef, path: Path, progress: Progress) -> tuple[int, str, str]:
        sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
        with answer["Body"] as body, disk_errors(), path.open("wb") as target:
            while chunk := self._ask(key, lambda: body.read(CHUNK)):
                target.write(chunk)
                sha256.update(chunk)
                md5.update(chunk)
                size += len(chunk)
                progress(len(chunk))
        return size, sha256.hexdigest(), md5.hexdigest()

    def write(self, path: Path, key: str, progress: Progress = unwatched) -> Entry:
        self._ask(key, lambda: self.client.upload_file(str(path), self.bucket, key, Callback=progress))
        return self.head(key)

    def remove(self, key: str) -> None:
        self._ask(key, lambda: self.client.delete_object(Bucket=self.bucket, Key=key))

    def close(self) -> None:
        self.client.close()

    def _ask(self, key: str, call: Callable[[], T]) -> T:
        try:
            return call()
        except ClientError as error:
            raise _translate(error, self.bucket, key) from error
        except NoCredentialsError as error:
            raise ConfigError("S3_ACCESS_KEY_ID", "no S3 credentials", "Set it and S3_SECRET_ACCESS_KEY") from error
        except BotoCoreError as error:
            raise Transient(f"S3, {key}: {error}", code="s3_unreachable") from error


def _translate(error: ClientError, bucket: str, key: str) -> NcrError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in _MISSING:
        return Rejected(f"{key} is missing in bucket {bucket}", code="s3_missing")
    if code in _CHANGED:
        return Rejected(f"{key} was changed after it was planned", code="s3_changed")
    if code in _THROTTLED:
        return Transient(f"S3 asks to slow down ({code})", code="s3_throttled", retry_in=2)
    if code in _DENIED:
        return ConfigError(
            "S3_BUCKET",
            f"{bucket} refuses {key} ({code})",
            "Check the bucket's name, the keys and their rights",
            code="s3_denied",
        )
    return Transient(f"S3, {key}: {error}", code="s3_failed")


def _md5_of(answer: GetObjectOutputTypeDef) -> str | None:
    """The MD5 of the content, where the ETag is one: not for multipart uploads nor with the store's own keys."""
    etag = answer["ETag"].strip('"')
    encrypted = answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer
    return etag if _MD5.fullmatch(etag) and not encrypted else None
