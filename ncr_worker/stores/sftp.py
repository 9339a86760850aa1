"""The SFTP server that deliveries go to (paramiko, tuned as docs/decisions/0011-sftp-publish.md tells).

The host key is checked against the pinned fingerprints before any credential is sent. One connection for each
process, with a channel for each parallel file, made anew when it was cut.
"""

from __future__ import annotations

import errno
import os
import posixpath
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko

from ncr_worker.errors import ConfigError, NcrError, Rejected, Transient
from ncr_worker.settings import Settings
from ncr_worker.stores import Progress, unwatched
from ncr_worker.stores.file import disk_errors

WRITE = 32_000
"""Bytes for each write request: with its header it fits one SSH packet of 32 KiB. Larger is slower (measured)."""
KEEPALIVE = 15
_TCP_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux


def target(settings: Settings) -> SftpTarget:
    """The delivery target of this process. Nothing is connected yet. Raises ConfigError."""
    if not settings.sftp_host:
        raise ConfigError("SFTP_HOST", "is empty", "Name the SFTP server that deliveries go to")
    return SftpTarget(settings)


class SftpTarget:
    """Paths are POSIX paths on the server. Safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._transport: paramiko.Transport | None = None
        self._idle: list[paramiko.SFTPClient] = []

    # --- files ---------------------------------------------------------------------------------------
    def upload(self, path: Path, remote: str, progress: Progress = unwatched) -> None:
        """Copy the local file `path` to `remote`, going on after what an earlier cut left there.

        So `remote` must be a name under which never anything but this content is written. A server applies writes
        in the order in which they arrive: what is there is a prefix of the file.
        """
        with disk_errors(), path.open("rb") as source, self._client() as client:
            size = os.fstat(source.fileno()).st_size
            done = _size(client, remote)
            if done is None or done > size:
                sink, done = client.open(remote, "wb"), 0
            else:
                sink = client.open(remote, "r+b")
            with sink:
                sink.seek(done)
                source.seek(done)
                progress(done)
                _send(source.read, sink, size - done, progress)
            if (arrived := _size(client, remote)) != size:
                raise Transient(f"{remote}: {arrived} of {size:,} bytes arrived (disk full?)", code="sftp_failed")

    def exists(self, path: str) -> bool:
        with self._client() as client:
            return _exists(client, path)

    def rename(self, old: str, new: str) -> None:
        """Rename a file or folder. Never replaces: raises Transient or Rejected when `new` exists."""
        with self._client() as client:
            client.rename(old, new)

    # --- folders -------------------------------------------------------------------------------------
    def make_folder(self, path: str) -> None:
        """Make a folder and those above it; one that exists is no error."""
        with self._client() as client:
            missing = []
            while path not in ("", "/", ".") and not _exists(client, path):
                missing.append(path)
                path = posixpath.dirname(path)
            for folder in reversed(missing):
                try:
                    client.mkdir(folder)
                except OSError:
                    if not _exists(client, folder):  # else made by another job meanwhile
                        raise

    def names(self, folder: str) -> list[str]:
        """Names in a folder, the most recently changed first."""
        with self._client() as client:
            found = sorted(client.listdir_attr(folder), key=lambda entry: (-(entry.st_mtime or 0), entry.filename))
        return [entry.filename for entry in found]

    def sizes(self, folder: str) -> dict[str, int]:
        """Every file below `folder`: path relative to it -> bytes. Empty for a missing folder."""
        with self._client() as client:
            if not _exists(client, folder):
                return {}
            return {
                posixpath.relpath(path, folder): entry.st_size or 0
                for path, entry in _walk(client, folder)
                if not stat.S_ISDIR(entry.st_mode or 0)
            }

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and all below it; a missing one is no error."""
        with self._client() as client:
            if not _exists(client, folder):
                return
            for path, entry in _walk(client, folder):
                if stat.S_ISDIR(entry.st_mode or 0):
                    client.rmdir(path)
                else:
                    client.remove(path)
            client.rmdir(folder)

    # --- connection ----------------------------------------------------------------------------------
    def host_key(self) -> str:
        """Fingerprint of the server's key, `SHA256:…`; it is one of the pinned ones."""
        with self._lock:
            return _fingerprint(self._connected())

    def close(self) -> None:
        with self._lock:
            self._drop()

    @contextmanager
    def _client(self) -> Iterator[paramiko.SFTPClient]:
        """A channel of our own for a while. All errors of the library are translated here."""
        transport = client = None
        try:
            with self._lock:
                transport = self._connected()
                client = self._idle.pop() if self._idle else None
            client = client or self._open_channel(transport)
            yield client
        except (paramiko.SSHException, EOFError, OSError) as error:
            cut = transport is None or not transport.is_active() or not isinstance(error, OSError)
            with self._lock:
                if (cut or isinstance(error, TimeoutError)) and transport is self._transport:
                    self._drop()
            raise _translate(error, cut) from error
        finally:
            # Also after other errors, e.g. of `progress`: answers still under way are skipped by their number.
            with self._lock:
                if client is not None and transport is self._transport:
                    self._idle.append(client)

    def _open_channel(self, transport: paramiko.Transport) -> paramiko.SFTPClient:
        channel = transport.open_session(timeout=self._settings.sftp_timeout)
        channel.settimeout(self._settings.sftp_timeout)
        channel.invoke_subsystem("sftp")
        return paramiko.SFTPClient(channel)

    def _connected(self) -> paramiko.Transport:
        if self._transport is None or not self._transport.is_active():
            self._drop()
            self._transport = _connect(self._settings)
        return self._transport

    def _drop(self) -> None:
        self._idle.clear()
        if self._transport is not None:
            self._transport.close()
            self._transport = None


