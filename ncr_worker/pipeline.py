"""What a pipeline is: a fold of stages over one typed, frozen value. Pure: no I/O, no framework.

A new pipeline is one file in `ncr_worker/pipelines/` that exposes `PIPELINE`: EXTENDING.md has one of ten lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from ncr_worker.job import Job
    from ncr_worker.settings import Settings

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

T = TypeVar("T")


class Args(BaseModel):
    """What a user submits: validated at the edge, stored as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def ref(self) -> str:
        """The user's own name for the work, for lists and logs."""
        return ""

    @property
    def tenant(self) -> str:
        """Whose work it is."""
        return ""

    @property
    def size(self) -> int | None:
        """Bytes of input, if they are known before the start: what the need of memory may depend on."""
        return None


class Parcel(BaseModel):
    """The frozen value that travels through the stages; written to the ledger after each one."""

    # A NaN comes back from its checkpoint as one; in the job's result it is null.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    @property
    def size(self) -> int | None:
        """Bytes of input, as soon as a stage has found out."""
        return None

    def evolve(self, **changes: Any) -> Self:
        return self.model_copy(update=changes)


P = TypeVar("P", bound=Parcel)


class Run(Protocol):
    """All that a stage may touch."""

    @property
    def job(self) -> Job: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def folder(self) -> Path:
        """The job's own folder on this host; removed when the job leaves the host."""
        ...

    def use(self, connect: Callable[[Settings], T]) -> T:
        """The connector that `connect(settings)` builds: made at first use in this process, then shared.

        A connector with a `close()` method is closed when the process ends.
        """
        ...

    def advance(
        self,
        *,
        files: int | None = None,
        total_files: int | None = None,
        bytes: int | None = None,
        total_bytes: int | None = None,
        current: str | None = None,
    ) -> None:
        """Say how far the stage is (absolute figures). Cheap: call it for every chunk. Thread-safe.

        Raises Cancelled, GivenBack or LostOwnership when the job has to stop here.
        """
        ...

    def confirm_ownership(self) -> None:
        """Ask the ledger whether this run still owns the job. Call it before an effect outside.

        Raises LostOwnership, Cancelled, GivenBack.
        """
        ...

    def hold(self, key: str) -> None:
        """Hold an exclusive key until the job ends (deliver: the target folder). Idempotent.

        Raises GivenBack when another unfinished job holds it.
        """
        ...


StageFunction = Callable[[Any, P], P]


@dataclass(frozen=True)
class Stage(Generic[P]):
    """One step. `weight`: its share of the progress bar. `attempts`: tries in place before the ledger retries.

    `local`: it leaves artefacts in the job's folder, so its checkpoint is good on this host only and only
    while `intact(run, parcel)` is true. `memory(parcel)`: bytes it needs, when that differs from the pipeline's.
    """

    function: StageFunction[P]
    weight: float = 1.0
    attempts: int = 3
    local: bool = False
    memory: Callable[[P], int] | None = None
    intact: Callable[[Any, P], bool] | None = None

    @property
    def name(self) -> str:
        return self.function.__name__

    def __call__(self, run: Run, parcel: P) -> P:
        return self.function(run, parcel)


def stage(
    *,
    weight: float = 1.0,
    attempts: int = 3,
    local: bool = False,
    memory: Callable[[Any], int] | None = None,
    intact: Callable[[Any, Any], bool] | None = None,
) -> Callable[[StageFunction[P]], Stage[P]]:
    """Make a function `(run, parcel) -> parcel` a stage. The parameters are those of `Stage`."""

    def decorate(function: StageFunction[P]) -> Stage[P]:
        return Stage(function, weight, attempts, local, memory, intact)

    return decorate


@dataclass(frozen=True)
class Pipeline(Generic[P]):
    """A kind of job.

    `args`, `parcel`: their types; the parcel is started as `parcel(args=args)`, so it has a field `args`.
    `memory`: bytes to reserve before the first stage, as long as nothing has been learned; `estimate(args)`: the same
    where the arguments tell it. `attempts`: how often a child may claim the job.
    `exclusive(args)`: the key of which only one unfinished job may exist.
    `words`: stage name -> the status word shown while that stage runs; `public` for states.
    `abandon(run, parcel)`: undo what lies outside (a staging folder) when the job ends without success.
    """

    kind: str
    args: type[Args]
    parcel: type[P]
    stages: tuple[Stage[P], ...]
    memory: int = 64 * MIB
    estimate: Callable[[Any], int] | None = None
    version: int = 1
    attempts: int = 5
    max_jobs_per_child: int | None = None
    exclusive: Callable[[Any], str | None] = lambda _args: None
    words: Mapping[str, str] = field(default_factory=dict)
    abandon: Callable[[Any, P], None] | None = None

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"pipeline {self.kind}: stages must be there and have different names: {names}")
        if unknown := set(self.words) - set(names) - set(_STATE_WORDS):
            raise ValueError(f"pipeline {self.kind}: words for unknown stages or states {sorted(unknown)}")

    def start(self, args: Args) -> P:
        return self.parcel.model_validate({"args": args})

    def declared(self, args: Args) -> int:
        """Bytes that a job with these arguments is said to need at most."""
        return self.estimate(args) if self.estimate else self.memory

    def need(self, stage: Stage[P], parcel: P) -> int:
        """Bytes that `stage` needs for `parcel`."""
        return stage.memory(parcel) if stage.memory else self.memory

    def word(self, state: str, stage: str | None) -> str:
        """The public status word for an engine state and stage."""
        if state in ("running", "cancelling") and stage is not None and stage in self.words:
            return self.words[stage]
        return self.words.get(state, _STATE_WORDS[state])


_STATE_WORDS = {
    "queued": "pending",
    "dispatched": "pending",
    "running": "processing",
    "cancelling": "processing",
    "succeeded": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
}
