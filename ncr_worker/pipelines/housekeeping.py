"""Pipeline `housekeeping`: what is older than its retention is removed. Beat submits it (HOUSEKEEPING_AT)."""

from __future__ import annotations

from collections.abc import Iterable

from ncr_worker.pipeline import MIB, Args, Parcel, Pipeline, Run, stage
from ncr_worker.pipelines import load_pipelines, stuck_report
from ncr_worker.retention import DAY, HOUR, Terms, retention
from ncr_worker.settings import Settings


class HousekeepingArgs(Args):
    @property
    def ref(self) -> str:
        return "housekeeping"


class Housekeeping(Parcel):
    """How many rows were removed."""

    args: HousekeepingArgs
    jobs: int = 0
    batches: int = 0
    keys: int = 0
    observations: int = 0


def terms(settings: Settings) -> Terms:
    kinds = load_pipelines(settings.extra_pipelines)
    return Terms(
        jobs=settings.retention_days * DAY,
        receipts=settings.receipt_days * DAY,
        keys=settings.idempotency_hours * HOUR,
        with_receipt=[kind for kind, pipeline in kinds.items() if "receipt" in pipeline.parcel.model_fields],
        brief=[stuck_report.KIND],
    )


@stage(weight=10)
def remove_jobs(run: Run, parcel: Housekeeping) -> Housekeeping:
    keeper, kept = run.use(retention), terms(run.settings)
    run.advance(total_files=keeper.old_jobs(kept), current="jobs")
    return parcel.evolve(jobs=_counted(run, keeper.remove_jobs(kept)))


@stage()
def remove_batches(run: Run, parcel: Housekeeping) -> Housekeeping:
    return parcel.evolve(batches=_counted(run, run.use(retention).remove_batches()))


@stage()
def remove_keys(run: Run, parcel: Housekeeping) -> Housekeeping:
    return parcel.evolve(keys=_counted(run, run.use(retention).remove_keys(terms(run.settings))))


@stage()
def remove_observations(run: Run, parcel: Housekeeping) -> Housekeeping:
    return parcel.evolve(observations=_counted(run, run.use(retention).remove_observations()))


def _counted(run: Run, removed: Iterable[int]) -> int:
    """The sum, shown as it grows. A job that is cancelled stops between two chunks."""
    total = 0
    for rows in removed:
        total += rows
        run.advance(files=total)
    return total


PIPELINE = Pipeline(
    "housekeeping",
    HousekeepingArgs,
    Housekeeping,
    (remove_jobs, remove_batches, remove_keys, remove_observations),
    memory=32 * MIB,
    exclusive=lambda _args: "housekeeping",
)
