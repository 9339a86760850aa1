"""A client of the API's server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2


@dataclass
class Event:
    name: str = ""
    id: int | None = None
    data: Any = None
    comment: str = ""


class Stream:
    """What arrives. Iterating waits for the next event."""

    def __init__(self, answer: httpx2.Response) -> None:
        self.answer = answer
        self._lines = answer.iter_lines()

    def __iter__(self) -> Iterator[Event]:
        event = Event()
        for line in self._lines:
            field, _, value = line.partition(": ")
            match field:
                case "event":
                    event.name = value
                case "id":
                    event.id = int(value)
                case "data":
                    event.data = json.loads(value)
                case "":
                    if value:
                        event.comment = value
                    else:
                        yield event
                        event = Event()

    def until(self, name: str, **figures: Any) -> list[Event]:
        """All events up to and with the first of this name whose data have these figures."""
        seen = []
        for event in self:
            seen.append(event)
            if event.name == name and figures.items() <= event.data.items():
                return seen
        raise AssertionError(f"it ended without {name} {figures}: {seen}")


@contextmanager
def following(client: httpx2.Client, task_id: str, **headers: str) -> Iterator[Stream]:
    with client.stream("GET", f"/jobs/{task_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        yield Stream(answer)
