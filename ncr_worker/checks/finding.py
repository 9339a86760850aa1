"""What a check is, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from ncr_worker.settings import Settings


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Process(StrEnum):
    """A process that asks the checks before it serves."""

    API = "api"
    WORKER = "worker"
    BEAT = "beat"


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` was looked at; unless all is well, its `problem`, the `setting` to look at, and the `remedy`.

    `away`: it may come back by itself, so it is no reason not to start.
    """

    level: Level
    what: str
    problem: str = ""
    setting: str = ""
    remedy: str = ""
    away: bool = False

    def masked(self, mask: Callable[[str], str]) -> Finding:
        return replace(self, what=mask(self.what), problem=mask(self.problem), remedy=mask(self.remedy))


def ok(what: str) -> Finding:
    return Finding(Level.OK, what)


def warning(what: str, problem: str, setting: str, remedy: str) -> Finding:
    return Finding(Level.WARNING, what, problem, setting, remedy)


def error(what: str, problem: str, setting: str, remedy: str, *, away: bool = False) -> Finding:
    return Finding(Level.ERROR, what, problem, setting, remedy, away)


@dataclass(frozen=True, slots=True)
class Check:
    """`look` gives what it finds; it may raise. `setting` is named when it fails or gives no answer.

    `guards`: processes that do not start while it finds an error. It is quick then, and sure.
    """

    name: str
    look: Callable[[Settings], Iterator[Finding]]
    setting: str
    guards: frozenset[Process] = frozenset()
