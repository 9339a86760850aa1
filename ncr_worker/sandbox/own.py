"""Our own processes, started as an operator starts them: `ncr …` with settings through the environment."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ncr_worker.sandbox.process import LOOPBACK, ServerProcess, free_port, http_ok

NCR = (sys.executable, "-m", "ncr_worker")


class OwnProcess(ServerProcess):
    """`settings`: NAME to value, for its environment."""

    start_patience = 90.0  # four of them come up at once, perhaps on a busy machine

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        super().__init__(folder)
        self.settings = dict(settings)

    def environment(self) -> dict[str, str]:
        return self.settings

    def env(self) -> dict[str, str]:
        return {}


class Api(OwnProcess):
    name = "api"

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://{LOOPBACK}:{self.port}"
        super().__init__(folder, {**settings, **self.env()})

    def command(self) -> Sequence[str]:
        return [*NCR, "api"]

    def ready(self) -> bool:
        return http_ok(f"{self.url}/health/live")

    def env(self) -> dict[str, str]:
        return {"API_HOST": LOOPBACK, "API_PORT": str(self.port)}


class Worker(OwnProcess):
    """`is_up()`: whether the ledger has seen it; a worker has no port of its own."""

    name = "worker"

    def __init__(self, folder: Path, settings: Mapping[str, str], is_up: Callable[[], bool]) -> None:
        super().__init__(folder, settings)
        self._is_up = is_up

    def command(self) -> Sequence[str]:
        return [*NCR, "worker"]

    def ready(self) -> bool:
        return self._is_up()


class Beat(OwnProcess):
    """`is_up()`: whether it has submitted something; it has no port of its own either."""

    name = "beat"

    def __init__(self, folder: Path, settings: Mapping[str, str], is_up: Callable[[], bool]) -> None:
        super().__init__(folder, settings)
        self._is_up = is_up

    def command(self) -> Sequence[str]:
        return [*NCR, "beat"]

    def ready(self) -> bool:
        return self._is_up()


class Flower(OwnProcess):
    name = "flower"

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.port = free_port()
        self.url = f"http://{LOOPBACK}:{self.port}"
        super().__init__(folder, {**settings, **self.env()})

    def command(self) -> Sequence[str]:
        return [*NCR, "flower"]

    def ready(self) -> bool:
        return http_ok(f"{self.url}/healthcheck")

    def env(self) -> dict[str, str]:
        return {"API_HOST": LOOPBACK, "FLOWER_PORT": str(self.port)}
