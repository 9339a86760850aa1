"""`--wait` and `--watch`: a command in a process of its own sees jobs end that a real runner runs here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Ncr
from deliveries import World
from engine import eventually
from running import Deliveries

from ncr_worker.app import App
from ncr_worker.cli.follow import MANY
from ncr_worker.job import State
from ncr_worker.views.lookup import Filter

ANN = ("--user", "ann", "--campaign", "spring")


@pytest.fixture
def app(ncr: Ncr) -> Iterator[App]:
    app = App(ncr.settings)
    yield app
    app.close()


def orders(folder: Path, *job_ids: str) -> str:
    many = [{"job_id": job_id, "username": "ann", "campaign": "spring"} for job_id in job_ids]
    path = folder / "orders.json"
    path.write_text(json.dumps(many))
    return str(path)


# --- one job ------------------------------------------------------------------------------------------
def test_a_delivery_is_waited_for(ncr: Ncr, world: World, deliveries: Deliveries) -> None:
    job_id = world.args.job_id
    with ncr.process("submit", job_id, *ANN, "--wait") as command:
        assert command.line().startswith(f"{job_id}: stored")
        assert f"{job_id}  pending" in command.line()
        job = deliveries.run_next()
        answer = command.end()
    assert job.state == State.SUCCEEDED
    assert (answer.code, answer.error) == (0, "")
    assert answer.text.splitlines()[-1].startswith(f"{job_id} completed after ")
    again = ncr("job", job_id, "--watch")
    assert again.code == 0
    assert "verdict   Valid" in again.text


def test_a_rejected_job_has_exit_code_3_and_a_reason(ncr: Ncr, world: World, deliveries: Deliveries) -> None:
    world.put("Materials/oak.glb", b"not a model")
    with ncr.process("submit", world.args.job_id, *ANN, "--wait") as command:
        deliveries.run_next()
        answer = command.end()
    assert answer.code == 3
    last = answer.text.splitlines()[-1]
    assert f"{world.args.job_id} validation_failed after " in last
    assert "oak.glb" in last
    assert ncr("job", world.args.job_id, "--watch").code == 3


def test_as_json_each_change_is_a_document(ncr: Ncr, world: World, deliveries: Deliveries) -> None:
    with ncr.process("submit", world.args.job_id, *ANN, "--wait", "--json") as command:
        accepted, waiting = json.loads(command.line()), json.loads(command.line())
        deliveries.run_next()
        answer = command.end()
    assert (answer.code, answer.error) == (0, "")
    assert accepted["status"] == waiting["status"] == "pending"
    assert accepted.keys() == {"job_id", "task_id", "status", "message", "timestamp"}
    end = answer.documents[-1]
    assert (end["task_id"], end["state"]) == (accepted["task_id"], "succeeded")
    states = [document["state"] for document in answer.documents]
    assert states == sorted(states, key=["queued", "dispatched", "running", "succeeded"].index)


def test_ctrl_c_ends_the_watching_and_not_the_job(ncr: Ncr, world: World, app: App) -> None:
    with ncr.process("submit", world.args.job_id, *ANN, "--wait") as command:
        command.line()
        assert "pending" in command.line(), "it waits now"
        command.interrupt()
        answer = command.end()
    [job] = app.look.jobs(Filter()).jobs
    assert answer.code == 130
    assert f"the job goes on; see it with: ncr job {job.task_id} --watch" in answer.error
    assert f"ncr cancel {job.task_id}" in answer.error
    assert job.status == "pending"


# --- batches ------------------------------------------------------------------------------------------
def test_on_a_terminal_a_batch_has_a_bar_for_each_job(
    ncr: Ncr, world: World, deliveries: Deliveries, tmp_path: Path
) -> None:
    good = world.args.job_id
    with ncr.terminal("batch", orders(tmp_path, good, "ghost"), "--wait") as terminal:
        for _ in range(2):
            deliveries.run_next()
        seen = terminal.until("(ncr job ")
        assert terminal.end() == 3
    assert "2 jobs: stored" in seen
    assert "━" in seen
    assert "partial after" in seen
    assert ": 1 completed, 1 failed" in seen
    assert "  ghost failed: catalog_missing: " in seen


def test_a_large_batch_has_one_line_with_counts(ncr: Ncr, app: App, tmp_path: Path) -> None:
    names = [f"job-{number}" for number in range(MANY + 1)]
    with ncr.process("batch", orders(tmp_path, *names), "--wait") as command:
        command.line()
        assert f"{len(names)} jobs  pending    0 %  {len(names)} queued" in command.line()
        [batch] = app.look.batches().batches
        app.cancel_batch(batch.batch_id, actor="test")
        answer = command.end()
    assert answer.code == 3
    assert f"cancelled  100 %  {len(names)} cancelled" in answer.text
    assert f"batch {batch.batch_id} cancelled after " in answer.text
    assert answer.text.count("cancelled: ") >= len(names), "each is named"


def test_a_large_batch_as_json_ends_with_all_its_jobs(ncr: Ncr, app: App, tmp_path: Path) -> None:
    names = [f"job-{number}" for number in range(MANY + 1)]
    with ncr.process("batch", orders(tmp_path, *names), "--wait", "--json") as command:
        accepted, first = json.loads(command.line()), json.loads(command.line())
        app.cancel_batch(accepted["batch_id"], actor="test")
        answer = command.end()
    assert (answer.code, answer.error) == (3, "")
    assert first["counts"] == {"queued": len(names)}
    end = answer.documents[-1]
    assert end == {**json.loads(app.look.batch(accepted["batch_id"]).model_dump_json()), "timestamp": end["timestamp"]}


# --- lists --------------------------------------------------------------------------------------------
def test_the_live_table_shows_what_comes(ncr: Ncr, app: App) -> None:
    ncr("submit", "first", *ANN)
    with ncr.terminal("jobs", "--watch") as terminal:
        terminal.until("first")
        ncr("submit", "second", *ANN)
        terminal.until("second")
        terminal.interrupt()
        assert terminal.end() == 0


def test_without_a_terminal_the_list_is_printed_when_it_changes(ncr: Ncr, app: App) -> None:
    ncr("submit", "first", *ANN)
    with ncr.process("jobs", "--watch", "--json") as command:
        assert [job["job_id"] for job in json.loads(command.line())["jobs"]] == ["first"]
        ncr("submit", "second", *ANN)
        assert [job["job_id"] for job in json.loads(command.line())["jobs"]] == ["second", "first"]
        command.interrupt()
        assert command.end().code == 0
    assert eventually(lambda: len(app.look.jobs(Filter()).jobs) == 2)
