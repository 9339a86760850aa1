"""Feeder, watch and runner together on a host of 1000 MiB, of which jobs may use 800: what a job may have, and what it
costs to take more."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine import (
    Children,
    Pool,
    Tally,
    WorkerHost,
    deaf,
    eventually,
    is_idle,
    noting,
    pipeline,
    started,
    state,
    step,
    until,
    waiting,
)
from ledgers import alter

from ncr_worker.job import Event, Job, Reason, State
from ncr_worker.ledger import Picked
from ncr_worker.ledger.observations import Seen, note
from ncr_worker.memory import watch as watch_module
from ncr_worker.memory.needs import Needs
from ncr_worker.memory.slots import Order, Phase
from ncr_worker.pipeline import GIB, MIB, Pipeline
from ncr_worker.worker.feeder import Feeder
from ncr_worker.worker.processes import has_ended

LIAR = 64  # MiB that a liar uses


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "GRACE", 0.3)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Jobs with the text `wait` go on until it exists."""
    return tmp_path / "gate"


def started_with(host: WorkerHost, children: Children, kind: Pipeline[Any]) -> Feeder:
    """Its pool's children lead groups of their own, as the worker's do."""
    pool = Pool(host, children, kind)

    def send(job: Picked, slot: int) -> None:
        children.start(lambda: (os.setpgid(0, 0), pool._work(job, slot)))  # type: ignore[func-returns-value]

    return started(host, send)


def by_text(**works: Callable[[Any, Tally], object]) -> Any:
    """A stage for jobs with texts as `lie 20`: a name for what it does there, and the MiB that the stage asks for."""

    def work(run: Any, parcel: Tally) -> None:
        works[parcel.args.text.split()[0]](run, parcel)

    return step("fetch", work, memory=said)


def said(job: Tally) -> int:
    return int(job.args.text.split()[1]) * MIB


def nothing(_run: Any, _parcel: Tally) -> None:
    """A stage that is done at once."""


def greedy(then: Callable[[Any, Tally], object]) -> Callable[[Any, Tally], None]:
    """Uses LIAR MiB, then goes on."""

    def work(run: Any, parcel: Tally) -> None:
        block = bytearray(LIAR * MIB)
        block[::4096] = b"x" * len(block[::4096])
        then(run, parcel)
        del block

    return work


def obedient(run: Any, _parcel: Tally) -> None:
    while True:
        run.advance(files=0)
        time.sleep(0.01)


def watched(feeder: Feeder, condition: Callable[[], bool]) -> None:
    """As `until`, while the watch looks too."""

    def looked() -> bool:
        feeder.watch.look()
        return condition()

    until(feeder, looked, 20)


def submit(host: WorkerHost, text: str, need: int | None = None, **changes: Any) -> str:
    """`need` in MiB; usually what its stage asks for."""
    size = need if need is not None else int(text.split()[1])
    return host.submit(args={"text": text}, need=size * MIB, **changes)


def trail(host: WorkerHost, job_id: str) -> list[Event]:
    return host.ledger.reads.events(job_id)


def job_of(host: WorkerHost, job_id: str) -> Job:
    return host.ledger.reads.job(job_id)


# --- a stage that needs more --------------------------------------------------------------------------
def test_what_is_free_is_granted_and_the_job_goes_on(host: WorkerHost, children: Children, gate: Path) -> None:
    neighbour, big = submit(host, "wait 470"), submit(host, "big 300", need=100)
    feeder = started_with(host, children, pipeline(by_text(big=nothing, wait=waiting(gate))))
    until(feeder, lambda: state(host, big) is State.SUCCEEDED)
    assert [event.state for event in trail(host, big)] == ["queued", "dispatched", "running", "succeeded"]
    assert job_of(host, big).granted == 300 * MIB
    assert state(host, neighbour) is State.RUNNING


def test_what_is_not_there_makes_the_job_yield_and_come_back(host: WorkerHost, children: Children, gate: Path) -> None:
    neighbour, big = submit(host, "wait 471"), submit(host, "big 300", need=100)
    feeder = started_with(host, children, pipeline(by_text(big=nothing, wait=waiting(gate))))
    until(feeder, lambda: "yielded" in [event.reason for event in trail(host, big)])
    assert (state(host, big), job_of(host, big).attempt, job_of(host, big).need) == (State.QUEUED, 0, 300 * MIB)
    gate.touch()
    until(feeder, lambda: state(host, big) is state(host, neighbour) is State.SUCCEEDED and is_idle(feeder))
    assert (job_of(host, big).attempt, job_of(host, big).granted) == (1, 300 * MIB)


