"""Where files live. A new store is one file here, named after its URL scheme, with `connect(url, settings)`.

Keys are `/`-separated and relative; the store's URL comes from settings, so no request can choose a host.
Errors are `Transient`, `Rejected` or `ConfigError` with codes that begin with the scheme: `s3_missing`, `file_changed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast
from urllib.parse import urlsplit

from ncr_worker.errors import ConfigError
from ncr_worker.settings import Settings

CHUNK = 1024 * 1024
"""Bytes moved at once, about, and how often progress is told."""

Progress = Callable[[int], None]
"""Called with the number of bytes just moved; may raise to stop the transfer."""


def unwatched(_count: int) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored file. `etag` changes whenever the content does; `size` is bytes."""

    key: str
    size: int
    etag: str


class Store(Protocol):
    """Safe to share between threads."""

    def head(self, key: str) -> Entry:
        """Raises Rejected (`…_missing`) when there is no such key."""
        ...

    def list(self, prefix: str) -> Iterator[Entry]:
        """Every file whose key begins with `prefix`, in the order of keys."""
        ...

    def read(self, entry: Entry, path: Path, progress: Progress = unwatched) -> str:
        """Copy a file to the local `path` if it still is what `entry` says, checked as far as the store can tell.

        Returns the SHA-256 (hex) of what arrived.
        Raises Rejected (`…_missing`, `…_changed`) and Transient when it arrived incomplete.
        """
        ...

    def write(self, path: Path, key: str, progress: Progress = unwatched) -> Entry:
        """Store the local file `path` as `key`; replaces what was there, all or nothing."""
        ...

    def remove(self, key: str) -> None:
        """Remove a file; a missing one is no error."""
        ...

    def close(self) -> None: ...


def open_store(url: str, settings: Settings) -> Store:
    """The store behind `url`, e.g. `s3://bucket` or `file:///folder`. Raises ConfigError for an unknown scheme."""
    scheme = urlsplit(url).scheme
    try:
        module = import_module(f"{__name__}.{scheme}")
    except ModuleNotFoundError as error:
        raise ConfigError("store URL", f"no store for {scheme or url}", "Use s3:// or file://") from error
    return cast(Store, module.connect(url, settings))


def source(settings: Settings) -> Store:
    """The store that holds the files of the jobs."""
    if not settings.s3_bucket:
        raise ConfigError("S3_BUCKET", "is empty", "Name the bucket that holds the files of the jobs")
    return open_store(f"s3://{settings.s3_bucket}", settings)
