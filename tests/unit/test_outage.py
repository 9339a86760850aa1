"""A service that is down: all wait, one asks, then all go on; and nobody waits for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ncr_worker.errors import ServiceDown, StageError, Transient
from ncr_worker.outage import FAILURES, LONGEST_PAUSE, Gate

PAUSE = 4.0
PATIENCE = 1000.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate(tmp_path: Path, clock: Clock) -> Gate:
    return a_gate(tmp_path, clock)


def a_gate(folder: Path, clock: Clock) -> Gate:
    path = folder / "work" / "validator.json"
    return Gate(path, "validator", pause=PAUSE, patience=PATIENCE, longest_call=100, clock=clock)


def use(gate: Gate, job: str, clock: Clock, *, age: float = 0.0) -> None:
    with gate.admitted(job, clock.now - age):
        gate.passed()


def fail(gate: Gate, job: str, clock: Clock, *, age: float = 0.0, retry_in: float | None = None) -> None:
    with gate.admitted(job, clock.now - age):
        gate.failed(clock.now - age, Transient("HTTP 503", code="validator_unavailable", retry_in=retry_in))


def take_down(gate: Gate, clock: Clock) -> ServiceDown:
    for number in range(FAILURES - 1):
        fail(gate, f"job-{number}", clock)
    with pytest.raises(ServiceDown) as caught:
        fail(gate, "last", clock)
    return caught.value


def waits(gate: Gate, job: str, clock: Clock) -> ServiceDown:
    with pytest.raises(ServiceDown) as caught:
        use(gate, job, clock)
    return caught.value


def test_single_failures_hold_nobody_back(gate: Gate, clock: Clock) -> None:
    for _ in range(5):
        fail(gate, "a", clock)
        use(gate, "b", clock)


def test_after_failures_in_a_row_every_job_waits_and_is_told_why(gate: Gate, clock: Clock, tmp_path: Path) -> None:
    error = take_down(gate, clock)
    assert (error.code, error.reason) == ("service_down", "service_down")
    assert "validator" in str(error)
    assert "HTTP 503" in str(error)
    clock.now += 1
    other_process = a_gate(tmp_path, clock)
    assert waits(other_process, "other", clock).retry_in == PAUSE  # at least that
    assert error.retry_in > PAUSE, "the job that failed comes after the others"


def test_after_the_pause_one_job_asks_and_the_others_wait(gate: Gate, clock: Clock) -> None:
    take_down(gate, clock)
    clock.now += PAUSE
    with gate.admitted("probe", clock.now):
        waits(gate, "other", clock)
        with gate.admitted("probe", clock.now):  # from fetch on to validate
            pass
        waits(gate, "other", clock)
        gate.passed()
    use(gate, "other", clock)


def test_the_pause_grows_up_to_a_limit(gate: Gate, clock: Clock) -> None:
    take_down(gate, clock)
    pauses = []
    for number in range(8):
        clock.now += LONGEST_PAUSE
        with pytest.raises(ServiceDown) as caught:
            fail(gate, f"probe-{number}", clock)
        pauses.append(caught.value.retry_in - PAUSE)
    assert pauses == [8, 16, 32, 60, 60, 60, 60, 60]


def test_the_service_may_ask_for_a_longer_pause(gate: Gate, clock: Clock) -> None:
    take_down(gate, clock)
    clock.now += PAUSE
    with pytest.raises(ServiceDown):
        fail(gate, "probe", clock, retry_in=300)
    clock.now += 299
    waits(gate, "other", clock)
    clock.now += 1
    use(gate, "other", clock)


def test_a_probe_that_does_not_come_to_it_makes_room(gate: Gate, clock: Clock) -> None:
    take_down(gate, clock)
    clock.now += PAUSE
    with pytest.raises(ZeroDivisionError), gate.admitted("probe", clock.now):
        raise ZeroDivisionError
    use(gate, "other", clock)


def test_a_probe_whose_process_died_makes_room(
    gate: Gate, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_down(gate, clock)
    clock.now += PAUSE
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 2**22 + 1)  # above the largest pid
        a_gate(tmp_path, clock).admitted("probe", clock.now).__enter__()
    use(gate, "other", clock)


def test_a_probe_that_takes_too_long_makes_room(gate: Gate, clock: Clock) -> None:
    take_down(gate, clock)
    clock.now += PAUSE
    with gate.admitted("probe", clock.now):
        clock.now += 100
        use(gate, "other", clock)


def test_a_job_that_has_waited_too_long_fails(gate: Gate, clock: Clock) -> None:
    take_down(gate, clock)
    began = clock.now
    while clock.now - began <= PATIENCE:
        clock.now += 60
        with pytest.raises((ServiceDown, StageError)):
            fail(gate, "young", clock)
    with pytest.raises(StageError) as caught:
        use(gate, "old", clock, age=PATIENCE + 60)
    assert caught.value.code == "validator_unavailable"
    waits(gate, "new", clock)


def test_a_file_that_cannot_be_read_is_forgotten(gate: Gate, clock: Clock, tmp_path: Path) -> None:
    take_down(gate, clock)
    (tmp_path / "work" / "validator.json").write_text('{"since": 1')
    use(gate, "job", clock)


def test_a_service_that_works_leaves_no_file(gate: Gate, clock: Clock, tmp_path: Path) -> None:
    fail(gate, "a", clock)
    use(gate, "a", clock)
    assert not (tmp_path / "work" / "validator.json").exists()
