"""A real feeder on a real ledger, while jobs come, end, yield, die, are cancelled, and lose their host, in any order.

The children are this process: they do at once what a step of the test lets happen to them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from engine import Children, WorkerHost, is_idle, nobody, started, worker_host
from ledgers import execute, holds, new_job
from sqlalchemy import func, select, update

from ncr_worker.errors import Conflict, GivenBack
from ncr_worker.job import OUT, Job, NewBatch, Reason, State
from ncr_worker.ledger.tables import checkpoint, job
from ncr_worker.memory.slots import JobSlot, Order, Phase, Slots
from ncr_worker.pipeline import GIB, MIB
from ncr_worker.worker.feeder import Feeder

BUDGET = 800 * MIB
BATCHES = {"b0": 1, "b1": 2}  # id -> size
KEYS = ("red", "blue")
SLOTS = 4
SEEDS, STEPS = 6, 500


class World:
    def __init__(self, host: WorkerHost, dead: int, seed: int) -> None:
        self.host = host
        self.dead = dead  # pid of a process that has ended
        self.chance = random.Random(seed)
        self.runs: dict[int, Job] = {}  # by slot
        self.submitted = 0
        for batch_id, size in BATCHES.items():
            self.submit_batch(batch_id, size)
        self.feeder = self.a_new_worker()

    def a_new_worker(self) -> Feeder:
        self.runs.clear()
        self.host.slots = Slots(SLOTS)
        return started(self.host, nobody)

    # --- what happens ---------------------------------------------------------------------------------
    def step(self) -> None:
        weights: dict[Callable[[], None], int] = {
            self.submit: 25 if self.count(State.QUEUED) < 25 else 1,
            self.begin: 40,
            self.end: 20,
            self.ask: 6,
            self.lower: 4,
            self.be_busy: 4,
            self.die: 4,
            self.outgrow: 3,
            self.cancel: 3,
            self.lose_host: 1,
        }
        [happens] = self.chance.choices(list(weights), list(weights.values()))
        happens()
        self.round()
        self.check()

    def round(self) -> None:
        """Retries are due at once; now and then the feeder looks at the whole backlog."""
        execute(self.host.ledger, update(job).values(next_run_at=0.0))
        if self.chance.random() < 0.3:
            self.feeder._looked = 0.0
            self.feeder.wake()
        self.feeder.round()

    def submit_batch(self, batch_id: str, size: int) -> None:
        new = [new_job(kind="tally", batch_id=batch_id, need=self.size(), max_attempts=2) for _ in range(8)]
        self.host.ledger.intake.submit(new, NewBatch(batch_id, "ann", size))
        self.submitted += len(new)

    def submit(self) -> None:
        tenant, key = self.chance.choice("aab"), self.chance.choice([None, None, None, *KEYS])
        new = new_job(kind="tally", tenant=tenant, need=self.size(), exclusive_key=key, max_attempts=3)
        taken = key in holds(self.host.ledger)
        try:
            self.host.ledger.intake.submit([new])
            self.submitted += 1
            assert not taken, "the key was held"
        except Conflict:
            assert taken

    def size(self) -> int:
        return self.chance.choice([1, 1, 100, 100, 300, 600, 900]) * MIB

    def begin(self) -> None:
        sent = [index for index in self.feeder.held if self.host.slots.read(index).phase is Phase.SENT]
        if sent:
            index = self.chance.choice(sent)
            picked = self.feeder.held[index].job
            claimed = self.host.ledger.work.claim(picked.job_id, picked.token, f"{os.getpid()}-{index}", "plan")
            if claimed is not None and JobSlot(self.host.slots, index, picked.token).begin(1000 * GIB):
                self.runs[index] = claimed.job

    def end(self) -> None:
        if run := self.any_run():
            state = self.chance.choice([State.SUCCEEDED, State.SUCCEEDED, State.FAILED])
            if self.host.ledger.reads.job(run[1].id).state is State.CANCELLING:
                state = State.CANCELLED
            self.host.ledger.work.finish(run[1], state)
            self.leave(run[0])

    def ask(self) -> None:
        """A stage to come needs more: the feeder's answer decides."""
        if run := self.any_run():
            index, need = run[0], self.size()
            self.host.slots.put(index, 7, need)
            self.feeder.round()
            slot = self.host.slots.read(index)
            assert slot.asked == 0, "every wish is answered"
            if slot.reserved < need:
                self.host.ledger.work.give_back(run[1], reason=Reason.YIELDED, need=need)
                self.leave(index)

    def lower(self) -> None:
        if run := self.any_run():
            JobSlot(self.host.slots, run[0], run[1].token or 0).lower(self.size())

    def be_busy(self) -> None:
        """Its target is in use: it comes back later."""
        if run := self.any_run():
            try:
                if self.host.ledger.reads.job(run[1].id).state is State.RUNNING:
                    self.host.ledger.work.hold(run[1], "target")
            except GivenBack as error:
                self.host.ledger.work.give_back(run[1], reason=Reason(error.reason))
                self.leave(run[0])

    def die(self) -> None:
        if run := self.any_run():
            self.lose(run[0])

    def outgrow(self) -> None:
        if run := self.any_run():
            self.host.slots.put(run[0], 4, 2 * self.host.slots.read(run[0]).reserved)
            self.host.slots.order(run[0], Order.OUTGROWN)
            self.lose(run[0])

    def lose(self, index: int) -> None:
        """Its process is one that has ended."""
        held = self.feeder.held[index]
        if held.pidfd is not None:
            os.close(held.pidfd)
            held.pidfd = None
        self.host.slots.put(index, 2, self.dead)
        del self.runs[index]

    def cancel(self) -> None:
        query = select(job.c.id).where(job.c.state.in_([State.QUEUED, State.DISPATCHED, State.RUNNING]))
        ids = list(self.host.ledger.database.read(lambda c: c.execute(query.order_by(job.c.number)).scalars().all()))
        if ids:
            self.host.ledger.intake.cancel(self.chance.choice(ids), actor="ann")

    def lose_host(self) -> None:
        self.feeder = self.a_new_worker()

    def any_run(self) -> tuple[int, Job] | None:
        return self.chance.choice(sorted(self.runs.items(), key=lambda each: each[0])) if self.runs else None

    def leave(self, index: int) -> None:
        JobSlot(self.host.slots, index, self.runs.pop(index).token or 0).leave(clean=True)

    # --- what must hold -------------------------------------------------------------------------------
    def count(self, *states: State) -> int:
        query = select(func.count()).select_from(job).where(job.c.state.in_(states))
        return int(self.host.ledger.database.read(lambda c: c.execute(query).scalar_one()))

    def check(self) -> None:
        slots = [self.host.slots.read(index) for index in range(SLOTS)]
        reserved = [slot.reserved for slot in slots if slot.phase is not Phase.FREE]
        assert sum(reserved) <= BUDGET or len(reserved) == 1, "more than the budget"
        assert all((slot.phase is Phase.FREE) is (index not in self.feeder.held) for index, slot in enumerate(slots))
        mine = {held.job.token for held in self.feeder.held.values()}
        query = select(job.c.batch_id, job.c.token, job.c.passed).where(job.c.state.in_(sorted(OUT)))
        out = self.host.ledger.database.read(lambda c: c.execute(query).all())
        assert {row.token for row in out} <= mine, "the ledger counts a job here that nobody holds"
        for batch_id, size in BATCHES.items():
            assert sum(row.batch_id == batch_id for row in out) <= size, "more of a batch than its size"
        passed = self.host.ledger.database.read(lambda c: c.execute(select(func.max(job.c.passed))).scalar_one())
        assert passed <= self.host.ledger.queue.overtake_limit, "passed too often"
        ended = self.count(State.SUCCEEDED, State.FAILED, State.CANCELLED)
        assert ended + self.count(State.QUEUED) + len(out) == self.submitted, "a job is lost"

    def finish(self) -> None:
        """Nobody submits any more: everything starts, and ends, and nothing is left."""
        while self.count(State.QUEUED, *OUT):
            self.feeder._looked = 0.0
            self.feeder.wake()
            self.round()
            assert self.feeder.held, "something waits, and nothing runs"
            for index in list(self.feeder.held):
                if self.host.slots.read(index).phase is Phase.SENT:
                    self.begin()
            self.end()
            self.check()
        self.round()
        assert is_idle(self.feeder)
        assert holds(self.host.ledger) == {}
        left = select(func.count()).select_from(checkpoint)
        assert self.host.ledger.database.read(lambda c: c.execute(left).scalar_one()) == 0


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_feeder_keeps_every_promise_whatever_happens(tmp_path: Path, seed: int) -> None:
    children = Children()
    dead = children.start(lambda: None)
    children.wait(dead)
    with worker_host(tmp_path) as host:
        world = World(host, dead, seed)
        for _ in range(STEPS):
            world.step()
        world.finish()
        assert world.submitted > STEPS / 10
