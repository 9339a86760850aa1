"""Zip files: readable by others, always the same, stopped when asked."""

from __future__ import annotations

import gc
import itertools
import os
import random
import threading
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from isal import isal_zlib

from ncr_worker import archive
from ncr_worker.errors import Cancelled, Transient
from ncr_worker.stores import CHUNK


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[str, Path]]:
    noise = random.Random(1)
    contents = {
        "b/plain.txt": b"text " * 50_000,
        "a/photo.PNG": noise.randbytes(2_500_000),
        "empty": b"",
        "ü.bin": b"x",
    }
    found = []
    for number, (name, content) in enumerate(contents.items()):
        path = tmp_path / str(number)
        path.write_bytes(content)
        found.append((name, path))
    return found


def test_it_holds_every_file(files: list[tuple[str, Path]], tmp_path: Path) -> None:
    size = archive.pack(tmp_path / "x.zip", files)
    assert size == (tmp_path / "x.zip").stat().st_size
    with zipfile.ZipFile(tmp_path / "x.zip") as packed:
        assert packed.testzip() is None
        assert packed.namelist() == sorted(name for name, _ in files)
        assert all(packed.read(name) == path.read_bytes() for name, path in files)


def test_compressed_types_are_stored_and_others_deflated(files: list[tuple[str, Path]], tmp_path: Path) -> None:
    archive.pack(tmp_path / "x.zip", files)
    with zipfile.ZipFile(tmp_path / "x.zip") as packed:
        assert packed.getinfo("a/photo.PNG").compress_type == zipfile.ZIP_STORED
        text = packed.getinfo("b/plain.txt")
        assert text.compress_type == zipfile.ZIP_DEFLATED
        assert text.compress_size < text.file_size / 20


def test_isal_does_the_work(files: list[tuple[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = isal_zlib.compressobj

    def counted(level: int, method: int, wbits: int) -> object:
        made.append(level)
        return real(level, method, wbits)

    monkeypatch.setattr(isal_zlib, "compressobj", counted)
    archive.pack(tmp_path / "x.zip", files)
    assert made == [archive.LEVEL] * 3  # all but the photo
    with zipfile.ZipFile(tmp_path / "x.zip") as packed:
        assert packed.testzip() is None


def test_the_same_files_give_the_same_bytes(files: list[tuple[str, Path]], tmp_path: Path) -> None:
    archive.pack(tmp_path / "one.zip", files)
    for _, path in files:
        os.utime(path, (0, 0))
        path.chmod(0o600)
    archive.pack(tmp_path / "two.zip", reversed(files))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_which_thread_is_faster_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"".join(random.Random(n).randbytes(1000) * (CHUNK // 800) for n in range(4)) + b"end")
    files = [("a.glb", path), ("b.glb", path)]
    archive.pack(tmp_path / "one.zip", files)
    real, calls = archive._deflate, itertools.count()
    begun = [threading.Event() for _ in range(12)]

    def every_other_waits(content: bytes) -> bytes:
        number = next(calls)
        begun[number].set()
        if number % 2 == 0:
            assert begun[number + 1].wait(60)  # only once the block after it has been begun
        return real(content)

    monkeypatch.setattr(archive, "_deflate", every_other_waits)
    archive.pack(tmp_path / "two.zip", files)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "two.zip") as packed:
        assert packed.testzip() is None
        assert packed.read("b.glb") == path.read_bytes()


def test_progress_counts_what_is_read(files: list[tuple[str, Path]], tmp_path: Path) -> None:
    told: list[int] = []
    archive.pack(tmp_path / "x.zip", files, told.append)
    assert sum(told) == sum(path.stat().st_size for _, path in files)
    assert max(told) <= CHUNK


def test_what_is_packed_is_let_go_of_at_once(tmp_path: Path) -> None:
    """Not when Python next looks for cycles: hundreds of files are packed before that."""
    noise = tmp_path / "noise"
    noise.write_bytes(random.Random(1).randbytes(CHUNK))
    gc.disable()
    tracemalloc.start()
    try:
        archive.pack(tmp_path / "x.zip", [(f"{number}.bin", noise) for number in range(60)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert peak < 30 * CHUNK, "some are ahead, raw and deflated; not half of them"


def test_progress_may_stop_it(files: list[tuple[str, Path]], tmp_path: Path) -> None:
    def stop(_count: int) -> None:
        raise Cancelled("by test")

    with pytest.raises(Cancelled):
        archive.pack(tmp_path / "x.zip", files, stop)


def test_a_full_disk_is_worth_another_try(files: list[tuple[str, Path]]) -> None:
    with pytest.raises(Transient) as caught:
        archive.pack(Path("/dev/full"), files)
    assert caught.value.code == "disk_full"


def test_a_missing_file_is_no_bug(tmp_path: Path) -> None:
    with pytest.raises(Transient) as caught:
        archive.pack(tmp_path / "x.zip", [("a", tmp_path / "gone")])
    assert caught.value.code == "disk_failed"
