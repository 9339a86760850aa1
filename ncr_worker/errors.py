"""Every exception of ncr_worker, in one tree.

    NcrError(message)                     .code is stable: clients and tests may rely on it
    ├─ StageError                         what a stage may raise; decides what happens to the job
    │  ├─ Transient(retry_in)             try again: first in place, later through the ledger
    │  ├─ Rejected                        bad input, or the validator's no: never retried
    │  ├─ Cancelled                       the job was asked to stop
    │  └─ OutOfMemory                     it needs more memory than was reserved: tried again with more
    ├─ GivenBack                          the job leaves this host without costing an attempt
    │  ├─ NeedsMemory(need)               ... because a stage needs more bytes than are reserved
    │  └─ ServiceDown(retry_in)           ... because a service outside does not work now
    ├─ LostOwnership                      another run owns the job now: leave without a trace
    ├─ Busy(retry_in)                     memory, quota or a service is short now: 503 + Retry-After
    ├─ NeverFits                          needs more memory than any host has: 422
    ├─ NotFound, Conflict                 404, 409
    └─ ConfigError(setting, remedy)       at start-up, naming the setting and the remedy

Connectors translate their library's errors into these, in one place each. Any other exception is a bug: the
job fails with code `internal_error` and a reference to the logged traceback. Nothing here knows HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class NcrError(Exception):
    """Base of all. `code` is a stable snake_case word; `str(error)` is for people."""

    code = "internal_error"
    result: Mapping[str, Any] | None = None
    """What is worth keeping with a job that fails so, as JSON."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class StageError(NcrError):
    """A stage could not do its work."""

    code = "stage_failed"


class Transient(StageError):
    """Expected to pass by itself: a cut connection, a 503.

    `retry_in`: seconds that the other side asked us to wait, if it did.
    """

    code = "temporarily_failed"

    def __init__(self, message: str, *, code: str | None = None, retry_in: float | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_in = retry_in


class Rejected(StageError):
    """No retry can help: bad input, or the validator said no.

    `result`: e.g. the validator's whole answer.
    """

    code = "rejected"

    def __init__(self, message: str, *, code: str | None = None, result: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, code=code)
        self.result = result


class Cancelled(StageError):
    """A person asked the job to stop."""

    code = "cancelled"


class OutOfMemory(StageError):
    """The job uses more than it reserved, and the host is short of memory; or the memory has run out."""

    code = "out_of_memory"


class GivenBack(NcrError):
    """The job goes back to the queue as it is (shutdown, exclusive key held); no attempt is counted."""

    code = "given_back"

    def __init__(self, message: str, *, reason: str, retry_in: float = 0.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_in = retry_in


class NeedsMemory(GivenBack):
    """The next stage needs `need` bytes, more than this host has reserved for the job."""

    code = "needs_memory"

    def __init__(self, need: int) -> None:
        super().__init__(f"the next stage needs {need:,} bytes", reason="yielded")
        self.need = need


class ServiceDown(GivenBack):
    """A service outside does not work now, for no fault of the job; the message names it."""

    code = "service_down"

    def __init__(self, message: str, *, retry_in: float) -> None:
        super().__init__(message, reason="service_down", retry_in=retry_in)


class LostOwnership(NcrError):
    """The token is no longer the job's: its lease ended, or it was given to another host."""

    code = "lost_ownership"


class Busy(NcrError):
    """Not now. `retry_in`: seconds after which asking again makes sense."""

    code = "busy"

    def __init__(self, message: str, *, code: str | None = None, retry_in: float = 5.0) -> None:
        super().__init__(message, code=code)
        self.retry_in = retry_in


class NeverFits(NcrError):
    """The job's known need is larger than the largest host's budget."""

    code = "never_fits"


class NotFound(NcrError):
    code = "not_found"


class Conflict(NcrError):
    """`retry_in`: seconds after which asking again makes sense, where that is known."""

    code = "conflict"

    def __init__(self, message: str, *, code: str | None = None, retry_in: float | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_in = retry_in


class ConfigError(NcrError):
    """A setting is wrong; the message names the setting and the remedy."""

    code = "config_error"

    def __init__(self, setting: str, problem: str, remedy: str, *, code: str | None = None) -> None:
        super().__init__(f"{setting}: {problem}. {remedy}", code=code)
        self.setting = setting
        self.problem = problem
        self.remedy = remedy
