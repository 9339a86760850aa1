"""The job: one run of a pipeline, as a frozen record, and its states as data. Pure: no I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any


class State(StrEnum):
    """Where a job is in its life. The comment says what a crash at this point leads to."""

    QUEUED = "queued"  # in the backlog; nothing to lose
    DISPATCHED = "dispatched"  # reserved on a host, message sent; crash -> queued, no attempt counted
    RUNNING = "running"  # claimed by a child; crash -> queued (attempt counted) or failed
    CANCELLING = "cancelling"  # asked to stop; crash -> cancelled
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Reason(StrEnum):
    """Why a queued job is not running: always visible to the user."""

    NEW = "new"
    NO_MEMORY = "no_memory"
    RETRY = "retry"
    YIELDED = "yielded"
    TARGET_BUSY = "target_busy"
    GIVEN_BACK = "given_back"
    HOST_LOST = "host_lost"
    WORKER_LOST = "worker_lost"
    SERVICE_DOWN = "service_down"
    OUT_OF_MEMORY = "out_of_memory"  # it used more than it had reserved
    WINDING_UP = "winding_up"  # its end is decided; one more run cleans up what it left outside


TRANSITIONS: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        # failed: it waited too long, or fits no host
        State.QUEUED: frozenset({State.DISPATCHED, State.FAILED, State.CANCELLED}),
        State.DISPATCHED: frozenset({State.RUNNING, State.QUEUED, State.CANCELLED}),
        # cancelled: its clean-up, after it was cancelled while it waited
        State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.QUEUED, State.CANCELLING, State.CANCELLED}),
        # succeeded, failed: too late to cancel, the end had come already; queued: its process died, to be wound up
        State.CANCELLING: frozenset({State.CANCELLED, State.SUCCEEDED, State.FAILED, State.QUEUED}),
        # A person may retry a job that ended without success: a new round.
        State.FAILED: frozenset({State.QUEUED}),
        State.CANCELLED: frozenset({State.QUEUED}),
        State.SUCCEEDED: frozenset(),
    }
)

TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
OUT = frozenset({State.DISPATCHED, State.RUNNING, State.CANCELLING})
"""States in which a job holds memory on a host."""


def sources(target: State) -> frozenset[State]:
    """The states from which `target` may be reached."""
    return frozenset(state for state, targets in TRANSITIONS.items() if target in targets)


@dataclass(frozen=True, slots=True)
class Job:
    """One job as the ledger holds it. Times are epoch seconds (UTC) by the database's clock; sizes are bytes."""

    number: int
    id: str
    kind: str
    version: int
    ref: str
    tenant: str
    args: Mapping[str, Any]
    batch_id: str | None
    priority: int
    state: State
    reason: str | None
    stage: str | None
    attempt: int
    max_attempts: int
    round: int
    token: int | None
    host: str | None
    input_bytes: int | None
    need: int
    predicted: int | None
    reserved: int
    granted: int | None
    peak: int | None
    created_at: float
    next_run_at: float
    started_at: float | None
    finished_at: float | None
    error_code: str | None
    error: str | None
    result: Mapping[str, Any] | None
    request_id: str | None  # of its submit

    @property
    def terminal(self) -> bool:
        return self.state in TERMINAL

    def evolve(self, **changes: Any) -> Job:
        return dataclasses.replace(self, **changes)

    def log_context(self) -> dict[str, Any]:
        """What every log line about this job carries."""
        context = {"job_id": self.id, "kind": self.kind, "ref": self.ref, "attempt": self.attempt}
        return context | ({"request_id": self.request_id} if self.request_id else {})


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job as it is submitted. `need` is the memory to reserve for its first stage, in bytes.

    `declared`: what its pipeline says that it needs, if `need` is not that very figure.

    `priority`: the smallest goes first, as with nice(1).

    `exclusive_key`: no two unfinished jobs may hold the same key; the second submit is a Conflict.
    """

    id: str
    kind: str
    version: int
    ref: str
    tenant: str
    args: Mapping[str, Any]
    need: int
    declared: int | None = None
    batch_id: str | None = None
    priority: int = 0
    input_bytes: int | None = None
    exclusive_key: str | None = None
    max_attempts: int = 5
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class NewBatch:
    """Jobs submitted together; at most `size` of them run at once, over all hosts."""

    id: str
    tenant: str
    size: int


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a job's audit trail. `actor`: api, feeder, runner, reaper, or a user's name."""

    id: int
    at: float
    state: str
    stage: str | None
    actor: str
    reason: str | None
    attempt: int