def _send(read: Callable[[int], bytes], sink: paramiko.SFTPFile, size: int, progress: Progress) -> None:
    """`size` bytes without waiting for each answer. The last write waits for all of them and tells their errors."""
    sink.set_pipelined(True)
    unreported = 0
    while size > 0:
        chunk = read(WRITE)
        if not chunk:
            raise Transient("a local file became shorter while it was sent", code="disk_failed")
        size -= len(chunk)
        sink.set_pipelined(size > 0)
        sink.write(chunk)
        unreported += len(chunk)
        if unreported >= 32 * WRITE or size <= 0:
            progress(unreported)
            unreported = 0


def _connect(settings: Settings) -> paramiko.Transport:
    where = f"{settings.sftp_host}:{settings.sftp_port}"
    try:
        sock = socket.create_connection((settings.sftp_host, settings.sftp_port), timeout=settings.sftp_timeout)
    except OSError as error:
        raise Transient(f"SFTP server {where}: {error}", code="sftp_unreachable", retry_in=2) from error
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if _TCP_USER_TIMEOUT is not None:
        # A peer that stops reading would block paramiko's writes for ever: its own timeouts do not cover them.
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, int(settings.sftp_timeout * 1000))
    transport = paramiko.Transport(sock)
    try:
        _handshake(transport, settings)
    except NcrError:
        transport.close()
        raise
    except paramiko.AuthenticationException as error:
        transport.close()
        raise ConfigError(
            "SFTP_USER",
            f"{where} refuses {settings.sftp_user}",
            "Check the user and SFTP_PASSWORD or SFTP_KEY_PATH",
            code="sftp_auth_failed",
        ) from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        transport.close()
        raise Transient(f"SFTP server {where}: {error}", code="sftp_unreachable", retry_in=2) from error
    transport.set_keepalive(KEEPALIVE)
    return transport


def _handshake(transport: paramiko.Transport, settings: Settings) -> None:
    options = transport.get_security_options()
    # AES-GCM first: encryption and checksum in one pass, half again as fast.
    options.ciphers = sorted(options.ciphers, key=lambda cipher: "gcm" not in cipher)
    transport.banner_timeout = transport.auth_timeout = settings.sftp_timeout
    transport.start_client(timeout=settings.sftp_timeout)
    seen = _fingerprint(transport)
    if seen not in settings.sftp_host_keys:
        pinned = ", ".join(settings.sftp_host_keys) or "none is pinned"
        raise ConfigError(
            "SFTP_HOST_KEYS",
            f"{settings.sftp_host} shows the host key {seen}, which is not pinned ({pinned})",
            "Ask the server's owner for its fingerprint; only if it is this one, add it",
            code="sftp_host_key",
        )
    if settings.sftp_key_path:
        transport.auth_publickey(settings.sftp_user, _private_key(settings.sftp_key_path))
    else:
        transport.auth_password(settings.sftp_user, settings.sftp_password.get_secret_value(), fallback=False)


def _private_key(path: str) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(path)
    except (OSError, ValueError, paramiko.SSHException) as error:
        raise ConfigError("SFTP_KEY_PATH", f"cannot read {path} ({error})", "Name a private key file") from error


def _fingerprint(transport: paramiko.Transport) -> str:
    return transport.get_remote_server_key().fingerprint


def _size(client: paramiko.SFTPClient, path: str) -> int | None:
    try:
        return client.stat(path).st_size
    except FileNotFoundError:
        return None


def _exists(client: paramiko.SFTPClient, path: str) -> bool:
    try:
        client.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _walk(client: paramiko.SFTPClient, folder: str) -> Iterator[tuple[str, paramiko.SFTPAttributes]]:
    """Everything below `folder`, what is in a folder before the folder itself. Links are not followed."""
    for entry in client.listdir_attr(folder):
        path = posixpath.join(folder, entry.filename)
        if stat.S_ISDIR(entry.st_mode or 0):
            yield from _walk(client, path)
        yield path, entry


def _translate(error: Exception, cut: bool) -> NcrError:
    if cut or isinstance(error, TimeoutError):
        return Transient(f"SFTP connection was cut: {error or 'no answer in time'}", code="sftp_cut")
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EACCES:
        return Rejected(f"the SFTP server denies it: {error}", code="sftp_denied")
    words = str(error).lower()
    if number == errno.ENOSPC or "no space" in words or "quota" in words:
        return Transient(f"the SFTP server's disk is full: {error}", code="sftp_disk_full", retry_in=30)
    return Transient(f"the SFTP server failed: {error}", code="sftp_failed")
