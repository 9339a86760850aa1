"""Wasabi, SeaweedFS, AWS or any S3: `s3://bucket`."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import boto3
import obstore
import obstore.exceptions
import obstore.store
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from obstore.auth.boto3 import Boto3CredentialProvider

from ncr_worker.errors import ConfigError, NcrError, Rejected, Transient
from ncr_worker.settings import Settings
from ncr_worker.stores import CHUNK, Entry, Progress, unwatched
from ncr_worker.stores.file import disk_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from obstore.store import S3Config

T = TypeVar("T")

LARGE = 8 * CHUNK
"""Bytes of an object above which each of its digests has a thread."""
BEHIND = 2
"""Chunks that a digest may be behind."""

_MISSING = {"NoSuchKey", "404", "NotFound"}
_CHANGED = {"PreconditionFailed", "412"}
# Wasabi throttles with HTTP 400 and a code of its own, which botocore does not take for throttling.
_THROTTLED = {"RequestRateLimitExceeded", "SlowDown", "Throttling", "TooManyRequests", "429", "503"}
_DENIED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket"}
_MD5 = re.compile(r"[0-9a-f]{32}")
_READER_ERRORS = (obstore.exceptions.BaseError, FileNotFoundError)
_CODE = re.compile(r"<Code>(\w+)</Code>")
_SEGMENTS = re.compile(r"(^|/)\.{0,2}(/|$)")
"""Keys with empty segments or dots for one: obstore takes keys for paths and cannot say these."""


def connect(url: str, settings: Settings) -> S3Store:
    """Raises ConfigError; nothing is asked of the server yet."""
    bucket = urlsplit(url).netloc
    try:
        client = _client(settings)
    except PartialCredentialsError as error:
        raise _no_credentials() from error
    except ValueError as error:
        raise ConfigError("S3_ENDPOINT_URL", f"{error}", "Write it like https://s3.wasabisys.com") from error
    return S3Store(client, _reader(settings, bucket), bucket)


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


def _reader(settings: Settings, bucket: str) -> obstore.store.S3Store:
    """What sizes and content are read with (docs/decisions/0012-obstore-reads.md)."""
    own_keys: S3Config = {
        "access_key_id": settings.s3_access_key_id.get_secret_value(),
        "secret_access_key": settings.s3_secret_access_key.get_secret_value(),
    }
    given = bool(settings.s3_access_key_id.get_secret_value())
    address: S3Config = {"endpoint": settings.s3_endpoint_url} if settings.s3_endpoint_url else {}
    return obstore.store.S3Store(
        bucket,
        config={**address, **(own_keys if given else {})},
        credential_provider=None if given else _surroundings(),
        region=settings.s3_region,
        virtual_hosted_style_request=not settings.s3_endpoint_url,
        client_options={
            "allow_http": settings.s3_endpoint_url.startswith("http:"),
            "connect_timeout": timedelta(seconds=5),
            "read_timeout": timedelta(seconds=30),
            "timeout": timedelta(days=1),  # its default ends every download after 30 s
        },
        retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=60)},
    )


def _surroundings() -> Boto3CredentialProvider:
    """The machine's own credentials, wherever boto3 finds them."""
    try:
        return Boto3CredentialProvider()
    except ValueError as error:  # there are none
        raise _no_credentials() from error


def _no_credentials() -> ConfigError:
    return ConfigError("S3_ACCESS_KEY_ID", "no S3 credentials", "Set it and S3_SECRET_ACCESS_KEY")