def test_a_job_alone_is_granted_more_than_the_budget(host: WorkerHost, children: Children) -> None:
    big = submit(host, "big 900", need=100)
    feeder = started_with(host, children, pipeline(by_text(big=nothing)))
    until(feeder, lambda: state(host, big) is State.SUCCEEDED and is_idle(feeder))
    assert (job_of(host, big).granted, job_of(host, big).attempt) == (900 * MIB, 1)
    assert "yielded" not in [event.reason for event in trail(host, big)]


def test_what_fits_no_host_fails_with_both_sizes_after_it_has_yielded(host: WorkerHost, children: Children) -> None:
    huge = submit(host, "big 1001", need=100)
    feeder = started_with(host, children, pipeline(by_text(big=nothing)))
    until(feeder, lambda: state(host, huge) is State.FAILED)
    assert job_of(host, huge).error_code == "never_fits"
    assert f"{1001 * MIB:,}" in (job_of(host, huge).error or "")
    assert f"{1000 * MIB:,}" in (job_of(host, huge).error or "")


# --- jobs that use more than they reserved ------------------------------------------------------------
@pytest.mark.parametrize("stubborn", [True, False], ids=["ended", "told"])
def test_an_over_use_costs_an_attempt_and_brings_more_memory(
    host: WorkerHost, children: Children, gate: Path, stubborn: bool
) -> None:
    liar, honest = submit(host, "lie 20"), submit(host, "wait 750")
    work = by_text(lie=greedy(deaf if stubborn else obedient), wait=waiting(gate))
    feeder = started_with(host, children, pipeline(work))
    watched(feeder, lambda: job_of(host, liar).reason == Reason.OUT_OF_MEMORY)
    job = job_of(host, liar)
    assert (job.state, job.attempt) == (State.QUEUED, 1)
    assert job.need >= 40 * MIB
    assert str(job.error).endswith(" MiB, 20 MiB were reserved")
    assert trail(host, liar)[-1].reason == job.error
    assert trail(host, liar)[-1].actor == ("feeder" if stubborn else "runner")
    assert feeder.watch.ended == stubborn
    assert state(host, honest) is State.RUNNING
    feeder.draining = True  # it takes nothing again
    gate.touch()
    watched(feeder, lambda: state(host, honest) is State.SUCCEEDED and is_idle(feeder))
    assert job_of(host, honest).attempt == 1


def test_with_what_it_got_more_the_job_goes_on_beside_others(host: WorkerHost, children: Children, gate: Path) -> None:
    """What its stage says was wrong before: its reservation is not lowered to that again."""

    def lies_once(run: Any, parcel: Tally) -> None:
        greedy(obedient if run.job.attempt == 1 else waiting(gate))(run, parcel)

    liar, honest = submit(host, "lie 20", max_attempts=2), submit(host, "wait 750")
    feeder = started_with(host, children, pipeline(by_text(lie=lies_once, wait=waiting(gate))))
    watched(feeder, lambda: job_of(host, liar).reason == Reason.OUT_OF_MEMORY)
    gate.touch()
    watched(feeder, lambda: state(host, honest) is State.SUCCEEDED)
    gate.unlink()
    alter(host.ledger, liar, next_run_at=0.0)
    other = submit(host, "wait 650")
    watched(feeder, lambda: state(host, other) is State.RUNNING and feeder.watch.load().observed > LIAR * MIB)
    [charge] = [one for one in feeder.watch.load().charges if one.observed > LIAR * MIB]
    assert charge.reserved == job_of(host, liar).need > LIAR * MIB
    gate.touch()
    watched(feeder, lambda: state(host, liar) is state(host, other) is State.SUCCEEDED)
    assert job_of(host, liar).attempt == 2


def test_when_others_have_grown_a_job_that_kept_to_its_word_loses_no_attempt(
    host: WorkerHost, children: Children
) -> None:
    job_id = submit(host, "keep 200")
    feeder = started_with(host, children, pipeline(by_text(keep=greedy(deaf))))
    watched(feeder, lambda: feeder.watch.load().observed > LIAR * MIB)
    meminfo = feeder.watch.domain.root / "proc/meminfo"
    meminfo.write_text(meminfo.read_text().replace("AnonPages: 0", f"AnonPages: {980 * 1024}"))
    watched(feeder, lambda: state(host, job_id) is State.QUEUED)
    assert (job_of(host, job_id).reason, job_of(host, job_id).attempt) == (Reason.GIVEN_BACK, 0)
    feeder.wake()
    watched(feeder, lambda: is_idle(feeder))
    assert state(host, job_id) is State.QUEUED, "while the others use all there is, nothing starts"


def full(_run: Any, _parcel: Tally) -> None:
    raise MemoryError


