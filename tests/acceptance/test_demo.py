"""`ncr demo` and `ncr sandbox` as a person runs them; when they have ended, nothing of them is left."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx2
import psutil
import pytest

from ncr_worker.sandbox.process import accepts

pytestmark = pytest.mark.slow

NCR = str(Path(sysconfig.get_path("scripts"), "ncr"))
MARK = "NCR_DEMO_TEST"
UP = 150.0
"""Seconds within which a sandbox comes up on a busy machine."""


@dataclass
class Command:
    """A running `ncr …` in a folder of its own; `output` is what it has printed so far."""

    process: subprocess.Popen[bytes]
    folder: Path
    mark: str

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    @property
    def state(self) -> Path:
        return self.folder / ".sandbox"

    def await_text(self, text: str) -> None:
        assert eventually(lambda: text in self.output or self.process.poll() is not None, UP), self.output
        assert text in self.output, self.output

    def await_end(self, seconds: float) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds:g} s:\n{self.output}")

    def settings(self) -> dict[str, str]:
        """What another shell gets from `.sandbox/env`."""
        words = shlex.split((self.state / "env").read_text())
        return dict(word.split("=", 1) for word in words if word != "export")

    def family(self) -> list[psutil.Process]:
        """Every process that inherited our mark: whatever its parent, group or session is."""
        return [process for process in psutil.process_iter() if _has_mark(process, self.mark)]

    def assert_nothing_is_left(self, ports: Sequence[int] = ()) -> None:
        assert eventually(lambda: not self.family(), 10), self.family()
        assert [port for port in ports if accepts(port)] == []
        assert [path.name for path in self.folder.iterdir()] == ["output"]


def _has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except psutil.Error:
        return False


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return met


@contextmanager
def ncr(folder: Path, *arguments: str, **settings: str) -> Iterator[Command]:
    mark = uuid4().hex
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [NCR, *arguments],
            cwd=folder,
            env=os.environ | settings | {MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Command(process, folder, mark)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_the_demo_delivers_proves_it_and_leaves_nothing(tmp_path: Path) -> None:
    with ncr(tmp_path, "demo", "--jobs", "4") as demo:
        demo.await_text("submitted")
        ports = [int(port) for name, port in demo.settings().items() if name.endswith("_PORT")]
        assert all(map(accepts, ports))
        code = demo.await_end(180)
        assert demo.output.splitlines()[-1] == "demo: delivered 3 of 4 jobs, rejected 1 as expected, 0 failed"
        assert code == 0
        assert re.search(r"memory of sandbox: limit .* reserved .* slots \d/\d", demo.output)
        demo.assert_nothing_is_left(ports)


def test_the_sandbox_serves_other_shells_until_it_is_interrupted(tmp_path: Path) -> None:
    with ncr(tmp_path, "sandbox") as sandbox:
        sandbox.await_text("Ctrl-C stops all")
        settings = sandbox.settings()
        ports = [int(port) for name, port in settings.items() if name.endswith("_PORT")]
        assert len(ports) >= 3
        assert all(map(accepts, ports))

        # The curl line that was printed works as it stands, and so does ncr after sourcing the settings.
        curl = re.search(r"curl -s (\S+/process-job) .* -d '(.*)'", sandbox.output)
        assert curl is not None
        task = httpx2.post(curl[1], content=curl[2], headers={"Content-Type": "application/json"}).json()["task_id"]
        status = f"http://127.0.0.1:{settings['API_PORT']}/job-status/{task}"
        assert eventually(lambda: httpx2.get(status).json()["status"] == "completed", 60), httpx2.get(status).text
        shell = subprocess.run(
            ["bash", "-ec", f". .sandbox/env; {shlex.quote(NCR)} db upgrade"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "revision" in shell.stdout
        assert (sandbox.state / "env").stat().st_mode & 0o077 == 0

        second = subprocess.run([NCR, "sandbox"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert "already running" in second.stderr

        sandbox.process.send_signal(signal.SIGINT)
        assert sandbox.await_end(60) == 0
        assert sandbox.output.splitlines()[-1] == "SIGINT: all parts have ended, .sandbox is removed"
        assert {f"stopped {name}" for name in ("api", "worker", "beat", "flower", "s3")} <= set(
            sandbox.output.splitlines()
        )
        sandbox.assert_nothing_is_left(ports)
        s3_port = settings["S3_ENDPOINT_URL"].rpartition(":")[2]
        assert not list(Path("/tmp").glob(f"seaweedfs-*{s3_port}.sock"))  # it makes them outside of its folder


def test_sigterm_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    with ncr(tmp_path, "demo") as demo:
        demo.await_text("started validator")  # now our own processes are launched
        demo.process.terminate()
        assert demo.await_end(60) == 128 + signal.SIGTERM
        demo.assert_nothing_is_left()


def test_its_processes_do_not_outlive_a_killed_sandbox(tmp_path: Path) -> None:
    with ncr(tmp_path, "sandbox") as sandbox:
        sandbox.await_text("started validator")
        assert eventually(lambda: len(sandbox.family()) > 6, 20)
        sandbox.process.kill()
        assert eventually(lambda: not sandbox.family(), 10), sandbox.family()


def test_a_part_that_dies_early_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    with ncr(tmp_path, "sandbox", CELERY_WORKER_CONCURRENCY="none") as sandbox:
        assert sandbox.await_end(UP) == 1
        assert "worker ended with status 2" in sandbox.output
        assert "CELERY_WORKER_CONCURRENCY" in sandbox.output
        sandbox.assert_nothing_is_left()
