"""Proof of a delivery as its receiver sees it: fetch all that lies on the SFTP server, and compare it with the plan."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import asyncssh

from ncr_worker.sandbox.process import LOOPBACK
from ncr_worker.sandbox.sftp import HOST_KEY, SFTP


def prove(sftp: SFTP, plan: Mapping[str, str], folder: Path) -> dict[str, str]:
    """What differs from `plan` (path on the server -> SHA-256 in hex): path -> problem; empty when all is right.

    Every file and every folder counts, hidden ones too. `folder`: a new one for what is fetched.
    """
    folder.mkdir()
    asyncio.run(_fetch_all(sftp, folder))
    return dict(sorted(_differences(folder, plan)))


async def _fetch_all(sftp: SFTP, folder: Path) -> None:
    async with (
        asyncssh.connect(
            LOOPBACK,
            sftp.port,
            username=sftp.user_name,
            password=sftp.password,
            known_hosts=([asyncssh.read_public_key(sftp.folder / f"{HOST_KEY}.pub")], [], []),
            client_keys=None,
            agent_path=None,
            config=None,
            encryption_algs=["aes128-gcm@openssh.com"],
        ) as connection,
        connection.start_sftp_client() as client,
    ):
        names = [name for name in await client.listdir(".") if name not in (".", "..")]
        await client.get(names, folder, recurse=True)


def _differences(folder: Path, plan: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    expected_folders = {str(parent) for path in plan for parent in Path(path).parents}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_dir():
            if name not in expected_folders:
                yield name, "a folder that nobody planned"
        elif name not in plan:
            yield name, "a file that nobody planned"
        elif _sha256(path) != plan[name]:
            yield name, "has another content than planned"
    for name in plan:
        if not (folder / name).is_file():
            yield name, "is missing"


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
