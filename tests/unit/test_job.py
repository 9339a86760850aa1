"""The state table, and the record."""

from __future__ import annotations

import dataclasses

import pytest
from records import a_job

from ncr_worker.job import OUT, TERMINAL, TRANSITIONS, State, sources


def reachable(start: State) -> set[State]:
    seen, todo = set[State](), [start]
    while todo:
        new = TRANSITIONS[todo.pop()] - seen
        seen |= new
        todo.extend(new)
    return seen


def test_every_state_has_its_transitions_declared() -> None:
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize("state", [state for state in State if state not in TERMINAL])
def test_every_unfinished_state_can_reach_every_end(state: State) -> None:
    assert reachable(state) >= TERMINAL


@pytest.mark.parametrize("state", State)
def test_every_state_is_reached_from_a_new_job(state: State) -> None:
    assert state in reachable(State.QUEUED)


def test_success_is_final() -> None:
    assert not TRANSITIONS[State.SUCCEEDED]


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_a_retry_by_a_person_is_the_only_way_out_of_an_end_without_success(state: State) -> None:
    assert TRANSITIONS[state] == {State.QUEUED}


def test_a_job_runs_only_when_it_was_dispatched_to_a_host() -> None:
    assert sources(State.RUNNING) == {State.DISPATCHED}


@pytest.mark.parametrize("state", sorted(OUT))
def test_a_job_that_holds_memory_has_not_ended(state: State) -> None:
    assert state not in TERMINAL


@pytest.mark.parametrize("target", State)
def test_sources_is_the_inverse_of_the_table(target: State) -> None:
    assert sources(target) == {state for state in State if target in TRANSITIONS[state]}


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[State.SUCCEEDED] = frozenset()  # type: ignore[index]


def test_evolve_gives_a_changed_copy_and_leaves_the_record_alone() -> None:
    job = a_job(attempt=1)
    later = job.evolve(attempt=2, state=State.RUNNING)
    assert (later.attempt, later.state, later.id) == (2, State.RUNNING, job.id)
    assert (job.attempt, job.state) == (1, State.QUEUED)
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.attempt = 3  # type: ignore[misc]


@pytest.mark.parametrize("state", State)
def test_terminal_is_what_the_set_says(state: State) -> None:
    assert a_job(state=state).terminal is (state in TERMINAL)


def test_log_context_names_the_job() -> None:
    context = a_job(id="j7", ref="A-7", attempt=2).log_context()
    assert context == {"job_id": "j7", "kind": "deliver", "ref": "A-7", "attempt": 2}
    assert a_job(request_id="r-1").log_context()["request_id"] == "r-1"
