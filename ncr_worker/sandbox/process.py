"""A server as a child process: started until it answers, stopped until nothing of it is left.

A new server is one file with one subclass of `ServerProcess`.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Self

import psutil

from ncr_worker.errors import NcrError

LOOPBACK = "127.0.0.1"
TETHER = Path(__file__).with_name("tether.py")
LOG_TAIL_LINES = 25
STOP_PATIENCE = 15.0
FAMILY_PATIENCE = 2.0
"""Seconds that a server's children get to notice that their leader has stopped."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PORTS = range(10_000, 22_000)
"""Below the ports that clients are given, so that no client takes a server's port while it restarts."""

_given: set[int] = set()


class ServerFailed(NcrError):
    """A server did not come up; the message ends with the last lines of its log."""

    code = "server_failed"


def free_port(*also: int) -> int:
    """A loopback TCP port that nobody listens on, different at each call; `also`: port + offset must be free too."""
    for port in random.sample(PORTS, len(PORTS)):
        wanted = {port, *(port + offset for offset in also)}
        if not wanted & _given and all(map(_is_free, wanted)):
            _given.update(wanted)
            return port
    raise ServerFailed(f"no free port between {PORTS.start} and {PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def accepts(port: int) -> bool:
    """Whether somebody listens on this loopback port."""
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


def http_ok(url: str) -> bool:
    """Whether GET answers 2xx."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(200 <= answer.status < 300)
    except (OSError, urllib.error.URLError):
        return False


def throw_away_secret() -> str:
    return secrets.token_hex(16)


class ServerProcess(ABC):
    """One server with its folder (data, keys, `<name>.log`) and its ports, which it keeps over restarts.

    Runs in a session of its own, so that Ctrl-C reaches only whoever started it, and dies with the *thread* that
    called `start()`, even when that is SIGKILLed: start it from a thread that lives as long as the server should.
    """

    name: ClassVar[str]
    start_patience: ClassVar[float] = 30.0
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    user: str = ""
    """System account to run as; empty: the caller's. Only root can choose."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> Sequence[str]:
        """Absolute path of the program, and its arguments; it must stay in the foreground."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it does real work now. Asked often; must return soon and not raise when it is away."""

    @abstractmethod
    def env(self) -> dict[str, str]:
        """The settings, NAME to value, that make ncr_worker use this server."""

    def environment(self) -> dict[str, str]:
        """Environment variables that the server needs besides our own."""
        return {}

    def prepare(self) -> None:  # noqa: B027 - most servers need nothing
        """Bring the folder into the state that the server expects. Called before each start."""

    def clean_up(self) -> None:  # noqa: B027 - most servers leave nothing
        """Remove what the server leaves outside of its folder. Called after each end."""

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """Raises ServerFailed when it was not started."""
        if self._process is None:
            raise ServerFailed(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when it is ready. Raises ServerFailed with the log's tail; then nothing of it is left running."""
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        """The first half of `start`, without waiting: so several servers can come up at once."""
        if self.running:
            return
        if self.user:
            shutil.chown(self.folder, self.user)
        self.prepare()
        with self.log.open("ab") as log, signals_wait():
            self._process = subprocess.Popen(
                self._tethered(self.command()),
                cwd=self.folder,
                env=os.environ | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def await_ready(self) -> None:
        """The second half of `start`. Raises like it."""
        deadline = time.monotonic() + self.start_patience
        try:
            while not self.ready():
                self.check()
                if time.monotonic() > deadline:
                    raise self._failure(f"was not ready within {self.start_patience:g} s")
                time.sleep(0.02)
        except BaseException:
            self.kill()
            raise

    def check(self) -> None:
        """Raises ServerFailed with the log's tail when it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise self._failure(f"ended with status {self._process.returncode}")

    def run(self, *command: str) -> None:
        """Run a tool of the server (absolute path) to its end, as its user. Raises ServerFailed with the log's tail."""
        with self.log.open("ab") as log:
            done = subprocess.run(
                self._tethered(command),
                cwd=self.folder,
                env=os.environ | self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            raise self._failure(f"needs {Path(command[0]).name}, which ended with status {done.returncode}")

    def _tethered(self, command: Sequence[str]) -> list[str]:
        return [sys.executable, "-IS", str(TETHER), str(os.getpid()), self.user, *command]

    def _failure(self, problem: str) -> ServerFailed:
        tail = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return ServerFailed("\n  ".join([f"{self.name} {problem}; the end of {self.log}:", *tail]))

    def stop(self) -> None:
        """`stop_signal`, and after `STOP_PATIENCE` seconds SIGKILL. Nothing of it is left when this returns."""
        family = self._family()
        if self._process is not None and self.running:
            self._process.send_signal(self.stop_signal)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_PATIENCE)
            _survivors(family, FAMILY_PATIENCE)
        self._end(family)

    def kill(self) -> None:
        """SIGKILL to all of it at once, as a crash would. `start()` brings it back on the same port and data."""
        self._end(self._frozen_family())

    def _end(self, family: Sequence[psutil.Process]) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
        if survivors := _survivors(family, STOP_PATIENCE):
            raise ServerFailed(f"{self.name}: processes that cannot be killed: {survivors}")
        self.clean_up()

    def _family(self) -> list[psutil.Process]:
        """The process and all that descend from it: a server's children may have left its group."""
        if self._process is None:
            return []
        try:
            leader = psutil.Process(self._process.pid)
            return [leader, *leader.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _frozen_family(self) -> list[psutil.Process]:
        """The family, stopped first: a member that forks while it is listed and killed would leave an orphan."""
        family: list[psutil.Process] = []
        while len(grown := self._family()) > len(family):
            family = grown
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.suspend()
        return family

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()


def _survivors(family: Sequence[psutil.Process], patience: float) -> list[psutil.Process]:
    """Those that still run after at most `patience` seconds. A zombie has ended: somebody else may have to reap it."""
    deadline = time.monotonic() + patience
    while (alive := [member for member in family if _runs(member)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def signals_wait() -> Iterator[None]:
    """A signal to end that comes meanwhile is handled afterwards: one that raised between a fork and the end of Popen
    would leave a process that belongs to nobody."""
    if threading.current_thread() is not threading.main_thread():  # no handler raises here
        yield
        return
    arrived: list[int] = []
    # None: not Python's own handler, which can neither raise nor be put back.
    handlers = {number: handler for number in ENDING if callable(handler := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, lambda number, _frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in arrived:
            signal.raise_signal(each)
