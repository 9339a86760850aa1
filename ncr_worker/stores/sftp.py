"""The SFTP server that deliveries go to (paramiko, tuned as docs/decisions/0011-sftp-publish.md tells).

One connection for each process (`ssh.py`), with a channel for each parallel file, made anew when it was cut.
"""

from __future__ import annotations

import errno
import math
import os
import posixpath
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import paramiko
from paramiko.sftp import CMD_EXTENDED

from ncr_worker.errors import ConfigError, NcrError, Rejected, Transient
from ncr_worker.settings import Settings
from ncr_worker.stores import Progress, unwatched
from ncr_worker.stores.file import disk_errors
from ncr_worker.stores.pipelining import PipelinedWrites
from ncr_worker.stores.ssh import fingerprint, open_transport

WRITE = 255 * 1024
"""Bytes for each write request: OpenSSH takes 256 KiB with its header. Fewer requests have fewer answers."""
SMALLEST_HASHED = 256
"""Bytes; the extension check-file takes no smaller blocks."""


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
        self._hashes = True  # until the server says that it has none

    # --- files ---------------------------------------------------------------------------------------
    def upload(
        self, path: Path, remote: str, progress: Progress = unwatched, *, done: int | None = None, sha256: str = ""
    ) -> None:
        """Copy the local file `path` to `remote`, going on after what an earlier cut left there.

        So `remote` must be a name under which never anything but this content is written. A server applies writes
        in the order in which they arrive: what is there is a prefix of the file. `done`: how many bytes that is,
        from one who has asked for the `sizes` of all. The size is verified afterwards, and `sha256` (hex) too where
        the server has the extension `check-file`.
        """
        with disk_errors(), path.open("rb") as source, self._client() as client:
            size = os.fstat(source.fileno()).st_size
            if done is None:
                done = _size(client, remote) or 0
            if done > size:
                done = 0
            sink = client.open(remote, "r+b" if done else "wb")
            with _refused_writes(client, remote, size), sink:
                source.seek(done)
                progress(done)
                _send(source.read, PipelinedWrites(sink, done), size - done, progress)
            _require_size(client, remote, size)
            if sha256 and self._hashes and size >= SMALLEST_HASHED:
                self._hashes = _require_hash(client, remote, sha256)
            _set_mode(client, remote, "SFTP_FILE_MODE", self._settings.sftp_file_mode)

    def exists(self, path: str) -> bool:
        with self._client() as client:
            return _exists(client, path)

    def rename(self, old: str, new: str) -> None:
        """Rename a file or folder. Never replaces: raises Transient or Rejected when `new` exists."""
        with self._client() as client:
            try:
                client.rename(old, new)
            except OSError as error:
                if not _is_refusal(error) or _exists(client, new):
                    raise
                text = f"the SFTP server refuses to rename {old} to {new} ({error}); its owner must allow renaming"
                kind = Rejected if _is_final(error) else Transient
                raise kind(f"{text} in that folder, or set SFTP_PUBLISH=symlink", code="sftp_rename_refused") from error

    # --- links ---------------------------------------------------------------------------------------
    def link(self, folder: str, path: str) -> None:
        """Make `path` a symbolic link to `folder` beside it, in one step that replaces an earlier link.

        Raises ConfigError when the server has no symbolic links.
        """
        part = f"{folder}.link"
        with self._client() as client:
            try:
                if _exists(client, part):
                    client.remove(part)
                client.symlink(posixpath.basename(folder), part)
                client.posix_rename(part, path)
            except OSError as error:
                # Not found: the server takes the names of a link in the other order than OpenSSH.
                if not _is_refusal(error) and not isinstance(error, FileNotFoundError):
                    raise
                problem = f"the server refuses to make {path} a symbolic link ({error})"
                raise ConfigError(
                    "SFTP_PUBLISH", problem, "Set SFTP_PUBLISH=rename", code="sftp_link_refused"
                ) from error

    def linked(self, path: str) -> str | None:
        """The path that the symbolic link `path` names, beside it; None when it is none, or names nothing."""
        with self._client() as client:
            if not _is_link(client, path):
                return None
            try:
                # Not readlink: asyncssh, for one, refuses it for relative links.
                return posixpath.join(posixpath.dirname(path), posixpath.basename(client.normalize(path)))
            except FileNotFoundError:
                return None

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
                _set_mode(client, folder, "SFTP_FOLDER_MODE", self._settings.sftp_folder_mode)

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
        """Remove a folder and all below it, or a link and the folder it names; a missing one is no error."""
        if linked := self.linked(folder):
            self.remove_folder(linked)
        with self._client() as client:
            if _is_link(client, folder):
                client.remove(folder)
                return
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
            return fingerprint(self._connected())

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
            self._transport = open_transport(self._settings)
        return self._transport

    def _drop(self) -> None:
        self._idle.clear()
        if self._transport is not None:
            self._transport.close()
            self._transport = None


