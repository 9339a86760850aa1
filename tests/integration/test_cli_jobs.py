"""Submit, look, cancel, retry, pause on the command line: on a real ledger, with the models that HTTP answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Ncr
from serving import FIGURES, HOST, on_sqlite, start

from ncr_worker.app import App
from ncr_worker.job import State
from ncr_worker.sandbox.process import free_port
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.views.lookup import Filter

ANN = ("--user", "ann", "--campaign", "spring")
NOBODY = "0b0f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c"


@pytest.fixture
def ncr(valkey: Valkey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ncr:
    return Ncr(on_sqlite(valkey.url, tmp_path), tmp_path, monkeypatch, capsys)


@pytest.fixture
def app(ncr: Ncr) -> Iterator[App]:
    app = App(ncr.settings)
    yield app
    app.close()


def submit(ncr: Ncr, job_id: str, *more: str) -> str:
    answer = ncr("submit", job_id, *ANN, "--json", *more)
    assert answer.code == 0, answer.error
    return str(answer.document["task_id"])


def batch(ncr: Ncr, *job_ids: str, user: str = "ann") -> str:
    many = [{"job_id": job_id, "username": user, "campaign": "spring"} for job_id in job_ids]
    answer = ncr("batch", "-", "--json", stdin=json.dumps(many).encode())
    assert answer.code == 0, answer.error
    return str(answer.document["batch_id"])


def fail(app: App, error: str = "no such key") -> str:
    """The next job runs and fails."""
    job = start(app).job
    app.ledger.work.finish(job, State.FAILED, error_code="s3_missing", error=error)
    return job.id


def known(app: App, **wanted: Any) -> list[str]:
    return [job.job_id for job in app.look.jobs(Filter(**wanted)).jobs]


# --- submit -------------------------------------------------------------------------------------------
def test_a_submitted_job_is_stored_as_it_was_asked(ncr: Ncr, app: App) -> None:
    answer = ncr("submit", "4711", *ANN, "--row-id", "42")
    assert answer.code == 0
    [job] = app.look.jobs(Filter()).jobs
    record = app.look.record(job.task_id)
    assert record.args == {"job_id": "4711", "username": "ann", "campaign": "spring", "row_id": 42}
    assert answer.text.startswith("4711: stored; no worker is up; the job waits for one; task ")
    assert job.task_id in answer.text
    assert f"ncr job {job.task_id} --watch" in answer.error
    assert app.look.events(job.task_id)[0].actor.startswith("cli:")


def test_the_same_key_stores_nothing_twice(ncr: Ncr, app: App) -> None:
    first = ncr("submit", "4711", *ANN, "--key", "order-1", "--json").document
    again = ncr("submit", "4711", *ANN, "--key", "order-1", "--json").document
    assert again == first
    assert "4711: stored before; task" in ncr("submit", "4711", *ANN, "--key", "order-1").text
    other = ncr("submit", "4712", *ANN, "--key", "order-1")
    assert (other.code, other.text) == (1, "")
    assert "used for another request" in other.error
    assert known(app) == ["4711"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("submit", "../x", *ANN), "'../x': job_id: "),
        (("submit", "4711", "--user", "", "--campaign", "spring"), "'4711': username: "),
        (("submit", "4711", *ANN, "--row-id", "-1"), "'4711': row_id: "),
        (("plan", "../x"), "'../x': job_id: "),
        (("jobs", "--status", "nonsense"), "no job is ever 'nonsense'"),
        (("jobs", "--kind", "nonsense"), "kind 'nonsense' does not exist"),
        (("jobs", "--cursor", "x"), "cursor: "),
        (("batches", "--cursor", "x"), "cursor: "),
        (("job", "nobody"), "there is no job with the task_id or job_id nobody"),
        (("cancel", NOBODY), f"there is no job {NOBODY}"),
        (("retry", NOBODY), f"there is no job {NOBODY}"),
        (("cancel", "--batch", NOBODY), f"there is no batch {NOBODY}"),
        (("retry", "--batch", NOBODY), f"there is no batch {NOBODY}"),
    ],
)
def test_what_is_refused_is_told_in_one_line(ncr: Ncr, args: tuple[str, ...], said: str) -> None:
    answer = ncr(*args)
    assert (answer.code, answer.text) == (1, "")
    assert answer.error.startswith(f"ncr: {said}")
    assert answer.error.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [
        ("submit", "4711"),
        ("submit", "4711", *ANN, "--row-id", "x"),
        ("submit", "4711", *ANN, "--key", ""),
        ("submit", "4711", *ANN, "--key", "ä"),
        ("submit", "4711", *ANN, "--key", "x" * 201),
        ("batch", "nowhere.csv"),
        ("jobs", "--limit", "0"),
        ("jobs", "--since", "yesterday"),
        ("cancel",),
        ("retry", NOBODY, "--batch", NOBODY),
    ],
)
def test_wrong_usage_has_exit_code_2(ncr: Ncr, app: App, args: tuple[str, ...]) -> None:
    answer = ncr(*args)
    assert (answer.code, answer.text) == (2, "")
    assert "Error" in answer.error
    assert known(app) == []


def test_a_second_delivery_of_a_job_is_refused_naming_the_first(ncr: Ncr) -> None:
    task = submit(ncr, "4711")
    answer = ncr("submit", "4711", *ANN)
    assert answer.code == 1
    assert task in answer.error


# --- batch --------------------------------------------------------------------------------------------
def test_a_file_becomes_a_batch(ncr: Ncr, app: App, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("job_id,username,campaign,row_id\n1,ann,spring,\n2,ann,spring,7\n")
    answer = ncr("batch", "orders.csv", "--key", "monday")
    assert answer.code == 0
    [line] = app.look.batches().batches
    assert (line.total_jobs, line.user) == (2, "ann")
    assert line.batch_id in answer.text
    assert f"ncr jobs --batch {line.batch_id} --watch" in answer.error
    replayed = ncr("batch", "orders.csv", "--key", "monday", "--json").document
    assert [job["job_id"] for job in replayed["jobs"]] == ["1", "2"]
    assert replayed["batch_id"] == line.batch_id
    assert len(known(app)) == 2


@pytest.mark.parametrize(
    "content", [b"job_id,username,campaign\n1,ann,spring\n2,ann,\n", b'{"job_id": "1"}', b"[]", b"\xff\xfe"]
)
def test_of_a_file_with_a_wrong_line_nothing_is_stored(ncr: Ncr, app: App, content: bytes) -> None:
    answer = ncr("batch", "-", stdin=content)
    assert (answer.code, answer.text) == (1, "")
    assert "Nothing was stored" in answer.error
    assert known(app) == []


def test_a_batch_has_an_upper_limit(ncr: Ncr, app: App) -> None:
    many = "".join(f"{number},ann,spring\n" for number in range(ncr.settings.max_batch_jobs + 1))
    answer = ncr("batch", "-", stdin=f"job_id,username,campaign\n{many}".encode())
    assert answer.code == 1
    assert "MAX_BATCH_JOBS" in answer.error
    assert known(app) == []


# --- look ---------------------------------------------------------------------------------------------
def test_lists_are_filtered_and_paged(ncr: Ncr, app: App) -> None:
    together = batch(ncr, "1", "2", "3")
    failed = fail(app)
    submit(ncr, "4")
    assert ncr("jobs", "--json").document == json.loads(app.look.jobs(Filter()).model_dump_json())

    def listed(*filters: str) -> list[str]:
        return [job["job_id"] for job in ncr("jobs", *filters, "--json").document["jobs"]]

    assert listed("--batch", together) == ["3", "2", "1"]
    assert listed("--status", "failed", "--kind", "deliver", "--user", "ann") == ["1"]
    assert listed("--job-id", "4") == ["4"]
    assert listed("--user", "bob") == []
    assert listed("--since", "1h") == ["4", "3", "2", "1"]
    assert listed("--until", "1h") == listed("--since", "2100-01-01") == []
    page = ncr("jobs", "--limit", "3", "--json").document
    assert listed("--limit", "3", "--cursor", page["next_cursor"]) == ["1"]
    shown = ncr("jobs", "--limit", "3")
    assert f"--cursor {page['next_cursor']}" in shown.error
    whole = ncr("jobs").text
    assert failed in whole
    assert "s3_missing" in whole
    assert "there is no such job" in ncr("jobs", "--user", "bob").error


def test_batches_are_listed(ncr: Ncr, app: App) -> None:
    older, newer = batch(ncr, "1", "2"), batch(ncr, "3", user="bob")
    assert ncr("batches", "--json").document == json.loads(app.look.batches().model_dump_json())
    text = ncr("batches").text
    assert text.index(newer) < text.index(older)
    assert "2 queued" in text
    assert older not in ncr("batches", "--user", "bob").text
    assert f"--cursor {newer}" in ncr("batches", "--limit", "1").error
    assert "there is no such batch" in ncr("batches", "--user", "nobody").error


def test_a_job_is_found_by_either_id(ncr: Ncr, app: App) -> None:
    first = submit(ncr, "4711")
    fail(app)
    latest = submit(ncr, "4711")
    assert ncr("job", "4711", "--json").document["task_id"] == latest
    record = ncr("job", first, "--json").document
    answered = json.loads(app.look.record(first).model_dump_json())
    changing = {"timestamp"}
    assert {name: record[name] for name in answered.keys() - changing} == {
        name: answered[name] for name in answered.keys() - changing
    }
    text = ncr("job", first).text
    assert "status    failed" in text
    assert "error     s3_missing: no such key" in text


def test_the_audit_trail_is_shown_when_asked_for(ncr: Ncr, app: App) -> None:
    task = submit(ncr, "4711")
    fail(app)
    trail = ncr("job", task, "--audit", "--json").document["events"]
    assert trail == json.loads(app.look.audit(task).model_dump_json())["events"]
    assert ncr("job", task, "--json").document["events"] is None
    text = ncr("job", task, "--audit").text
    assert all(state in text for state in ("queued", "dispatched", "running", "failed"))


def test_what_others_wrote_does_not_steer_the_terminal(ncr: Ncr, app: App) -> None:
    task = submit(ncr, "4711")
    fail(app, "\x1b[2J\x07 gone [red]")
    for text in (ncr("job", task).text, ncr("jobs").text):
        assert "\x1b" not in text
        assert "\x07" not in text
    assert "gone [red]" in ncr("job", task).text


# --- cancel, retry ------------------------------------------------------------------------------------
def test_a_job_is_cancelled_and_retried(ncr: Ncr, app: App) -> None:
    task = submit(ncr, "4711")
    assert f"4711 is cancelled: task {task}" in ncr("cancel", task).text
    assert app.look.record(task).state == State.CANCELLED
    again = ncr("cancel", task)
    assert (again.code, "already ended" in again.error) == (1, True)
    record = ncr("retry", task, "--json").document
    assert (record["state"], record["round"]) == ("queued", 2)
    refused = ncr("retry", task)
    assert (refused.code, "only a job that failed" in refused.error) == (1, True)
    by_own_id = ncr("cancel", "4711")
    assert (by_own_id.code, task in by_own_id.error) == (1, True)
    start(app)
    assert "was asked to stop" in ncr("cancel", task).text
    assert app.look.record(task).state == State.CANCELLING


def test_of_a_batch_what_can_be_is_cancelled_and_retried(ncr: Ncr, app: App) -> None:
    together = batch(ncr, "1", "2", "3")
    failed = fail(app)
    answer = ncr("cancel", "--batch", together, "--json").document
    assert (answer["batch_id"], len(answer["cancelled"])) == (together, 2)
    assert ncr("cancel", "--batch", together).text.startswith("0 jobs")
    assert ncr("retry", "--batch", together, "--json").document["retried"] == [failed]
    fail(app)
    submit(ncr, "1")
    refused = ncr("retry", "--batch", together)
    assert (refused.code, failed in refused.error) == (1, True)


# --- pause, health ------------------------------------------------------------------------------------
def test_a_pause_refuses_jobs_until_it_ends(ncr: Ncr, app: App) -> None:
    assert "new jobs are refused until: ncr resume\n" in ncr("pause", "--note", "the bucket moves").text
    refused = ncr("submit", "4711", *ANN)
    assert refused.code == 1
    assert "the bucket moves" in refused.error
    assert "new jobs are taken in" in ncr("resume").text
    assert "it was not paused" in ncr("resume").text
    submit(ncr, "4711")


def test_paused_work_is_not_started(ncr: Ncr, app: App) -> None:
    [pause] = ncr("pause", "--work", "--json").document["pauses"]
    assert (pause["scope"], pause["actor"][:4]) == ("work", "cli:")
    task = submit(ncr, "4711")
    assert "nothing is started now" in ncr("job", task).text
    assert ncr("resume", "--work", "--json").document == {"pauses": []}
    assert start(app).job.id == task


def test_health_is_an_exit_code(ncr: Ncr, app: App, tmp_path: Path) -> None:
    degraded = ncr("health")
    assert (degraded.code, degraded.text) == (1, "degraded: database connected, Redis connected, 0 worker hosts up\n")
    assert "ncr worker" in degraded.error
    app.ledger.hosts.register(HOST, "life-1", FIGURES)
    healthy = ncr("health", "--json")
    assert (healthy.code, healthy.document["status"], healthy.document["workers"]) == (0, "healthy", 1)
    without_redis = ncr("health", redis_url=f"redis://127.0.0.1:{free_port()}/0")
    assert (without_redis.code, "REDIS_URL" in without_redis.error) == (1, True)
    empty = ncr("health", database_url=f"sqlite:///{tmp_path / 'empty.sqlite3'}")
    assert (empty.code, "ncr db upgrade" in empty.error) == (2, True)
    away = ncr("health", database_url="postgresql://u:hunter2@127.0.0.1:1/x")
    assert away.code == 2
    assert away.text.startswith("unhealthy: database disconnected")
    assert "hunter2" not in away.text + away.error


def test_without_redis_everything_but_live_figures_works(ncr: Ncr, app: App) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    answer = ncr("submit", "4711", *ANN, "--json", redis_url=nowhere)
    assert (answer.code, answer.error) == (0, "")
    assert ncr("job", answer.document["task_id"], redis_url=nowhere).error == ""


def test_without_tables_a_command_says_what_to_do(ncr: Ncr, tmp_path: Path) -> None:
    answer = ncr("jobs", database_url=f"sqlite:///{tmp_path / 'empty.sqlite3'}")
    assert (answer.code, answer.text) == (2, "")
    assert "Run: ncr db upgrade" in answer.error


def test_times_are_local_for_people_and_utc_in_json(ncr: Ncr, app: App) -> None:
    task = submit(ncr, "4711")
    at = app.look.record(task).created_at
    assert ncr("job", task, "--json").document["created_at"] == at.isoformat().replace("+00:00", "Z")
    assert f"submitted {at.astimezone():%Y-%m-%d %H:%M:%S}" in ncr("job", task).text
