"""Hears the board's wake-ups, so that a submit is seen at once and not at the feeder's next poll."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis

from ncr_worker.board import WAKE, Board

log = logging.getLogger(__name__)


@contextmanager
def on_wake(board: Board, call: Callable[[], None]) -> Iterator[None]:
    """Call `call` from a thread at every wake-up, and once after each gap in the connection."""
    stop = threading.Event()

    def listen() -> None:
        while not stop.is_set():
            try:
                with board.wakes() as channel:
                    channel.subscribe(WAKE)
                    call()
                    while not stop.is_set():
                        if channel.get_message(timeout=0.3):
                            call()
            except redis.RedisError as error:
                log.debug("no wake-ups, polling instead: %s", error)
                stop.wait(1.0)

    thread = threading.Thread(target=listen, name="wake-ups", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(2)