class S3Store:
    """boto3 for all but HEAD and reading: `reader` takes a tenth and a third of its CPU time for these."""

    def __init__(self, client: S3Client, reader: obstore.store.S3Store, bucket: str) -> None:
        self.client = client
        self.reader = reader
        self.bucket = bucket

    def head(self, key: str) -> Entry:
        if _SEGMENTS.search(key):
            answer = self._ask(key, lambda: self.client.head_object(Bucket=self.bucket, Key=key))
            return Entry(key, answer["ContentLength"], answer["ETag"])
        try:
            found = obstore.head(self.reader, key)
        except _READER_ERRORS as error:
            raise _translate_read(error, self.bucket, key) from error
        return Entry(key, found["size"], found["e_tag"] or "")

    def list(self, prefix: str) -> Iterator[Entry]:
        pages = iter(self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix))
        while page := self._ask(prefix, lambda: next(pages, None)):
            for found in page.get("Contents", ()):
                yield Entry(found["Key"], found["Size"], found["ETag"])

    def read(self, entry: Entry, path: Path, progress: Progress = unwatched) -> str:
        expected = _md5_of(entry.etag)
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        with _hashing((sha256, md5) if expected else (sha256,), entry.size) as update:
            size = _save(self._chunks(entry), path, progress, update)
        if size != entry.size:
            raise Transient(f"{entry.key}: {size:,} of {entry.size:,} bytes arrived", code="s3_failed")
        if expected and (found := md5.hexdigest()) != expected and not self._is_encrypted(entry.key):
            raise Transient(f"{entry.key}: its MD5 is {found}, expected {expected}", code="s3_failed")
        return sha256.hexdigest()

    def _chunks(self, entry: Entry) -> Iterator[bytes]:
        key, condition = entry.key, entry.etag
        if _SEGMENTS.search(key):
            answer = self._ask(key, lambda: self.client.get_object(Bucket=self.bucket, Key=key, IfMatch=condition))
            chunks: Iterator[bytes] = answer["Body"].iter_chunks(CHUNK)
            while chunk := self._ask(key, lambda: next(chunks, b"")):
                yield chunk
            return
        try:
            yield from obstore.get(self.reader, key, options={"if_match": condition}).stream(min_chunk_size=CHUNK)
        except _READER_ERRORS as error:
            raise _translate_read(error, self.bucket, key) from error

    def _is_encrypted(self, key: str) -> bool:
        """With the store's or the customer's own keys: then an ETag looks like the content's MD5, but is not."""
        answer = self._ask(key, lambda: self.client.head_object(Bucket=self.bucket, Key=key))
        return answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer

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
            raise _no_credentials() from error
        except BotoCoreError as error:
            raise Transient(f"S3, {key}: {error}", code="s3_unreachable") from error


def _translate(error: ClientError, bucket: str, key: str) -> NcrError:
    return _of_code(str(error.response.get("Error", {}).get("Code", "")), str(error), bucket, key)


def _of_code(code: str, text: str, bucket: str, key: str) -> NcrError:
    """`code`: what S3 calls it."""
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
    return Transient(f"S3, {key}: {text}", code="s3_failed")


@contextmanager
def _hashing(digests: Sequence[hashlib._Hash], size: int) -> Iterator[Callable[[bytes], None]]:
    """Call what it yields with each chunk of an object of `size` bytes; when it is left, the digests are complete.

    They take longer than all else: those of a large object are worked out beside it, some chunks behind. Several small
    ones are read at once anyway.
    """

    def at_once(chunk: bytes) -> None:
        for digest in digests:
            digest.update(chunk)

    if size <= LARGE:
        yield at_once
        return
    with ExitStack() as stack:
        # A thread of its own for each digest, or the chunks would come in another order.
        threads = [stack.enter_context(ThreadPoolExecutor(1, "hash")) for _ in digests]
        working: deque[list[Future[None]]] = deque()  # by chunk

        def wait(most: int) -> None:
            while len(working) > most:
                for future in working.popleft():
                    future.result()

        def update(chunk: bytes) -> None:
            wait(BEHIND - 1)
            pairs = zip(threads, digests, strict=True)
            working.append([thread.submit(digest.update, chunk) for thread, digest in pairs])

        yield update
        wait(0)


def _save(chunks: Iterator[bytes], path: Path, progress: Progress, update: Callable[[bytes], None]) -> int:
    """How many bytes."""
    size = 0
    with disk_errors(), path.open("wb", buffering=0) as target:
        for chunk in chunks:
            update(chunk)
            target.write(chunk)
            size += len(chunk)
            progress(len(chunk))
    return size


def _translate_read(error: Exception, bucket: str, key: str) -> NcrError:
    text = str(error).partition("Debug source:")[0].strip()
    if isinstance(error, FileNotFoundError):
        code = "NoSuchKey"
    elif isinstance(error, obstore.exceptions.PreconditionError):
        code = "PreconditionFailed"
    elif isinstance(error, obstore.exceptions.PermissionDeniedError | obstore.exceptions.UnauthenticatedError):
        code = "AccessDenied"
    else:
        found = _CODE.search(text)
        code = found[1] if found else ""
    return _of_code(code, text, bucket, key)


def _md5_of(etag: str) -> str | None:
    """The MD5 of the content, where the ETag looks like one: not after multipart uploads."""
    digest = etag.strip('"')
    return digest if _MD5.fullmatch(digest) else None
