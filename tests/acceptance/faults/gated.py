"""The real delivery with gates: each stage can be stopped in its middle, and after its effect is done.

Points: `{stage}`, `{stage}.done` (not yet written down), and `publish.swap` (between the two renames).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from faults.gate import deaf, pause
from ncr_worker.pipeline import Run, Stage
from ncr_worker.pipelines.deliver import PIPELINE as DELIVER
from ncr_worker.pipelines.deliver.model import Delivery
from ncr_worker.stores.sftp import target

T = TypeVar("T")
QUIET = {"prepare", "publish", "confirm"}
"""Stages without progress: their middle is after they made sure that the job is theirs, before the effect."""


class GatedTarget:
    """The SFTP target; waits before the rename that publishes."""

    def __init__(self, real: Any, ref: str) -> None:
        self._real = real
        self._ref = ref

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def rename(self, old: str, new: str) -> None:
        if ".ncr-new-" in old:
            pause(self._ref, "publish.swap", deaf)
        self._real.rename(old, new)


class GatedRun:
    """A proxy of the engine's Run for one stage."""

    def __init__(self, run: Any, stage: str) -> None:
        self._run = run
        self._stage = stage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def use(self, connect: Callable[[Any], T]) -> T:
        made: Any = self._run.use(connect)
        return GatedTarget(made, self._run.job.ref) if connect is target else made  # type: ignore[return-value]

    def advance(self, **figures: Any) -> None:
        self._run.advance(**figures)
        if figures.get("bytes") != 0:  # nothing has been moved yet
            pause(self._run.job.ref, self._stage, self._run.advance)

    def confirm_ownership(self) -> None:
        self._run.confirm_ownership()
        if self._stage in QUIET:
            pause(self._run.job.ref, self._stage, self._run.advance)


def gated(stage: Stage[Delivery]) -> Stage[Delivery]:
    def function(run: Run, parcel: Delivery) -> Delivery:
        after = stage.function(GatedRun(run, stage.name), parcel)
        pause(run.job.ref, f"{stage.name}.done", run.advance)
        return after

    function.__name__ = stage.name
    return replace(stage, function=function)


PIPELINE = replace(DELIVER, kind="gated", stages=tuple(gated(stage) for stage in DELIVER.stages))
POINTS = [stage.name for stage in DELIVER.stages] + ["publish.swap", "publish.done", "confirm.done"]
