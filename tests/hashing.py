"""An SFTP server of paramiko's in this process: it has the extension check-file, which OpenSSH and asyncssh lack."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL, OPEN_SUCCEEDED
from paramiko.sftp import SFTP_OK

USER, PASSWORD = "courier", "open sesame"


class _Door(paramiko.ServerInterface):
    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def get_allowed_auths(self, username: str) -> str:
        return "password"

    def check_auth_password(self, username: str, password: str) -> int:
        return AUTH_SUCCESSFUL if (username, password) == (USER, PASSWORD) else AUTH_FAILED


class _Files(paramiko.SFTPServerInterface):
    def __init__(self, server: paramiko.ServerInterface, *args: Any, root: Path, **named: Any) -> None:
        super().__init__(server, *args, **named)
        self._root = root

    def _path(self, path: str) -> Path:
        return self._root / self.canonicalize(path).lstrip("/")

    def stat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(self._path(path).stat())
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)

    lstat = stat

    def open(self, path: str, flags: int, attr: Any) -> Any:
        try:
            mode = {os.O_RDONLY: "rb", os.O_WRONLY: "wb", os.O_RDWR: "r+b"}[flags & os.O_ACCMODE]
            opened = os.fdopen(os.open(self._path(path), flags, 0o644), mode)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)
        handle: Any = paramiko.SFTPHandle(flags)
        handle.readfile = handle.writefile = opened
        handle.stat = lambda: paramiko.SFTPAttributes.from_stat(os.fstat(opened.fileno()))
        return handle

    def remove(self, path: str) -> int:
        self._path(path).unlink()
        return SFTP_OK


@contextmanager
def hashing_sftp(root: Path) -> Iterator[dict[str, Any]]:
    """The settings that make it the target."""
    root.mkdir()
    key = paramiko.ECDSAKey.generate()
    transports = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            transport = paramiko.Transport(connection)
            transport.add_server_key(key)
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, _Files, root=root)
            transport.start_server(threading.Event(), _Door())
            transports.append(transport)

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        yield {
            "sftp_host": "127.0.0.1",
            "sftp_port": port,
            "sftp_user": USER,
            "sftp_password": PASSWORD,
            "sftp_host_keys": (key.fingerprint,),
        }
        thread.join()
        for transport in transports:
            transport.close()
            transport.join()
