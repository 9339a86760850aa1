"""How long it takes until what waits has run: estimated from sizes, durations and the hosts. Pure: no I/O, no clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

from ncr_worker.ledger import Host

HALF = 0.5
"""Of a job that runs already, this much is still to be done, on average."""


class Sized(Protocol):
    """A job to come. `need`: bytes; `tenant`: its user, None: whoever has to wait longest."""

    @property
    def kind(self) -> str: ...

    @property
    def need(self) -> int: ...

    @property
    def tenant(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Asked:
    """Such a job, as somebody asks about."""

    kind: str
    need: int
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """Jobs of one kind and one user that wait, or run. `need`: bytes, all of them together."""

    kind: str
    tenant: str
    waits: bool
    jobs: int
    need: int


@dataclass(frozen=True)
class Drain:
    """`hosts`: those that take jobs. `seconds`: how long a run of each kind takes, as far as that is known.

    `costs`: user -> seconds for which all hosts together are busy with his jobs.
    """

    hosts: Sequence[Host]
    seconds: Mapping[str, float]
    costs: Mapping[str, float]

    @classmethod
    def of(cls, works: Iterable[Work], hosts: Iterable[Host], seconds: Mapping[str, float]) -> Self:
        empty = cls([host for host in hosts if host.state == "up"], seconds, {})
        costs: dict[str, float] = defaultdict(float)
        for work in works:
            if not work.jobs:  # rounded down, in a sample
                continue
            left = work.jobs if work.waits else HALF * work.jobs
            costs[work.tenant] += empty.cost(work.kind, left, work.need // work.jobs)
        return replace(empty, costs=dict(costs))

    @property
    def whole(self) -> float:
        """Seconds until all that waits now has run."""
        return sum(self.costs.values())

    def places(self, need: int) -> int:
        """Jobs of `need` bytes that may run at once. A host too small for them counts for nothing; one that has too
        little left for one takes it when it is idle."""
        fitting = [host.figures for host in self.hosts if need <= host.figures.limit_bytes]
        return sum(min(each.slots, max(each.budget // max(need, 1), 1)) for each in fitting)

    def cost(self, kind: str, jobs: float, need: int) -> float:
        """Seconds for which `jobs` runs of `need` bytes keep all hosts busy; 0 where nobody knows it.

        Added up over kinds it may be twice too much, where one is short of memory and another of slots.
        """
        return jobs * self.seconds.get(kind, 0.0) / max(self.places(need), 1)

    def costs_of(self, jobs: Iterable[Sized]) -> dict[str | None, float]:
        """What jobs to come would cost, by user."""
        costs: dict[str | None, float] = defaultdict(float)
        for job in jobs:
            costs[job.tenant] += self.cost(job.kind, 1, job.need)
        return costs

    def wait(self, tenant: str | None, more: float = 0.0) -> float:
        """Seconds until all of the user's jobs have run, and `more` seconds of his work with them.

        Users take turns: by then each of the others has had as much as he at most, whatever else he has waiting.
        """
        return self.whole + more if tenant is None else self.until(tenant, self.costs.get(tenant, 0.0) + more)

    def until(self, tenant: str, mine: float) -> float:
        """Seconds until so many of the user's seconds are over."""
        return mine + sum(min(cost, mine) for other, cost in self.costs.items() if other != tenant)

    def plus(self, jobs: Iterable[Sized]) -> Self:
        """With jobs that were taken in since."""
        more = {tenant or "": cost for tenant, cost in self.costs_of(jobs).items()}
        return replace(self, costs={**self.costs, **{name: self.costs.get(name, 0.0) + more[name] for name in more}})


def about(seconds: float) -> str:
    """`40 s`, `5 min`, `3 h`: an estimate is no better than that."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.0f} h"
