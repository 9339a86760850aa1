"""A disk that is soon full."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

Resize = Callable[[int], None]


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Resize]:
    """A disk of `size` bytes at `folder`, which must not exist; the way to change its size. Skips without root."""
    folder.mkdir()
    if not shutil.which("mount") or _mount(f"size={size},mode=0777", folder).returncode:
        folder.rmdir()
        pytest.skip("NOT TESTED: a small disk can only be mounted by root")
    try:
        yield lambda size: _mount(f"remount,size={size}", folder).check_returncode()
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def _mount(options: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
