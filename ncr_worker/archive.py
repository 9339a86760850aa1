"""Zip files: the same input always gives the same bytes. Streamed, so memory does not grow with the files."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, cast

from isal import isal_zlib

from ncr_worker.errors import Transient
from ncr_worker.stores import CHUNK, Progress, unwatched
from ncr_worker.stores.file import disk_errors

LEVEL = 1
"""isal's level: ten times as fast as zlib's 6 for 2 % larger files (measured)."""

COMPRESSED = re.compile(
    r".*\.(7z|aac|avif|basis|br|bz2|docx|flac|gif|gz|heic|jpe?g|ktx2|m4a|mkv|mov|mp3|mp4|ogg|opus"
    r"|parquet|png|pptx|rar|usdz|webm|webp|xlsx|xz|zip|zst)",
    re.IGNORECASE | re.DOTALL,
)
"""Types that are compressed already: stored as they are."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
_REGULAR_FILE = 0o100644 << 16
_UNIX = 3


def pack(target: Path, files: Iterable[tuple[str, Path]], progress: Progress = unwatched) -> int:
    """Write the zip `target` from (name in the zip, local file); its size in bytes. Names are sorted.

    `progress` counts bytes read. Raises Transient: the disk is full, a file is not readable.
    """
    with disk_errors(), zipfile.ZipFile(target, "w") as archive:
        for name, path in sorted(files):
            _add(archive, name, path, progress)
    return target.stat().st_size


def _add(archive: zipfile.ZipFile, name: str, path: Path, progress: Progress) -> None:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = _REGULAR_FILE
    entry.create_system = _UNIX
    entry.file_size = size = path.stat().st_size  # so zip64 is used exactly where it is needed
    stored = COMPRESSED.fullmatch(name) is not None
    entry.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    with path.open("rb") as source, archive.open(entry, "w") as sink:
        if not stored:
            _deflate_with_isal(sink)
        while chunk := source.read(CHUNK):
            sink.write(chunk)
            progress(len(chunk))
    if entry.file_size != size:
        raise Transient(f"{name} changed its size while it was packed", code="disk_failed")


def _deflate_with_isal(sink: IO[bytes]) -> None:
    # zipfile has no official way to choose a compressor; the attribute is the same in Python 3.11 to 3.14.
    cast(Any, sink)._compressor = isal_zlib.compressobj(LEVEL, isal_zlib.DEFLATED, -15)
