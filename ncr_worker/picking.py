"""Which of the waiting jobs start now on a host: the policy alone. Pure: no I/O, no clock.

Urgent jobs first (priority below 0: the service's own). Then fair share between tenants (least byte-seconds used
first), then priority, then age; but the first job of a kind of which nothing is known goes ahead of its line. A job
that does not fit is passed by at most `overtake_limit` others; then nothing more starts until it does.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

CREDIT = 60.0  # seconds of a whole host that a tenant who used less may be ahead of the others, and no more
TYPICAL = 1.0  # seconds that a job is taken to last until it is known: what starts at once is shared out too
STEADY = 0.01  # of the limit: by less, what is free may change without a job's doing
STEPS = 8192  # of the limit: as finely it is told what may come free


class Waiting(NamedTuple):
    """A queued job as the policy sees it. `need`: bytes. `passed`: jobs that overtook it at its cost."""

    number: int
    job_id: str
    kind: str
    need: int
    tenant: str = ""
    priority: int = 0
    batch_id: str | None = None
    passed: int = 0
    refused: bool = False  # so far for want of memory alone
    stored: int = 0  # bytes that were needed as it was last written down
    unknown: bool = False  # no job of its kind has ended yet: the need is what its pipeline declares


_age = attrgetter("priority", "number")


@dataclass(frozen=True, slots=True)
class Room:
    """What a host can take. `free`: bytes left of its budget; `limit`: bytes of the whole host, which a job that
    runs alone may use; `idle`: nothing runs there now; `held`: bytes that each job holds that runs there."""

    slots: int
    free: int
    limit: int
    idle: bool = False
    held: Sequence[int] = ()

    @property
    def most(self) -> int:
        """Bytes that the first job to start may need: on an idle host it may have all there is."""
        return max(self.free, self.limit) if self.idle else self.free


class Releases:
    """What may come free when jobs end, whichever they are: every sum of their bytes, as bits of a number."""

    def __init__(self, sizes: Iterable[int], limit: int) -> None:
        self.whole = 0  # bytes, of all of them
        self._unit = max(limit // STEPS, 1)
        self._sums = 1
        self._rounded = 0  # bytes by which a sum may be larger than its bit says
        for size in sizes:
            self.add(size)

    def add(self, size: int) -> None:
        steps, rest = divmod(size, self._unit)
        self._sums |= self._sums << steps
        self._rounded += rest
        self.whole += size

    def any(self, least: int, below: int) -> bool:
        """Whether some of the jobs leave so much: bytes, `least` <= sum < `below`."""
        first = max((least - self._rounded) // self._unit, 0)
        width = (below - 1) // self._unit - first + 1
        return width > 0 and bool(self._sums >> first & ((1 << width) - 1))


@dataclass(slots=True)
class Round:
    """One pick while it goes through the candidates."""

    room: Room
    overtake_limit: int
    free: int = field(init=False)
    taken: list[Waiting] = field(default_factory=list)
    refused: dict[int, Waiting] = field(default_factory=dict)  # they wait for memory
    too_big: dict[int, Waiting] = field(default_factory=dict)  # for a larger host: none here is in their way
    passed: Counter[int] = field(default_factory=Counter)  # jobs that passed one at its cost in this round
    barrier: bool = False  # a job that waits for memory has been passed often enough
    _waiting: list[Waiting] = field(default_factory=list, init=False)  # who must not be passed too often
    _releases: Releases | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.free = self.room.free

    @property
    def done(self) -> bool:
        return len(self.taken) >= self.room.slots

    @property
    def most(self) -> int:
        """Bytes that the next job may need."""
        return self.free if self.taken else self.room.most

    def consider(self, job: Waiting) -> bool:
        """Whether the job starts. Call it in turn, until `done`."""
        if job.need > self.room.limit:
            self.too_big[job.number] = job
        elif job.need > self.most:
            self.refused[job.number] = job
            self._waiting.append(job)
            self.barrier |= self._tired(job)
        else:
            return self._start(job)
        return False

    def _start(self, job: Waiting) -> bool:
        """Not where a job that was passed often enough would wait the longer for it."""
        delayed = [waiting for waiting in self._waiting if self._delays(job, waiting)]
        if any(map(self._tired, delayed)):
            self._waiting.append(job)  # it has to wait for that one
            return False
        self.taken.append(job)
        self.free -= job.need
        if self._releases:
            self._releases.add(job.need)
        for waiting in delayed:
            self.passed[waiting.number] += 1
            self.barrier |= self._tired(waiting)
        return True

    def _tired(self, waiting: Waiting) -> bool:
        return waiting.passed + self.passed[waiting.number] >= self.overtake_limit

    def _delays(self, job: Waiting, waiting: Waiting) -> bool:
        """Whether there are jobs here whose end would let `waiting` start, but not beside `job`.

        Nobody knows which will end first, so all are tried. One for which all of them together are not enough waits for
        something else to come free: for how much is not known.
        """
        if self._releases is None:
            self._releases = Releases([*self.room.held, *(taken.need for taken in self.taken)], self.room.limit)
        lacks, slack = waiting.need - self.free, int(self.room.limit * STEADY)
        return lacks > self._releases.whole or self._releases.any(lacks - slack, lacks + job.need + slack)


class Turns:
    """The candidates in fair order. Iterate, and tell `charge` of each job that starts.

    `used`: byte-seconds that each tenant has used; `credit`: byte-seconds that one may be ahead of another.
    `probed`: kinds of which a job has been begun though nothing was known of them.
    """

    def __init__(
        self,
        jobs: Iterable[Waiting],
        used: Mapping[str, float],
        credit: float = 0.0,
        probed: Collection[str] = (),
    ) -> None:
        lines: dict[str, list[Waiting]] = defaultdict(list)
        for job in jobs:
            lines[job.tenant].append(job)
        unknown = [job for line in lines.values() for job in line if job.unknown and job.kind not in probed]
        # What one of them teaches is worth more than its place in the line; the cheapest goes first.
        self._probes = set({job.kind: job.number for job in sorted(unknown, key=_age, reverse=True)}.values())
        place = self._place if self._probes else _age  # the same then, at a fifth of the cost
        self._lines = {tenant: deque(sorted(line, key=place)) for tenant, line in lines.items()}
        self._used = level(used, self._lines, credit)

    def __iter__(self) -> Iterator[Waiting]:
        heap = [(self._turn(tenant, line[0]), tenant) for tenant, line in self._lines.items()]
        heapq.heapify(heap)
        while heap:
            tenant = heap[0][1]
            line = self._lines[tenant]
            yield line.popleft()
            if line:
                heapq.heapreplace(heap, (self._turn(tenant, line[0]), tenant))
            else:
                heapq.heappop(heap)

    def _turn(self, tenant: str, first: Waiting) -> tuple[int, float, tuple[int, bool, int, int]]:
        return min(first.priority, 0), self._used[tenant], self._place(first)

    def _place(self, job: Waiting) -> tuple[int, bool, int, int]:
        probe = job.number in self._probes
        return job.priority, not probe, job.need if probe else 0, job.number

    def charge(self, job: Waiting) -> None:
        self._used[job.tenant] += job.need * TYPICAL


def level(used: Mapping[str, float], tenants: Iterable[str], credit: float) -> dict[str, float]:
    """What the tenants have used, as it counts: nobody is further behind the first than `credit`.

    So a newcomer goes first for a while, but never until it has caught up with years of others' work.
    """
    found = {tenant: used.get(tenant, 0.0) for tenant in tenants}
    floor = max(found.values(), default=0.0) - credit
    return {tenant: max(amount, floor) for tenant, amount in found.items()}
