"""An SFTP server (asyncssh): password and key login, a generated host key, no way out of its folder.

Run by `SFTP` as `python -m ncr_worker.sandbox.sftp FOLDER PORT`; secrets travel as files in the folder.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import asyncssh

from ncr_worker.sandbox.process import LOOPBACK, ServerProcess, free_port, throw_away_secret

USER = "courier"
HOST_KEY, CLIENT_KEY, PASSWORD, FILES = "host_key", "client_key", "password", "files"


class SFTP(ServerProcess):
    """`root` is what clients see as `/`; `key_path` is a private key that may log in, `fingerprint` the host key's."""

    name = "sftp"

    def __init__(self, folder: Path, port: int | None = None) -> None:
        super().__init__(folder)
        self.port = port or free_port()
        self.user_name = USER
        self.password = throw_away_secret()
        self.root = self.folder / FILES
        self.root.mkdir(exist_ok=True)
        self.key_path = self.folder / CLIENT_KEY
        lasting_key(self.key_path)
        self.fingerprint = lasting_key(self.folder / HOST_KEY).get_fingerprint()
        _write_secret(self.folder / PASSWORD, self.password.encode())

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "ncr_worker.sandbox.sftp", str(self.folder), str(self.port)]

    def ready(self) -> bool:
        return asyncio.run(self._logs_in())

    async def _logs_in(self) -> bool:
        try:
            async with (
                asyncssh.connect(
                    LOOPBACK,
                    self.port,
                    username=self.user_name,
                    password=self.password,
                    known_hosts=([asyncssh.read_public_key(self.folder / f"{HOST_KEY}.pub")], [], []),
                    client_keys=None,
                    agent_path=None,
                    config=None,
                    login_timeout=5,
                ) as connection,
                connection.start_sftp_client() as client,
            ):
                return await client.isdir(".")
        except (OSError, asyncssh.Error):
            return False

    def env(self) -> dict[str, str]:
        return {
            "SFTP_HOST": LOOPBACK,
            "SFTP_PORT": str(self.port),
            "SFTP_USER": self.user_name,
            "SFTP_PASSWORD": self.password,
            "SFTP_HOST_KEYS": self.fingerprint,
        }


def lasting_key(path: Path) -> asyncssh.SSHKey:
    """The private key at `path`, made at the first call, with `<path>.pub` beside it."""
    if not path.exists():
        key = asyncssh.generate_private_key("ssh-ed25519")
        _write_secret(path, key.export_private_key())
        key.write_public_key(path.with_name(f"{path.name}.pub"))
    return asyncssh.read_private_key(path)


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


class _Doorkeeper(asyncssh.SSHServer):
    def __init__(self, password: str) -> None:
        self._password = password

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return username == USER and secrets.compare_digest(password.encode(), self._password.encode())


async def serve(folder: Path, port: int) -> None:
    password = (folder / PASSWORD).read_text()
    chroot = str(folder / FILES).encode()
    server = await asyncssh.listen(
        LOOPBACK,
        port,
        server_factory=lambda: _Doorkeeper(password),
        server_host_keys=[folder / HOST_KEY],
        authorized_client_keys=str(folder / f"{CLIENT_KEY}.pub"),
        # Clients' `rename` never replaces a file here, as on OpenSSH: asyncssh does that of itself.
        sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=chroot),
        allow_scp=False,
        keepalive_interval=30,
    )
    await server.wait_closed()


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    folder, port = sys.argv[1:]
    asyncio.run(serve(Path(folder), int(port)))


if __name__ == "__main__":
    main()
