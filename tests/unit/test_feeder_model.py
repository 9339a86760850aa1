"""Whatever happens to hosts and jobs, in any order, the decisions of the feeders keep their promises.

Here the policy alone decides, over hosts and a backlog that are a few dictionaries: a hundred thousand steps in
seconds. test_feeder_random.py does the same with a real feeder and ledger.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ncr_worker.memory.budget import Charge, Load, doomed, victims
from ncr_worker.picking import CREDIT, TYPICAL, Room, Round, Turns, Waiting

K = 3
SHARE = 0.8
LARGEST = 1000  # bytes of the one host that never shrinks
EXAMPLES, STEPS = 25, 4_400


@dataclass
class Running:
    job: Waiting
    charge: Charge

    def byte_seconds(self, now: float) -> float:
        return self.job.need * max(now - self.charge.since, TYPICAL)


@dataclass
class Host:
    limit: int
    slots: int
    others: int = 0
    up: bool = True
    running: dict[int, Running] = field(default_factory=dict)  # by the job's number

    @property
    def load(self) -> Load:
        charges = tuple(one.charge for one in self.running.values())
        return Load(self.limit, "host", self.others + sum(one.observed for one in charges), SHARE, charges)

    @property
    def held(self) -> list[int]:
        return [one.charge.bytes for one in self.running.values()]

    def may_delay(self, waiting: Waiting, job: Waiting) -> bool:
        """Some of those that run end, and `waiting` fits, but not beside `job`. Or nobody knows what it waits for."""
        ends, lacks = {0}, waiting.need - self.load.free
        for size in self.held:
            ends |= {end + size for end in ends}
        enough = sorted(ends)[bisect_left(sorted(ends), lacks) :]
        return not enough or enough[0] < lacks + job.need


class World:
    """Three hosts and a backlog. Each step, something happens; then one of the feeders has its round."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.hosts = [Host(LARGEST, 4), Host(600, 3), Host(300, 8)]
        self.waiting: dict[int, Waiting] = {}
        self.ended: set[int] = set()
        self.used: defaultdict[str, float] = defaultdict(float)
        self.overtaken: Counter[int] = Counter()
        self.submitted = 0
        self.now = 0.0
        self.story: deque[str] = deque(maxlen=30)

    # --- what happens ---------------------------------------------------------------------------------
    def step(self) -> None:
        weights: dict[Callable[[], None], int] = {
            self.arrive: 30 if len(self.waiting) < 30 else 2,
            self.end: 22,
            self.ask: 8,
            self.lower: 6,
            self.grow: 8,
            self.die: 4,
            self.others_change: 3,
            self.lose_host: 1,
        }
        [happens] = self.chance.choices(list(weights), list(weights.values()))
        happens()
        self.now += self.chance.random()
        for host in self.hosts:
            if host.running:
                self.watch(host)
        self.feed(self.chance.choice(self.hosts))
        self.check()

    def arrive(self) -> None:
        self.submitted += 1
        need = self.chance.choice([0, 10, 50, 50, 100, 250, 550, LARGEST])
        tenant, priority = self.chance.choice("aaab"), self.chance.choice([0, 0, 0, 1])
        number = self.submitted
        self.waiting[number] = Waiting(number, str(number), "deliver", need, tenant, priority)
        self.story.append(f"{number} arrives: {need} bytes, {tenant}, priority {priority}")

    def end(self) -> None:
        if found := self.any_running():
            host, one = found
            self.leave(host, one, "ends")
            self.ended.add(one.job.number)

    def ask(self) -> None:
        """A stage to come needs more: it goes on with that, or yields."""
        if found := self.any_running():
            host, one = found
            need = self.chance.randint(0, LARGEST)
            load = host.load
            if load.may_grow(one.charge, need):
                one.charge = replace(one.charge, reserved=need)
                alone = len(host.running) == 1 and need <= host.limit
                assert host.load.charged <= max(load.budget, load.charged) or alone, "more than was there"
            else:
                self.requeue(host, one, need, "yields")

    def lower(self) -> None:
        if found := self.any_running():
            one = found[1]
            one.charge = replace(one.charge, reserved=self.chance.randint(0, one.charge.reserved))

    def grow(self) -> None:
        """A job uses more, and sometimes more than it has reserved."""
        if found := self.any_running():
            one = found[1]
            one.charge = replace(one.charge, observed=int(one.charge.reserved * self.chance.uniform(0, 1.6)))

    def die(self) -> None:
        if found := self.any_running():
            self.requeue(*found, found[1].job.need, "dies")

    def others_change(self) -> None:
        host = self.chance.choice(self.hosts)
        host.others = self.chance.choice([0, 0, host.limit // 10, host.limit // 3, host.limit])

    def lose_host(self) -> None:
        host = self.chance.choice(self.hosts)
        for one in list(host.running.values()):
            self.requeue(host, one, one.job.need, "loses its host")
        host.up = not host.up
        if host is not self.hosts[0]:
            host.limit = self.chance.choice([300, 600, 900])

    def any_running(self) -> tuple[Host, Running] | None:
        out = [(host, one) for host in self.hosts for one in host.running.values()]
        return self.chance.choice(out) if out else None

    def leave(self, host: Host, one: Running, how: str) -> None:
        del host.running[one.job.number]
        self.used[one.job.tenant] += one.byte_seconds(self.now)
        self.story.append(f"{one.job.number} {how} on the host of {host.limit}")

    def requeue(self, host: Host, one: Running, need: int, why: str) -> None:
        self.leave(host, one, why)
        self.waiting[one.job.number] = one.job._replace(need=min(need, LARGEST), passed=0, refused=False)

    # --- what is decided ------------------------------------------------------------------------------
    def watch(self, host: Host) -> None:
        load = host.load
        told = {charge.token for charge in victims(load, self.now)}
        staying = [charge for charge in load.charges if not charge.ending and charge.token not in told]
        enough = sum(charge.bytes for charge in staying) <= load.budget
        assert enough or len(staying) == 1 or not any(charge.over for charge in staying), "more had to be told"
        for number in told:
            host.running[number].charge = replace(host.running[number].charge, ending=True)
        for charge in doomed(load, self.now):
            self.requeue(host, host.running[charge.token], 2 * charge.reserved, "is ended")
        for one in list(host.running.values()):
            if one.charge.ending and self.chance.random() < 0.5:
                self.requeue(host, one, 2 * one.charge.reserved, "leaves as it was told")

    def feed(self, host: Host) -> None:
        load = host.load
        if not host.up or load.in_danger or len(host.running) >= host.slots:
            return
        used = self.used.copy()
        for one in host.running.values():
            used[one.job.tenant] += one.byte_seconds(self.now)
        room = Room(host.slots - len(host.running), load.free, host.limit, not host.running, host.held)
        round_ = Round(room, K)
        turns, seen = Turns(self.waiting.values(), used, CREDIT * host.limit), []
        for job in turns:
            if round_.done:
                break
            seen.append(job)
            if round_.consider(job):
                turns.charge(job)
        self.check_round(host, round_, [job for job in seen if job.need <= host.limit])
        for number, count in round_.passed.items():
            self.waiting[number] = self.waiting[number]._replace(passed=self.waiting[number].passed + count)
        for job in round_.taken:
            self.begin(host, job)

    def begin(self, host: Host, job: Waiting) -> None:
        del self.waiting[job.number]
        for other in self.waiting.values():
            if other.tenant == job.tenant and (other.priority, other.number) < (job.priority, job.number):
                self.overtaken[other.number] += other.need <= host.limit and host.may_delay(other, job)
        del self.overtaken[job.number]
        charge = Charge(0, job.number, job.need, 0, 1000 + job.number, self.now)
        host.running[job.number] = Running(job, charge)
        self.story.append(f"{job.number} starts on the host of {host.limit}")

    # --- what must hold -------------------------------------------------------------------------------
    def check_round(self, host: Host, round_: Round, considered: list[Waiting]) -> None:
        load, taken = host.load, [job.need for job in round_.taken]
        if taken:
            alone = not host.running and len(taken) == 1 and taken[0] <= host.limit
            assert load.charged + sum(taken) <= load.budget or alone or not any(taken), "more than the budget"
        if considered and not host.running:
            assert considered[0] in round_.taken, "an idle host takes the first that it can hold"
        if considered and considered[0].passed >= K and considered[0] not in round_.taken:
            late = [job for job in round_.taken if host.may_delay(considered[0], job)]
            assert not late, "a job that was passed often enough lets nobody by who may delay it"

    def check(self) -> None:
        running = [number for host in self.hosts for number in host.running]
        assert len(self.waiting) + len(self.ended) + len(running) == self.submitted, "a job is lost, or there twice"
        assert not self.waiting.keys() & self.ended
        assert self.ended.isdisjoint(running)
        assert self.waiting.keys().isdisjoint(running)
        assert all(len(host.running) <= host.slots for host in self.hosts)
        assert max(self.overtaken.values(), default=0) <= K, "passed too often"

    def finish(self) -> None:
        """Nobody submits any more: everything starts, and ends."""
        for host in self.hosts:
            host.up, host.others = True, 0
        while self.waiting or any(host.running for host in self.hosts):
            for host in self.hosts:
                self.feed(host)
            assert any(host.running for host in self.hosts), "something waits, and nothing runs"
            self.now += 1
            self.end()
            self.check()


@settings(max_examples=EXAMPLES, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_hundred_thousand_steps_keep_every_promise(seed: int) -> None:
    assert EXAMPLES * STEPS >= 100_000
    world = World(seed)
    try:
        for _ in range(STEPS):
            world.step()
        world.finish()
    except AssertionError:
        print("\n".join(world.story))
        raise
    assert len(world.ended) == world.submitted > STEPS / 20
    assert all(host.load.charged == 0 for host in world.hosts)
