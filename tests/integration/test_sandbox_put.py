"""Files of a user's own become a job of the sandbox: in a real bucket, in a real catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import Ncr
from serving import on_sqlite

from ncr_worker.sandbox.launcher import ENV
from ncr_worker.sandbox.process import free_port
from ncr_worker.sandbox.s3 import S3

FILES = {
    "GLB_files/chair.glb": b"glTF 1",
    "Docs/Sizes & Weights.csv": b"45;45;90\n",
    "empty.txt": b"",
    ".DS_Store": b"of no use",
    ".git/HEAD": b"neither",
}
TARGETS = {"SEAT-1/SEAT-1.glb", "SEAT-1/docs/Sizes & Weights.csv", "SEAT-1/empty.txt"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "chair"
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture
def ncr(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ncr:
    """Its settings are those of a sandbox in the default folder, which so seems to run."""
    own: dict[str, Any] = {name.lower(): value for name, value in s3.env().items()}
    settings = on_sqlite(f"redis://127.0.0.1:{free_port()}", tmp_path, sftp_host="sftp.example", **own)
    env = {**s3.env(), "DATABASE_URL": settings.database_url, "CATALOG_URL": settings.database_url, "LAYOUT_FILE": ""}
    (tmp_path / ".sandbox").mkdir()
    lines = [f"export {name}='{value}'\n" for name, value in env.items()]
    (tmp_path / ".sandbox" / ENV).write_text("".join(lines))
    return Ncr(settings, tmp_path, monkeypatch, capsys)


def targets(ncr: Ncr, job: str) -> set[str]:
    answer = ncr("plan", job, "--json")
    assert answer.code == 0, answer.error
    return {file["target"] for file in answer.document["files"]}


def test_a_folder_becomes_a_job_that_can_be_delivered(ncr: Ncr, folder: Path) -> None:
    answer = ncr("sandbox", "put", str(folder), "--job", "put-1", "--sku", "SEAT-1")
    assert (answer.code, answer.text) == (0, "job put-1, sku SEAT-1: 3 files, 15 bytes\n")
    assert targets(ncr, "put-1") == TARGETS


def test_put_again_the_catalog_says_what_the_folder_holds_now(ncr: Ncr, folder: Path) -> None:
    ncr("sandbox", "put", str(folder), "--job", "put-2", "--sku", "OTHER")
    (folder / "empty.txt").unlink()
    (folder / "source_photo.jpg").write_bytes(b"jpg")
    answer = ncr("sandbox", "put", str(folder), "--job", "put-2", "--sku", "SEAT-1")
    assert "3 files, 18 bytes; the layout leaves 1 of them out" in answer.text
    assert targets(ncr, "put-2") == TARGETS - {"SEAT-1/empty.txt"}


def test_the_sandbox_is_meant_whatever_the_environment_says(ncr: Ncr, folder: Path) -> None:
    """Nobody's production bucket or catalog is written to by mistake."""
    elsewhere: dict[str, Any] = {
        "database_url": "sqlite:////nowhere/x",
        "catalog_url": "",
        "s3_endpoint_url": "http://127.0.0.1:1",
    }
    assert ncr("sandbox", "put", str(folder), "--job", "put-3", **elsewhere).code == 0
    assert targets(ncr, "put-3") == {target.replace("SEAT-1", "chair") for target in TARGETS}


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (
            ("--job", "put-4", "--sandbox", "nowhere"),
            2,
            "none runs in nowhere. Start one in another shell: ncr sandbox",
        ),
        (("--job", "../x"), 1, "'../x'"),
        (("--job", "put-4", "--sku", "a/b"), 1, "unsafe name, with a slash"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    ncr: Ncr, folder: Path, args: tuple[str, ...], code: int, said: str
) -> None:
    answer = ncr("sandbox", "put", str(folder), *args)
    assert (answer.code, answer.text) == (code, "")
    assert answer.error.startswith("ncr: ")
    assert said in answer.error


def test_nothing_is_stored_of_a_folder_that_could_not_be_delivered(ncr: Ncr, folder: Path) -> None:
    (folder / "more" / "docs").mkdir(parents=True)
    (folder / "more" / "docs" / "sizes & weights.CSV").touch()
    answer = ncr("sandbox", "put", str(folder), "--job", "put-5")
    assert answer.code == 1
    assert "have one target" in answer.error
    assert "the catalog has no job put-5" in ncr("plan", "put-5").error


def test_a_folder_without_files_is_no_job(ncr: Ncr, tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    answer = ncr("sandbox", "put", "void", "--job", "put-6")
    assert (answer.code, answer.error) == (1, "ncr: void holds no files\n")
