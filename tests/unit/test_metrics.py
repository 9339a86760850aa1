"""What worker hosts count, in real forks; and how the API puts it together."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import Children, WorkerHost, pipeline, raising, soon, step, worker_host
from ledgers import alter
from prometheus_client import values
from scraped import families, figure

from ncr_worker.api.metrics import with_hosts
from ncr_worker.errors import Rejected
from ncr_worker.job import Reason
from ncr_worker.metrics import FOLDER, CountedWork, Metrics, Reports, forget_others, fresh_folder


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metrics]:
    """Of this process; prometheus_client is as before afterwards."""
    monkeypatch.setenv(FOLDER, "")
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    yield Metrics(fresh_folder(tmp_path / "metrics"), "main")
    values.close_all_multiprocess_files()  # type: ignore[no-untyped-call]


@pytest.fixture
def host(tmp_path: Path, metrics: Metrics) -> Iterator[WorkerHost]:
    with worker_host(tmp_path) as host:
        host.ledger.work = CountedWork(host.ledger.database, metrics)
        yield host


def test_nothing_is_lost_when_a_child_dies_and_another_takes_its_place(metrics: Metrics, children: Children) -> None:
    def count(process: str, times: int, *, die: bool = False) -> None:
        mine = Metrics(metrics.folder, process)
        for _ in range(times):
            mine.ended.labels("deliver", "succeeded", "").inc()
            mine.seconds.labels("deliver").observe(3)
        if die:
            os.kill(os.getpid(), signal.SIGKILL)

    other = children.start(lambda: count("child-2", 5))
    assert children.wait(children.start(lambda: count("child-1", 3, die=True))) == -signal.SIGKILL
    assert children.wait(children.start(lambda: count("child-1", 4))) == 0
    assert children.wait(other) == 0
    text = metrics.text()
    assert figure(text, "ncr_jobs_ended_total", kind="deliver", state="succeeded") == 12
    assert figure(text, "ncr_job_seconds_count") == figure(text, "ncr_job_seconds_bucket", le="5.0") == 12
    assert figure(text, "ncr_job_seconds_bucket", le="2.5") == 0
    assert len(list(metrics.folder.glob("counter_*.db"))) == 3, "a file for each place, not for each process"


def test_a_child_counts_whatever_its_parent_did_at_the_fork(metrics: Metrics, children: Children) -> None:
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            metrics.lost.labels("worker_lost").inc()

    thread = threading.Thread(target=count)
    thread.start()
    try:
        for _ in range(20):
            pid = children.start(lambda: Metrics(metrics.folder, "child-1").children.inc())
            assert children.wait(pid) == 0
    finally:
        stop.set()
        thread.join()
    assert figure(metrics.text(), "ncr_children_started_total") == 20


def test_a_job_that_succeeds(host: WorkerHost, metrics: Metrics) -> None:
    host.submit()
    host.run(pipeline(step("fetch"), step("pack")))
    text = metrics.text()
    assert figure(text, "ncr_jobs_ended_total", kind="tally", state="succeeded", code="") == 1
    assert figure(text, "ncr_job_seconds_count", kind="tally") == 1
    assert figure(text, "ncr_job_peak_bytes_count", kind="tally") == 1
    for stage in ("fetch", "pack"):
        assert figure(text, "ncr_stage_seconds_count", kind="tally", stage=stage) == 1


def test_a_job_that_comes_back_and_then_fails(host: WorkerHost, metrics: Metrics) -> None:
    job_id = host.submit(max_attempts=2)
    kind = pipeline(step("fetch"), step("pack", raising(soon(), Rejected("no", code="bad_zip")), attempts=1))
    host.run(kind)
    text = metrics.text()
    assert figure(text, "ncr_jobs_returned_total", kind="tally", reason="retry", code="s3_unavailable") == 1
    assert figure(text, "ncr_jobs_ended_total") == 0
    alter(host.ledger, job_id, next_run_at=0.0)
    host.run(kind)
    text = metrics.text()
    assert figure(text, "ncr_jobs_ended_total", kind="tally", state="failed", code="bad_zip") == 1
    assert figure(text, "ncr_stage_seconds_count", stage="fetch") == 1, "it was not done again"
    assert figure(text, "ncr_stage_seconds_count", stage="pack") == 0, "it was never completed"


def test_a_run_that_is_lost(host: WorkerHost, metrics: Metrics) -> None:
    host.submit()
    picked = host.pick()
    host.ledger.work.lost(picked.number, picked.token, "process 1 died")
    assert figure(metrics.text(), "ncr_runs_lost_total", reason=Reason.WORKER_LOST.value) == 1


def test_a_report_stays_with_its_host(host: WorkerHost) -> None:
    reports = Reports(host.ledger.database)
    assert reports.read() == {}
    reports.write("h1", "# nothing\n")
    reports.write("unknown", "# nothing\n")
    assert reports.read() == {"h1": "# nothing\n"}


def test_a_start_clears_what_earlier_workers_of_the_host_left(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    own = fresh_folder(tmp_path)
    (own / "counter_main.db").touch()
    assert (tmp_path / "1").exists(), "its worker may be alive"
    forget_others(own)
    assert list(tmp_path.iterdir()) == [own]
    assert list(fresh_folder(tmp_path).iterdir()) == []


def test_all_hosts_are_in_one_family(metrics: Metrics) -> None:
    metrics.lost.labels('the "child" died\\').inc(2)
    metrics.seconds.labels("deliver").observe(7)
    text = metrics.text()
    merged = {family.name: family for family in with_hosts({"a": text, 'b"\n': text})}
    assert {"ncr_runs_lost", "ncr_job_seconds", "ncr_children_started"} <= set(merged)
    found = {
        (sample.labels["host"], sample.labels["reason"], sample.value) for sample in merged["ncr_runs_lost"].samples
    }
    assert found == {("a", 'the "child" died\\', 2.0), ('b"\n', 'the "child" died\\', 2.0)}
    assert {"ncr_runs_lost_total", "ncr_job_seconds", "ncr_children_started_total"} <= families(text)
