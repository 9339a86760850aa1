"""Files below a local folder: `file:///folder`. The etag is made of inode, size and time of change."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from ncr_worker.errors import Rejected, StageError, Transient
from ncr_worker.settings import Settings
from ncr_worker.stores import CHUNK, Entry, Progress, unwatched


def connect(url: str, _settings: Settings) -> FileStore:
    return FileStore(Path(unquote(urlsplit(url).path)))


@contextmanager
def disk_errors() -> Iterator[None]:
    """A local disk that is full or failing passes by itself or with an operator's help: Transient."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Transient(f"local disk is full: {error}", code="disk_full", retry_in=30) from error
        raise Transient(f"local disk: {error}", code="disk_failed") from error


def copy(source: BinaryIO, target: BinaryIO, progress: Progress) -> tuple[int, str]:
    """Copy to the end; how many bytes, and their SHA-256 (hex)."""
    size, digest = 0, hashlib.sha256()
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        target.write(chunk)
        size += len(chunk)
        progress(len(chunk))
    return size, digest.hexdigest()


def sha256(path: Path, progress: Progress) -> str:
    """Of a local file, in hex."""
    digest = hashlib.sha256()
    with disk_errors(), path.open("rb", buffering=0) as content:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


class FileStore:
    def __init__(self, root: Path) -> None:
        self.root = root

    def head(self, key: str) -> Entry:
        try:
            status = self._path(key).stat()
        except OSError as error:
            raise _translate(error, key) from error
        return _entry(key, status)

    def list(self, prefix: str) -> Iterator[Entry]:
        found = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        for key in sorted(key for key in found if key.startswith(prefix)):
            yield self.head(key)

    def read(self, entry: Entry, path: Path, progress: Progress = unwatched) -> str:
        try:
            source = self._path(entry.key).open("rb")
        except OSError as error:
            raise _translate(error, entry.key) from error
        with source:
            _require_same(entry, _entry(entry.key, os.fstat(source.fileno())))
            with disk_errors(), path.open("wb") as target:
                size, digest = copy(source, target, progress)
            # Written to while we read: neither the old nor the new file.
            _require_same(entry, _entry(entry.key, os.fstat(source.fileno())))
        if size != entry.size:
            raise Transient(f"{entry.key}: {size:,} of {entry.size:,} bytes arrived", code="file_failed")
        return digest

    def write(self, path: Path, key: str, progress: Progress = unwatched) -> Entry:
        target = self._path(key)
        part = target.with_name(f".{uuid.uuid4().hex}.part")
        with disk_errors():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("rb") as source, part.open("wb") as sink:
                    copy(source, sink, progress)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        return self.head(key)

    def remove(self, key: str) -> None:
        with disk_errors():
            self._path(key).unlink(missing_ok=True)

    def close(self) -> None:
        pass

    def _path(self, key: str) -> Path:
        path = self.root / key
        if not key or "\0" in key or ".." in path.parts or not path.is_relative_to(self.root):
            raise Rejected(f"{key!r} is no key below the store's folder", code="file_unsafe_key")
        return path


def _entry(key: str, status: os.stat_result) -> Entry:
    return Entry(key, status.st_size, f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}")


def _require_same(planned: Entry, found: Entry) -> None:
    if planned.etag != found.etag:
        raise Rejected(f"{planned.key} was changed after it was planned", code="file_changed")


def _translate(error: OSError, key: str) -> StageError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return Rejected(f"{key} is missing", code="file_missing")
    return Transient(f"{key}: {error.strerror}", code="file_failed")
