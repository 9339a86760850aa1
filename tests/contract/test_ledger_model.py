"""Any order of calls keeps the ledger's promises: hypothesis drives it against a simple model of what is true."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, initialize, invariant, multiple, rule
from ledgers import LEASE, claim, emptied, figures, holds, new_job, offer
from sqlalchemy import select, update

from ncr_worker.errors import Cancelled, Conflict, LostOwnership
from ncr_worker.history import History
from ncr_worker.job import OUT, Job, NewBatch, Reason, State
from ncr_worker.ledger import Checkpoint, Picked, schema, tables
from ncr_worker.pipeline import MIB
from ncr_worker.sql import Database

MAX_ATTEMPTS = 2
BATCH_SIZE = 2
KEYS = ("red", "blue")


class LedgerModel(RuleBasedStateMachine):
    """One host, one batch, two exclusive keys; runs go on writing long after they have lost their job."""

    tokens = Bundle("tokens")  # every dispatch there ever was
    runs = Bundle("runs")  # every claim there ever was

    folder: Path
    database: Database

    def __init__(self) -> None:
        super().__init__()
        self.ledger = emptied(self.database, overtake_limit=1)
        self.ledger.hosts.register("h1", "first", figures())
        self.incarnation = 1
        self.seen: set[int] = set()  # tokens
        self.known: dict[str, Job] = {}

    def _owns(self, run: Job) -> bool:
        now = self.ledger.reads.job(run.id)
        return now.token == run.token and now.state in (State.RUNNING, State.CANCELLING)

    # --- what people do -------------------------------------------------------------------------------
    @initialize(target=runs)
    def a_batch_is_there_and_some_of_it_runs(self) -> MultipleResults[Job]:
        jobs = [new_job(batch_id="b0", need=MIB, max_attempts=MAX_ATTEMPTS) for _ in range(4)]
        self.ledger.intake.submit(jobs, NewBatch("b0", "ann", BATCH_SIZE))
        return multiple(*(claim(self.ledger, picked) for picked in self.ledger.queue.pick(offer("h1"))))

    @rule(key=st.sampled_from([None, *KEYS]), need=st.sampled_from([1, 300, 900]), priority=st.integers(0, 1))
    def submit(self, key: str | None, need: int, priority: int) -> None:
        new = new_job(exclusive_key=key, need=need * MIB, priority=priority, max_attempts=MAX_ATTEMPTS)
        taken = key in holds(self.ledger)
        try:
            self.ledger.intake.submit([new])
        except Conflict:
            assert taken
            return
        assert not taken

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self._jobs()))
        try:
            state = self.ledger.intake.cancel(job.id, actor="ann")
        except Conflict:
            assert job.terminal
            return
        if job.state is not State.RUNNING and job.attempt >= MAX_ATTEMPTS:
            assert state is job.state  # its end is decided
        elif job.state in (State.QUEUED, State.DISPATCHED):
            assert state is (State.CANCELLED if job.stage is None else State.QUEUED)
        else:
            assert state is State.CANCELLING

    # --- what the host does ---------------------------------------------------------------------------
    @rule(target=tokens, free=st.sampled_from([800, 100]), slots=st.integers(1, 3))
    def pick(self, free: int, slots: int) -> MultipleResults[Picked]:
        self._let_time_pass()
        idle = not History(self.ledger.database).active()
        picked = self.ledger.queue.pick(offer("h1", slots=slots, free=free, idle=idle))
        assert len(picked) <= slots
        assert sum(job.reserved for job in picked) <= free * MIB or (idle and len(picked) == 1)
        fresh = {job.token for job in picked}
        assert len(fresh) == len(picked)
        assert not fresh & self.seen
        self.seen |= fresh
        return multiple(*picked)

    @rule(target=runs, picked=tokens, claimant=st.sampled_from(["1-a", "2-b"]))
    def child_claims(self, picked: Picked, claimant: str) -> MultipleResults[Job]:
        before = self.ledger.reads.job(picked.job_id)
        claimed = self.ledger.work.claim(picked.job_id, picked.token, claimant, "plan")
        if before.state is State.DISPATCHED and before.token == picked.token:
            assert claimed is not None
            assert claimed.job.attempt == before.attempt + 1
        return multiple(claimed.job) if claimed else multiple()

    @rule(picked=tokens)
    def recall(self, picked: Picked) -> None:
        before = self.ledger.reads.job(picked.job_id)
        waits = before.state is State.DISPATCHED and before.token == picked.token
        assert self.ledger.work.recall(picked.number, picked.token, "stop") is waits

    @rule(picked=tokens)
    def child_dies(self, picked: Picked) -> None:
        self.ledger.work.lost(picked.number, picked.token, "died")
        assert picked.token not in self.ledger.hosts.tokens("h1")

    @rule(silently=st.booleans())
    def host_is_lost(self, silently: bool) -> None:
        if silently:
            statement = update(tables.host).values(seen_at=tables.host.c.seen_at - LEASE - 1)
            self.database.transact(lambda c: c.execute(statement))
            assert self.ledger.hosts.reap("h9") == ["h1"]
        self.incarnation += 1
        self.ledger.hosts.register("h1", f"life {self.incarnation}", figures())
        assert self.ledger.hosts.tokens("h1") == {}

    # --- what children do -----------------------------------------------------------------------------
    @rule(run=runs, stage=st.sampled_from(["fetch", "pack"]))
    def enter(self, run: Job, stage: str) -> None:
        owns, state = self._owns(run), self.ledger.reads.job(run.id).state
        try:
            self.ledger.work.enter(run, stage, done=Checkpoint(0, "plan", None, "{}"))
        except Cancelled:
            assert owns
            assert state is State.CANCELLING
        except LostOwnership:
            assert not owns
        else:
            assert owns
            assert state is State.RUNNING

    @rule(run=runs, end=st.sampled_from([State.SUCCEEDED, State.FAILED]))
    def finish(self, run: Job, end: State) -> None:
        before, owns = self.ledger.reads.job(run.id), self._owns(run)
        told = before.state is end and before.token == run.token
        try:
            self.ledger.work.finish(run, end)
        except LostOwnership:
            assert not owns
            assert not told
        else:
            assert owns or told
            assert self.ledger.reads.job(run.id).state is end

    @rule(run=runs, counted=st.booleans())
    def give_back(self, run: Job, counted: bool) -> None:
        before, owns = self.ledger.reads.job(run.id), self._owns(run)
        self.ledger.work.give_back(run, reason=Reason.RETRY, counted=counted)
        after = self.ledger.reads.job(run.id)
        if not owns:
            assert after == before
        elif before.state is State.CANCELLING:
            ends = State.CANCELLED if before.attempt > MAX_ATTEMPTS else State.QUEUED
            assert (after.state, after.error_code) == (ends, "cancelled")
        else:
            assert (after.state, after.attempt) == (State.QUEUED, before.attempt - (not counted))

    # --- what is always true --------------------------------------------------------------------------
    @invariant()
    def every_promise_is_kept(self) -> None:
        jobs = self._jobs()
        out = {job.token: job.number for job in jobs if job.state in OUT}
        # One more than MAX_ATTEMPTS: the run that only cleans up.
        assert all(0 <= job.attempt <= MAX_ATTEMPTS + 1 for job in jobs)
        assert all((job.reserved > 0) == (job.state in OUT and job.need > 0) for job in jobs)
        assert sum(job.state in OUT for job in jobs if job.batch_id) <= BATCH_SIZE
        assert self.ledger.hosts.tokens("h1") == out
        self._check_keys({job.number for job in jobs if not job.terminal})
        self._check_changes({job.id: job for job in jobs})

    def _check_keys(self, unfinished: set[int]) -> None:
        assert set(holds(self.ledger).values()) <= unfinished

    def _check_changes(self, now: dict[str, Job]) -> None:
        """An ended job never changes, and the last line of a trail is always the state."""
        for job_id, job in self.known.items():
            assert not job.terminal or now[job_id] == job
        for job_id, job in now.items():
            if self.known.get(job_id) != job:
                assert self.ledger.reads.events(job_id)[-1].state == job.state
        self.known = now

    def _let_time_pass(self) -> None:
        due = update(tables.job).where(tables.job.c.state == State.QUEUED).values(next_run_at=0.0)
        self.database.transact(lambda c: c.execute(due))

    def _jobs(self) -> list[Job]:
        ids = self.database.read(lambda connection: connection.execute(select(tables.job.c.id)).scalars().all())
        return self.ledger.reads.jobs(ids)


class TestLedgerModel(LedgerModel.TestCase):  # type: ignore[misc,valid-type]
    settings = settings(
        max_examples=40,
        stateful_step_count=15,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=[Phase.generate],  # add Phase.shrink, and some minutes, for the shortest way to a failure
    )

    @classmethod
    def setUpClass(cls) -> None:
        LedgerModel.folder = Path(tempfile.mkdtemp(prefix="ncr-"))
        LedgerModel.database = Database(f"sqlite:///{LedgerModel.folder / 'ncr.sqlite3'}")
        schema.upgrade(LedgerModel.database)

    @classmethod
    def tearDownClass(cls) -> None:
        LedgerModel.database.close()
        shutil.rmtree(LedgerModel.folder)