def test_a_memory_error_is_its_jobs_trouble_alone(host: WorkerHost) -> None:
    host.submit(need=100 * MIB)
    job = host.run(pipeline(step("pack", full), memory=100 * MIB))
    assert (job.state, job.reason, job.attempt, job.need) == (State.QUEUED, Reason.OUT_OF_MEMORY, 1, 200 * MIB)
    assert host.slots.read(0).phase is Phase.LEFT


def test_after_its_attempts_it_fails_and_its_message_tells_them_all(host: WorkerHost) -> None:
    abandoned: list[str] = []
    pack = step("pack", full, memory=lambda _parcel: 100 * MIB)
    kind = pipeline(step("plan"), pack, memory=100 * MIB, abandon=noting(abandoned, "abandon"))
    job_id = host.submit(need=100 * MIB, max_attempts=2)
    assert host.run(kind).need == 200 * MIB
    alter(host.ledger, job_id, next_run_at=0.0)
    assert (host.run(kind).need, abandoned) == (0, [])
    alter(host.ledger, job_id, next_run_at=0.0)
    job = host.run(kind)
    assert (job.state, job.error_code, job.attempt, abandoned) == (State.FAILED, "out_of_memory", 3, ["abandon"])
    first, second = str(job.error).split("; then ")
    assert first.startswith("out of memory: used ")
    assert first.endswith(" MiB, 100 MiB were reserved")
    assert second.endswith(" of 200 MiB")


def test_a_guess_at_its_need_does_not_deny_it_what_it_got_more(host: WorkerHost) -> None:
    """All that is known of its kind is that it used 600 GiB and was ended: twice that fits no host."""

    def work(_run: Any, _parcel: Tally) -> None:
        host.slots.put(0, 4, 600 * GIB)  # its peak
        raise MemoryError

    kind, job_id = pipeline(step("pack", work)), host.submit(need=300 * GIB, max_attempts=2)
    assert host.run(kind).need == 750 * GIB
    alter(host.ledger, job_id, next_run_at=0.0)
    job, first = host.run(kind), f"used {600 * 1024:,} MiB, {300 * 1024:,} MiB were reserved"
    assert (job.attempt, job.error) == (2, f"out of memory: {first}; then {600 * 1024:,} of {750 * 1024:,} MiB")


def test_one_that_ran_away_does_not_condemn_those_of_its_kind_that_wait(host: WorkerHost) -> None:
    host.ledger.queue.foresee = Needs(host.ledger.database, learned=True).foresee
    runaway = Seen("tally", 1, None, None, None, 600 * GIB, 1.0, killed=True)
    host.ledger.database.transact(lambda connection: note(connection, [runaway]))
    job_id = host.submit(need=MIB)
    assert (host.pick().reserved, state(host, job_id)) == (1000 * GIB, State.DISPATCHED)


def test_a_job_that_is_told_to_leave_and_was_cancelled_ends_cancelled(host: WorkerHost) -> None:
    def work(run: Any, _parcel: Tally) -> None:
        host.ledger.intake.cancel(run.job.id, actor="ann")
        host.slots.order(0, Order.OUTGROWN)
        run.advance(files=1)

    host.submit(need=100 * MIB)
    assert host.run(pipeline(step("pack", work), memory=100 * MIB)).state is State.CANCELLED


# --- processes that a job leaves behind ---------------------------------------------------------------
def breeding(names: Path, then: Callable[[Any, Tally], object]) -> Callable[[Any, Tally], None]:
    """Starts a process, and an orphan of it; writes their pids down."""

    def work(run: Any, parcel: Tally) -> None:
        child = subprocess.Popen(["sleep", "600"])
        orphan = subprocess.run(["sh", "-c", "sleep 600 >&- & echo $!"], stdout=subprocess.PIPE, check=True)
        names.write_text(f"{child.pid} {int(orphan.stdout)}\n")
        then(run, parcel)
        child.returncode = 0  # it is ended by the runner, which nobody tells this object

    return work


def pids_in(names: Path) -> list[int]:
    assert eventually(lambda: names.exists() and names.read_text().endswith("\n"))
    return [int(each) for each in names.read_text().split()]


def test_a_child_that_dies_takes_all_of_its_group_with_it(host: WorkerHost, children: Children, tmp_path: Path) -> None:
    names = tmp_path / "names"
    job_id = host.submit(need=10 * MIB)
    feeder = started_with(host, children, pipeline(step("fetch", breeding(names, deaf)), memory=10 * MIB))
    until(feeder, lambda: names.exists() and host.slots.read(0).phase is Phase.RUNNING)
    family = pids_in(names)
    until(feeder, lambda: feeder.held[0].pidfd is not None)
    children.kill(host.slots.read(0).pid)
    until(feeder, lambda: job_of(host, job_id).reason == Reason.WORKER_LOST)
    assert eventually(lambda: all(has_ended(pid) for pid in family))
