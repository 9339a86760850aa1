"""Sends POST requests over a few kept connections, with as little work of its own as possible."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Load:
    """`seconds`: from the first request to the last answer. `latencies`: seconds of each, sorted."""

    seconds: float
    latencies: Sequence[float]
    statuses: Counter[int]
    answers: Sequence[Any]

    def at(self, share: float) -> float:
        """The latency, in seconds, that `share` (0..1) of the requests did not exceed."""
        return self.latencies[min(int(share * len(self.latencies)), len(self.latencies) - 1)]


def send(url: str, bodies: Sequence[Any], *, connections: int) -> Load:
    """POST every body as JSON to `url`."""
    return asyncio.run(_send(url, [json.dumps(body).encode() for body in bodies], connections))


async def _send(url: str, bodies: Sequence[bytes], connections: int) -> Load:
    target = urlsplit(url)
    waiting = iter(bodies)
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    answers: list[Any] = []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(target.hostname, target.port)
        head = f"POST {target.path} HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: application/json\r\n"
        for body in waiting:
            began = time.perf_counter()
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            status, answer = await _answer(reader)
            latencies.append(time.perf_counter() - began)
            statuses[status] += 1
            answers.append(answer)
        writer.close()
        await writer.wait_closed()

    began = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(connections)))
    seconds = time.perf_counter() - began
    return Load(seconds, sorted(latencies), statuses, [json.loads(answer) for answer in answers])


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
    first, *lines = head.split("\r\n")
    length = next(int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:"))
    return int(first.split()[1]), await reader.readexactly(length)
