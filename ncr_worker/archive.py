"""Zip files: the same input always gives the same bytes. Streamed, so memory does not grow with the files.

Deflated by threads, in blocks that know nothing of each other: what a block becomes depends on its content alone.
"""

from __future__ import annotations

import re
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from isal import isal_zlib

from ncr_worker.errors import Transient
from ncr_worker.stores import CHUNK, Progress, unwatched
from ncr_worker.stores.file import disk_errors

LEVEL = 2
"""isal's level: a dozen times as fast as zlib's 6 (measured)."""
THREADS = 2
AHEAD = 2 * THREADS
"""Blocks of CHUNK bytes that are in memory before their turn to be written."""

COMPRESSED = re.compile(
    r".*\.(7z|aac|avif|basis|br|bz2|docx|flac|gif|gz|heic|jpe?g|ktx2|m4a|mkv|mov|mp3|mp4|ogg|opus"
    r"|parquet|png|pptx|rar|usdz|webm|webp|xlsx|xz|zip|zst)",
    re.IGNORECASE | re.DOTALL,
)
"""Types that are compressed already: stored as they are."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
_REGULAR_FILE = 0o100644 << 16
_UNIX = 3
_LAST = b"\x03\x00"
"""An empty deflate block that says: no more."""


@dataclass(frozen=True, slots=True)
class _Block:
    """`deflated`: what a thread makes of `content`; None: stored as it is."""

    entry: zipfile.ZipInfo
    content: bytes
    deflated: Future[bytes] | None


def pack(target: Path, files: Iterable[tuple[str, Path]], progress: Progress = unwatched) -> int:
    """Write the zip `target` from (name in the zip, local file); its size in bytes. Names are sorted.

    `progress` counts bytes read. Raises Transient: the disk is full, a file is not readable.
    """
    with (
        disk_errors(),
        zipfile.ZipFile(target, "w") as archive,
        ThreadPoolExecutor(THREADS, thread_name_prefix="deflate") as threads,
    ):
        for entry, blocks in groupby(_ahead(_blocks(sorted(files), threads)), key=lambda block: block.entry):
            _write(archive, entry, blocks, progress)
    return target.stat().st_size


def _blocks(files: Iterable[tuple[str, Path]], threads: ThreadPoolExecutor) -> Iterator[_Block]:
    """At least one for each file, also for an empty one."""
    for name, path in files:
        entry = _entry(name, path)
        with path.open("rb", buffering=0) as source:
            content = source.read(CHUNK)
            while True:
                stored = entry.compress_type == zipfile.ZIP_STORED
                yield _Block(entry, content, None if stored else threads.submit(_deflate, content))
                content = source.read(CHUNK)
                if not content:
                    break


def _ahead(blocks: Iterator[_Block]) -> Iterator[_Block]:
    """The same blocks; the next ones are in the works while one is used."""
    waiting: deque[_Block] = deque()
    for block in blocks:
        waiting.append(block)
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


def _entry(name: str, path: Path) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = _REGULAR_FILE
    entry.create_system = _UNIX
    entry.file_size = path.stat().st_size  # so zip64 is used exactly where it is needed
    entry.compress_type = zipfile.ZIP_STORED if COMPRESSED.fullmatch(name) else zipfile.ZIP_DEFLATED
    return entry


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, blocks: Iterable[_Block], progress: Progress) -> None:
    expected = entry.file_size
    with archive.open(entry, "w") as sink:
        deflated = _Deflated()
        if entry.compress_type == zipfile.ZIP_DEFLATED:
            cast(Any, sink)._compressor = deflated
        for block in blocks:
            if block.deflated:
                deflated.write(sink, block.content, block.deflated.result())
            else:
                sink.write(block.content)
            progress(len(block.content))
    if entry.file_size != expected:
        raise Transient(f"{entry.filename} changed its size while it was packed", code="disk_failed")


class _Deflated:
    """Takes the compressor's place in zipfile, and gives out what a thread has made: each piece once.

    zipfile has no official way to choose a compressor, or who works out the CRC-32, which takes zlib six times as long;
    the attributes are the same in Python 3.11 to 3.14.
    """

    def __init__(self) -> None:
        self._next = b""

    def write(self, sink: Any, content: bytes, deflated: bytes) -> None:
        sink._file_size += len(content)
        sink._crc = isal_zlib.crc32(content, sink._crc)
        self._next = deflated
        sink.write(b"")

    def compress(self, _content: bytes) -> bytes:
        piece, self._next = self._next, b""
        return piece

    def flush(self) -> bytes:
        return _LAST


def _deflate(content: bytes) -> bytes:
    """`content` as deflate blocks that end at a byte's end and are not the last ones."""
    compressor = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, -15)
    return compressor.compress(content) + compressor.flush(isal_zlib.Z_SYNC_FLUSH)
