"""The proof of a delivery sees every fault; the sandbox's folder is its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ncr_worker.errors import Conflict
from ncr_worker.sandbox.demo import judge
from ncr_worker.sandbox.launcher import LOCK, Sandbox, Stopped, own_folder, stoppable
from ncr_worker.sandbox.process import ServerFailed
from ncr_worker.sandbox.proof import prove
from ncr_worker.sandbox.samples import sample_jobs
from ncr_worker.sandbox.sftp import SFTP

JOBS = sample_jobs(2)
DELIVERED, REJECTED = JOBS
ENDED = {DELIVERED.job_id: "completed", REJECTED.job_id: "validation_failed"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SFTP]:
    """One of our own: the proof looks at all that lies there."""
    with SFTP(tmp_path_factory.mktemp("sftp")) as server:
        yield server


@pytest.fixture
def root(server: SFTP) -> Iterator[Path]:
    """The server's files: those of a right delivery."""
    for file in DELIVERED.files:
        if file.target:
            path = server.root / file.target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.content())
    yield server.root
    for path in server.root.iterdir():
        shutil.rmtree(path)


def test_a_right_delivery_is_proven(server: SFTP, root: Path, tmp_path: Path) -> None:
    differences = prove(server, DELIVERED.manifest(), tmp_path / "received")
    assert differences == {}
    assert judge(JOBS, ENDED, differences, []).exit_code == 0


def model(root: Path) -> Path:
    return root / DELIVERED.sku / f"{DELIVERED.sku}.glb"


def flip_one_byte(root: Path) -> str:
    with model(root).open("r+b") as file:
        file.seek(1_234_567)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    return f"{DELIVERED.sku}/{DELIVERED.sku}.glb"


def cut_the_last_byte(root: Path) -> str:
    os.truncate(model(root), model(root).stat().st_size - 1)
    return f"{DELIVERED.sku}/{DELIVERED.sku}.glb"


def remove_an_empty_file(root: Path) -> str:
    (root / DELIVERED.sku / "docs/empty.txt").unlink()
    return f"{DELIVERED.sku}/docs/empty.txt"


def deliver_what_was_rejected(root: Path) -> str:
    (root / REJECTED.sku).mkdir()
    return REJECTED.sku


def leave_a_staging_folder(root: Path) -> str:
    (root / f".{DELIVERED.sku}.ncr-new-1").mkdir()
    return f".{DELIVERED.sku}.ncr-new-1"


def leave_a_hidden_file(root: Path) -> str:
    (root / DELIVERED.sku / ".part").touch()
    return f"{DELIVERED.sku}/.part"


@pytest.mark.parametrize(
    "fault",
    [
        flip_one_byte,
        cut_the_last_byte,
        remove_an_empty_file,
        deliver_what_was_rejected,
        leave_a_staging_folder,
        leave_a_hidden_file,
    ],
    ids=lambda fault: fault.__name__,
)
def test_the_proof_names_a_fault_and_fails(
    fault: Callable[[Path], str], server: SFTP, root: Path, tmp_path: Path
) -> None:
    wrong = fault(root)
    differences = prove(server, DELIVERED.manifest(), tmp_path / "received")
    assert set(differences) == {wrong}
    assert judge(JOBS, ENDED, differences, []).exit_code == 1


# --- folder and signals -------------------------------------------------------------------------------
def test_the_folder_is_empty_at_first_and_gone_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "sandbox"
    with own_folder(path):
        (path / "data").mkdir()
    assert not path.exists()


def test_what_a_killed_sandbox_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "sandbox"
    (path / "data").mkdir(parents=True)
    (path / LOCK).touch()
    with own_folder(path):
        assert [found.name for found in path.iterdir()] == [LOCK]


def test_a_folder_that_no_sandbox_made_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(Conflict, match="not empty"), own_folder(tmp_path):
        pass
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_a_folder_where_a_sandbox_runs_is_refused(tmp_path: Path) -> None:
    with (tmp_path / LOCK).open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="already running"), own_folder(tmp_path):
            pass
    assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_only_the_first_signal_counts(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def work_and_clean_up() -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)

    with pytest.raises(Stopped, match=number.name), stoppable():
        work_and_clean_up()
    assert signal.getsignal(number) is before


def test_a_part_that_dies_is_named(tmp_path: Path) -> None:
    said: list[str] = []
    sandbox = Sandbox(tmp_path, said.append)
    sandbox.valkey.start()
    sandbox.sftp.start()
    os.kill(sandbox.valkey.pid, signal.SIGKILL)
    with pytest.raises(ServerFailed, match="valkey ended with status -9"):
        sandbox.watch()
    sandbox.stop()
    assert said == ["stopped sftp"]
