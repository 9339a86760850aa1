"""Our SFTP connector against OpenSSH's client: one file, connection included."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from services import OpenSSH

from ncr_worker.pipeline import MIB
from ncr_worker.settings import Settings
from ncr_worker.stores.sftp import target


@dataclass(frozen=True, slots=True)
class Alone:
    """Median seconds of each."""

    ours: float
    openssh: float

    @property
    def ratio(self) -> float:
        """Our speed over OpenSSH's."""
        return self.openssh / self.ours


def sftp_alone(server: OpenSSH, size: int, rounds: int) -> Alone:
    ours: list[float] = []
    openssh: list[float] = []
    with tempfile.TemporaryDirectory(prefix="ncr-bench-") as name:
        path = Path(name) / "content"
        with path.open("wb") as content:
            for _ in range(size // MIB):
                content.write(os.urandom(MIB))
        for _ in range(rounds):
            for put, found in ((_ours, ours), (_openssh, openssh)):
                os.sync()
                began = time.monotonic()
                put(server, path)
                found.append(time.monotonic() - began)
                (server.root / "alone").unlink()
    return Alone(median(ours), median(openssh))


def _ours(server: OpenSSH, path: Path) -> None:
    settings = Settings.model_validate({name.lower(): value for name, value in server.env().items()})
    connector = target(settings)
    connector.upload(path, "alone")
    connector.close()


def _openssh(server: OpenSSH, path: Path) -> None:
    options = {
        "Ciphers": "aes128-gcm@openssh.com",
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "LogLevel": "ERROR",
    }
    subprocess.run(
        [
            "sftp",
            *("-q", "-b", "-", "-P", str(server.port), "-i", str(server.key_path)),
            *(word for name, value in options.items() for word in ("-o", f"{name}={value}")),
            f"{server.user_name}@127.0.0.1",
        ],
        input=f"put {path} alone\n",
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
    )
