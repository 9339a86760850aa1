"""The work of `make bench-memory` as pipelines of ours, one for each kind of task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from memory_work import ATTEMPTS, Work, do

from ncr_worker.pipeline import Args, Parcel, Pipeline, Run, stage


class WorkArgs(Args):
    """The fields of a Work. `declared` is what its kind asks for, or its peak when the oracle speaks."""

    number: int
    kind: str
    input_bytes: int | None
    peak: int
    seconds: float
    declared: int

    @property
    def ref(self) -> str:
        return f"{self.kind}-{self.number}"

    @property
    def size(self) -> int | None:
        return self.input_bytes


class WorkParcel(Parcel):
    args: WorkArgs

    @property
    def size(self) -> int | None:
        return self.args.size


@stage(memory=lambda parcel: parcel.args.declared)
def work(run: Run, parcel: WorkParcel) -> WorkParcel:
    do(parcel.args.model_dump(), run.advance)
    return parcel


def pipeline(kind: str) -> Pipeline[WorkParcel]:
    return Pipeline(kind, WorkArgs, WorkParcel, (work,), estimate=lambda args: args.declared, attempts=ATTEMPTS)


def write_kinds(folder: Path, jobs: Iterable[Work]) -> list[str]:
    """A module for each kind of job, as EXTRA_PIPELINES expects them; their names."""
    kinds = sorted({job.kind for job in jobs})
    for kind in kinds:
        code = f"from memory_kinds import pipeline\n\nPIPELINE = pipeline({kind!r})\n"
        (folder / f"kind_{kind}.py").write_text(code)
    return [f"kind_{kind}" for kind in kinds]
