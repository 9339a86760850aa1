"""The whole system on loopback: real servers, then our own processes. All state is in one folder; nothing stays."""

from __future__ import annotations

import fcntl
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, Self

from ncr_worker.errors import ConfigError, Conflict
from ncr_worker.history import History, Wanted
from ncr_worker.ledger import schema
from ncr_worker.ledger.hosts import Hosts
from ncr_worker.sandbox.own import Api, Beat, Flower, Worker
from ncr_worker.sandbox.process import ENDING, ServerFailed, ServerProcess
from ncr_worker.sandbox.s3 import S3
from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.sandbox.validator import Validator
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings, load_settings
from ncr_worker.sql import Database

HOST = "sandbox"
LOCK = "lock"
ENV = "env"
LEASE = 60.0

Say = Callable[[str], None]
"""Tells the user what happens, in a few words."""


class Stopped(BaseException):
    """A signal asks to stop. Not an Exception: nobody may take it for a failure and go on."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Inside, the first signal to end raises Stopped in the main thread, and later ones are ignored.

    Gives a function that ignores them from now on, so that nothing disturbs the clean-up.
    """

    def ignore() -> None:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)

    def stop(number: int, _frame: FrameType | None) -> None:
        ignore()
        raise Stopped(number)

    earlier = {number: signal.signal(number, stop) for number in ENDING}
    try:
        yield ignore
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextmanager
def own_folder(path: Path) -> Iterator[Path]:
    """A folder that is ours alone, empty at first and gone in the end. What a killed sandbox left is removed.

    Raises Conflict when a sandbox runs there, or when it holds anything that no sandbox made.
    """
    lock = path / LOCK
    if path.exists() and not lock.exists() and any(path.iterdir()):
        raise Conflict(f"{path} is not empty and no sandbox made it: choose another --folder", code="not_a_sandbox")
    path.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            text = f"a sandbox is already running in {path}: stop it, or choose another --folder"
            raise Conflict(text, code="sandbox_running") from error
        for left in path.iterdir():
            if left != lock:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield path
        finally:
            shutil.rmtree(path)


@contextmanager
def running(folder: Path, say: Say) -> Iterator[Sandbox]:
    """A started sandbox that a signal ends by raising Stopped; when this is left, nothing of it is there.

    Raises Conflict and ServerFailed.
    """
    with stoppable() as ignore_signals, own_folder(folder) as path, Sandbox(path, say) as sandbox:
        try:
            yield sandbox
        finally:
            ignore_signals()


def settings_of(folder: Path) -> Settings:
    """The settings of the sandbox that runs in `folder`, whatever the environment says. Raises ConfigError."""
    try:
        words = shlex.split((folder / ENV).read_text())
    except FileNotFoundError as error:
        remedy = "Start one in another shell: ncr sandbox. If it has another folder, name that: --sandbox"
        raise ConfigError("sandbox", f"none runs in {folder}", remedy) from error
    pairs = (word.partition("=") for word in words if word != "export")
    return load_settings(**{name.lower(): value for name, _, value in pairs})


class Sandbox:
    """While entered, everything runs. Raises ServerFailed, naming the part and with the end of its log."""

    def __init__(self, folder: Path, say: Say) -> None:
        self.folder = folder.absolute()
        self._say = say
        self.valkey = Valkey(self.folder / "valkey")
        self.s3 = S3(self.folder / "s3")
        self.sftp = SFTP(self.folder / "sftp")
        self.validator = Validator(self.folder / "validator")
        self.servers: Sequence[ServerProcess] = (self.valkey, self.s3, self.sftp, self.validator)
        self.work_folder = self.folder / "work"
        self.env_file = self.folder / ENV
        self.database_url = f"sqlite:///{self.folder / 'ncr.sqlite3'}"
        self.database = Database(self.database_url)
        settings = self._settings()
        self.api = Api(self.folder / "api", settings)
        self.worker = Worker(self.folder / "worker", settings, self._worker_is_up)
        self.beat = Beat(self.folder / "beat", settings, self._beat_is_up)
        self.flower = Flower(self.folder / "flower", settings)
        self.own: Sequence[ServerProcess] = (self.worker, self.api, self.beat, self.flower)

    def env(self) -> dict[str, str]:
        """The settings, NAME to value, that make any `ncr` command use this sandbox."""
        return self._settings() | self.api.env() | self.flower.env()

    def _settings(self) -> dict[str, str]:
        return {name: value for server in self.servers for name, value in server.env().items()} | {
            "DATABASE_URL": self.database_url,
            "CATALOG_URL": self.database_url,
            "CELERY_BROKER_URL": self.valkey.url,
            "HOST_ID": HOST,
            "HOST_HEARTBEAT": "2",  # so that the memory line moves
            "SHUTDOWN_GRACE": "2",
            "STUCK_REPORT_AT": "*/30 * * * *",  # so that beat has something to do at once
            "WORK_FOLDER": str(self.work_folder),
            "SFTP_ROOT": ".",
            "SFTP_BACKUPS": "0",
            # Settings that would lead out of the sandbox; empty is as good as not set.
            **dict.fromkeys(("CELERY_RESULT_BACKEND", "SFTP_KEY_PATH", "LAYOUT_FILE", "EXTRA_PIPELINES"), ""),
        }

    def __enter__(self) -> Self:
        try:
            self._start(self.servers)
            self.work_folder.mkdir()
            schema.upgrade(self.database)
            self._start(self.own)
            self._write_env()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def _start(self, servers: Sequence[ServerProcess]) -> None:
        """All at once. Launched by this thread: a server ends with the thread that launched it."""
        began = time.monotonic()
        for server in servers:
            server.launch()
        for server in servers:
            server.await_ready()
            self._say(f"started {server.name} after {time.monotonic() - began:.1f} s")

    def _worker_is_up(self) -> bool:
        return any(host.id == HOST for host in Hosts(self.database, lease=LEASE).live())

    def _beat_is_up(self) -> bool:
        return bool(History(self.database).jobs(Wanted(kind="stuck_report"), limit=1))

    def _write_env(self) -> None:
        self.env_file.touch(mode=0o600)  # it holds passwords
        self.env_file.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in self.env().items()))

    def check(self) -> None:
        """Raises ServerFailed when a part has ended by itself."""
        for server in (*self.servers, *self.own):
            server.check()

    def watch(self) -> NoReturn:
        """Until a signal comes. Raises like `check`."""
        while True:
            self.check()
            time.sleep(0.5)

    def stop(self) -> None:
        """Our own processes first. When one cannot be stopped the others still are; then raises ServerFailed."""
        self.database.close()
        failures = [failure for servers in (self.own, self.servers) for failure in self._stop(servers)]
        if failures:
            raise ServerFailed("; ".join(map(str, failures)))

    def _stop(self, servers: Sequence[ServerProcess]) -> list[ServerFailed]:
        def stop(server: ServerProcess) -> ServerFailed | None:
            if not server.running:
                return None
            try:
                server.stop()
            except ServerFailed as failure:
                return failure
            self._say(f"stopped {server.name}")
            return None

        with ThreadPoolExecutor(len(servers)) as threads:
            return [failure for failure in threads.map(stop, servers) if failure]
