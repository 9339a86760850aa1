"""A small TCP proxy that does harm: delays, cuts at byte N, stalls, resets, shortens or replaces answers."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

CHUNK = 16 * 1024
LINGER_NOT = struct.pack("ii", 1, 0)  # close sends a reset

Answer = Callable[[bytes], bytes | None]


class Proxy:
    """A loopback port that leads to `target`. The byte counts are of all connections together.

    `sent`: bytes that came from clients. `cut_after`: once so many were sent, all connections are reset, once.
    `stall_after`: from then on nothing moves, while `stall_after` is set. `delay`: seconds before each chunk.
    `answer`, given the beginning of a request, may answer in the server's stead. `drop_after`: of each connection
    only so many of the server's bytes are passed on, then it is closed in good order.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.sent = 0
        self.connections = 0
        self.cuts = 0
        self.cut_after: int | None = None
        self.stall_after: int | None = None
        self.delay = 0.0
        self.answer: Answer | None = None
        self.drop_after: int | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, started: threading.Event, over: asyncio.Event) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=CHUNK)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await over.wait()
        server.close()
        self.stall_after = None
        self._reset()  # all that waits for the network ends by that
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
        await asyncio.sleep(0)  # the aborted transports close their sockets

    async def _connection(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(back)
        with suppress(OSError):
            server, forth = await asyncio.open_connection("127.0.0.1", self.target, limit=CHUNK)
            self._writers.add(forth)
            answers = asyncio.create_task(self._answers(server, back))
            with suppress(OSError):
                await self._requests(client, forth, back)
            forth.close()
            await asyncio.wait([answers])
        back.close()

    async def _requests(
        self, client: asyncio.StreamReader, forth: asyncio.StreamWriter, back: asyncio.StreamWriter
    ) -> None:
        while chunk := await client.read(CHUNK):
            self.sent += len(chunk)
            await self._wait()
            if self.cut_after is not None and self.sent >= self.cut_after:
                self.cut_after = None
                self.cuts += 1
                self._reset()
                return
            if self.answer and (instead := self.answer(chunk)) is not None:
                back.write(instead)
                await back.drain()
                back.close()
                return
            forth.write(chunk)
            await forth.drain()

    async def _answers(self, server: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        left = self.drop_after
        with suppress(OSError):
            while chunk := await server.read(CHUNK):
                await self._wait()
                if left is not None:
                    chunk, left = chunk[:left], max(left - len(chunk), 0)
                back.write(chunk)
                await back.drain()
                if left == 0:
                    break
            back.close()

    async def _wait(self) -> None:
        await asyncio.sleep(self.delay)
        while self.stall_after is not None and self.sent >= self.stall_after:  # noqa: ASYNC110 - tests set it
            await asyncio.sleep(0.02)

    def _reset(self) -> None:
        for writer in self._writers:
            made = writer.get_extra_info("socket")
            with suppress(OSError):
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
            writer.transport.abort()


@contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    """A running proxy; nothing of it is left afterwards."""
    proxy = Proxy(port)
    started = threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(proxy.serve(started, over)))
    thread.start()
    started.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()