def _send(read: Callable[[int], bytes], writes: PipelinedWrites, size: int, progress: Progress) -> None:
    """`size` bytes without waiting for each answer; in the end all have come, and tell their errors."""
    unreported = 0
    with writes:
        while size > 0:
            chunk = read(WRITE)
            if not chunk:
                raise Transient("a local file became shorter while it was sent", code="disk_failed")
            size -= len(chunk)
            writes.write(chunk)
            unreported += len(chunk)
            if unreported >= 4 * WRITE or size <= 0:
                progress(unreported)
                unreported = 0


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


def _is_link(client: paramiko.SFTPClient, path: str) -> bool:
    try:
        return stat.S_ISLNK(client.lstat(path).st_mode or 0)
    except FileNotFoundError:
        return False


@contextmanager
def _refused_writes(client: paramiko.SFTPClient, remote: str, size: int) -> Iterator[None]:
    """A write that the server refused leaves a gap when later ones are taken: such a file is not gone on with."""
    try:
        yield
    except OSError as error:
        if not _is_refusal(error):
            raise
        full = _is_full(client, remote, size)
        client.remove(remote)
        if full:
            raise _disk_full(f"{remote}: {error}") from error
        raise


def _require_size(client: paramiko.SFTPClient, remote: str, size: int) -> None:
    """Some servers take a write of which only a part had room, and say nothing: such a file is not gone on with."""
    arrived = _size(client, remote)
    if arrived == size:
        return
    text, full = f"{remote}: {arrived} of {size:,} bytes arrived", _is_full(client, remote, size)
    if arrived is not None:
        client.remove(remote)
    raise _disk_full(text) if full else Transient(text, code="sftp_failed")


def _is_full(client: paramiko.SFTPClient, remote: str, size: int) -> bool:
    """Whether there is no room for the rest of a file of `size` bytes."""
    return _free(client, posixpath.dirname(remote)) < size - (_size(client, remote) or 0)


def _free(client: paramiko.SFTPClient, folder: str) -> float:
    """Bytes that may still be written, where the server tells (OpenSSH's own answer to a full disk is `Failure`)."""
    try:
        # paramiko has no public way to use an extension.
        _, answer = cast(Any, client)._request(CMD_EXTENDED, "statvfs@openssh.com", folder or ".")
        _block, unit, _blocks, _free_blocks, available = (int(answer.get_int64()) for _ in range(5))
    except OSError as error:
        if not _is_refusal(error):
            raise
        return math.inf
    return unit * available


def _require_hash(client: paramiko.SFTPClient, remote: str, sha256: str) -> bool:
    """False when the server has no hashes. Raises Transient when it has another one than `sha256`."""
    with client.open(remote, "rb") as stored:
        try:
            found = stored.check("sha256").hex()
        except OSError as error:
            if not _is_refusal(error):
                raise
            return False
    if found != sha256:
        client.remove(remote)  # or the next try would find its size right
        raise Transient(f"{remote}: its SHA-256 is {found} on the server, not {sha256}", code="sftp_not_as_planned")
    return True


def _set_mode(client: paramiko.SFTPClient, path: str, setting: str, mode: str) -> None:
    try:
        if mode:
            client.chmod(path, int(mode, 8))
    except OSError as error:
        if not _is_refusal(error):
            raise
        problem = f"the server refuses to set the mode of {path} ({error})"
        raise ConfigError(setting, problem, "Leave it empty", code="sftp_mode_refused") from error


def _walk(client: paramiko.SFTPClient, folder: str) -> Iterator[tuple[str, paramiko.SFTPAttributes]]:
    """Everything below `folder`, what is in a folder before the folder itself. Links are not followed."""
    for entry in client.listdir_attr(folder):
        path = posixpath.join(folder, entry.filename)
        if stat.S_ISDIR(entry.st_mode or 0):
            yield from _walk(client, path)
        yield path, entry


def _is_refusal(error: OSError) -> bool:
    """The server's own no, which paramiko raises without a number unless it is about rights; not a cut."""
    return error.errno in (None, errno.EACCES) and not isinstance(error, TimeoutError)


def _is_final(error: OSError) -> bool:
    return error.errno == errno.EACCES or "unsupported" in str(error).lower()


def _disk_full(text: str) -> Transient:
    return Transient(f"the SFTP server's disk is full: {text}", code="sftp_disk_full", retry_in=30)


def _translate(error: Exception, cut: bool) -> NcrError:
    if cut or isinstance(error, TimeoutError):
        return Transient(f"SFTP connection was cut: {error or 'no answer in time'}", code="sftp_cut")
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EACCES:
        return Rejected(f"the SFTP server denies it: {error}", code="sftp_denied")
    words = str(error).lower()
    if number == errno.ENOSPC or "no space" in words or "quota" in words:
        return _disk_full(str(error))
    return Transient(f"the SFTP server failed: {error}", code="sftp_failed")
