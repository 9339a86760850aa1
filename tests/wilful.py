"""An SFTP server in this process that does as a test wishes: refuses requests, and notes who logs in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh

from ncr_worker.sandbox.process import LOOPBACK

USER, PASSWORD = "courier", "open sesame"


class WilfulSftp:
    """`refuse`: request -> the error that answers it. `logins`: what clients have sent to log in. `window`: bytes
    that a client may send before it is told to go on. `forgetful`: each write loses its last byte, silently."""

    def __init__(self, root: Path, window: int) -> None:
        self.root = root
        self.window = window
        self.port = 0
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.refuse: dict[str, Callable[[str], asyncssh.SFTPError]] = {}
        self.forgetful = False
        self.logins: list[tuple[str, str]] = []
        self.doors: list[asyncssh.SSHServerConnection] = []

    @property
    def fingerprint(self) -> str:
        return str(self.host_key.get_fingerprint())

    def env(self) -> dict[str, str]:
        return {
            "SFTP_HOST": LOOPBACK,
            "SFTP_PORT": str(self.port),
            "SFTP_USER": USER,
            "SFTP_PASSWORD": PASSWORD,
            "SFTP_HOST_KEYS": self.fingerprint,
        }

    async def serve(self, started: threading.Event, over: asyncio.Event) -> None:
        server = await asyncssh.listen(
            LOOPBACK,
            0,
            server_factory=lambda: _Door(self),
            server_host_keys=[self.host_key],
            sftp_factory=lambda channel: _Files(channel, self),
            window=self.window,
        )
        self.port = server.get_port()
        started.set()
        await over.wait()
        server.close()
        for door in self.doors:
            door.abort()
        await server.wait_closed()
        await asyncio.gather(*(door.wait_closed() for door in self.doors))
        await asyncio.sleep(0)


class _Door(asyncssh.SSHServer):
    def __init__(self, owner: WilfulSftp) -> None:
        self._owner = owner

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._owner.doors.append(conn)

    def begin_auth(self, username: str) -> bool:
        self._owner.logins.append((username, ""))
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        self._owner.logins.append((username, password))
        return (username, password) == (USER, PASSWORD)


class _Files(asyncssh.SFTPServer):
    def __init__(self, channel: Any, owner: WilfulSftp) -> None:
        super().__init__(channel, chroot=str(owner.root).encode())
        self._owner = owner

    def _may(self, request: str) -> None:
        if error := self._owner.refuse.get(request):
            raise error(getattr(error, "__name__", request))

    def rename(self, oldpath: bytes, newpath: bytes) -> Any:
        self._may("rename")
        return super().rename(oldpath, newpath)

    def posix_rename(self, oldpath: bytes, newpath: bytes) -> Any:
        self._may("posix_rename")
        return super().posix_rename(oldpath, newpath)

    def symlink(self, oldpath: bytes, newpath: bytes) -> Any:
        self._may("symlink")
        return super().symlink(oldpath, newpath)

    def setstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> Any:
        self._may("setstat")
        return super().setstat(path, attrs)

    def write(self, file_obj: object, offset: int, data: bytes) -> Any:
        self._may("write")
        return super().write(file_obj, offset, data[:-1] if self._owner.forgetful else data)


@contextmanager
def wilful_sftp(root: Path, window: int = 1 << 21) -> Iterator[WilfulSftp]:
    root.mkdir()
    server = WilfulSftp(root, window)
    started = threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve(started, over)))
    thread.start()
    started.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()
