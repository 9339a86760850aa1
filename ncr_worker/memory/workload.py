"""What waits and runs, and how long such jobs take: read from the ledger, cheaply however long the backlog is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from ncr_worker.job import OUT, Job, State
from ncr_worker.ledger.tables import job, observation
from ncr_worker.memory.drain import Work
from ncr_worker.sql import Database, now

SAMPLE = 2000
"""Of a longer backlog only about so many rows are read, spread over all of it; jobs are counted all the same."""
NEWEST = 50
"""Runs of a kind that tell how long one takes now."""
_PRIME, _SPREAD = 10_007, 7_919
_QUEUED = job.c.state == State.QUEUED
_RUNNING = job.c.state.in_(sorted(OUT))


class Workload:
    """All methods raise DatabaseAway."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def now(self) -> list[Work]:
        """All that waits or runs. Of a long backlog kinds and sizes are estimated from a sample."""

        def work(connection: Connection) -> list[Work]:
            counts = select(job.c.tenant, func.count()).where(_QUEUED).group_by(job.c.tenant)  # by the index alone
            waiting = {row[0]: row[1] for row in connection.execute(counts)}
            running = list(_works(connection, _RUNNING, waits=False))
            if (total := sum(waiting.values())) <= SAMPLE:
                return [*running, *_works(connection, _QUEUED)]
            chosen = (job.c.number % _PRIME) * _SPREAD % _PRIME < _PRIME * SAMPLE // total
            return [*running, *_scaled(_works(connection, and_(_QUEUED, chosen)), waiting)]

        return self.database.read(work)

    def ahead(self, waiting: Job) -> list[Work]:
        """What is due and comes before a queued job in its user's line."""
        earlier = and_(job.c.priority == waiting.priority, job.c.number < waiting.number)
        first = or_(job.c.priority < waiting.priority, earlier)
        line = and_(_QUEUED, job.c.tenant == waiting.tenant, job.c.next_run_at <= now(), first)
        return self.database.read(lambda connection: list(_works(connection, line)))

    def seconds(self, kinds: Collection[str]) -> dict[str, float]:
        """Mean duration of the newest runs of each kind; without kinds that have had none."""

        def work(connection: Connection) -> dict[str, float]:
            means = {kind: connection.execute(_mean_of_newest(kind)).scalar_one() for kind in kinds}
            return {kind: float(mean) for kind, mean in means.items() if mean is not None}

        return self.database.read(work)


def _works(connection: Connection, where: ColumnElement[bool], *, waits: bool = True) -> Iterator[Work]:
    query = select(job.c.kind, job.c.tenant, func.count(), func.sum(job.c.need)).where(where)
    for kind, tenant, jobs, need in connection.execute(query.group_by(job.c.kind, job.c.tenant)):
        yield Work(kind, tenant, waits, jobs, int(need))


def _scaled(sample: Iterable[Work], waiting: Mapping[str, int]) -> Iterator[Work]:
    """As many jobs of each user as there are. Of whom the sample has none, these are like those of all."""
    mixes: dict[str, list[Work]] = defaultdict(list)
    jobs, need = Counter[str](), Counter[str]()
    for work in sample:
        mixes[work.tenant].append(work)
        jobs[work.kind] += work.jobs
        need[work.kind] += work.need
    of_all = [Work(kind, "", True, jobs[kind], need[kind]) for kind in jobs]
    for tenant, count in waiting.items():
        mix = mixes.get(tenant, of_all)
        sampled = sum(work.jobs for work in mix)
        for work in mix:
            number = round(count * work.jobs / sampled)
            yield Work(work.kind, tenant, True, number, work.need // work.jobs * number)


def _mean_of_newest(kind: str) -> Select[Any]:
    of_kind = (observation.c.kind == kind, observation.c.stage.is_(None))
    newest = select(observation.c.seconds).where(*of_kind).order_by(observation.c.id.desc()).limit(NEWEST).subquery()
    return select(func.avg(newest.c.seconds))
