"""The demo's parts: its catalog, its display, its verdict."""

from __future__ import annotations

import io
import signal
from collections.abc import Mapping, Sequence

import pytest
from rich.console import Console

from ncr_worker.pipelines.deliver.layout import load_layout
from ncr_worker.sandbox.demo import Outcome, judge
from ncr_worker.sandbox.display import HostLine, JobLine, Snapshot, display, render
from ncr_worker.sandbox.launcher import Stopped, stoppable
from ncr_worker.sandbox.process import signals_wait
from ncr_worker.sandbox.samples import INVALID, MB, VALID, WARNING, SampleJob, sample_jobs
from ncr_worker.settings import Settings

JOBS = sample_jobs(3)
AS_WANTED = {job.job_id: "completed" if job.delivered else "validation_failed" for job in JOBS}


# --- catalog ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("job", sample_jobs(24), ids=lambda job: job.sku)
def test_the_targets_written_down_are_those_of_the_layout(job: SampleJob) -> None:
    base = [file for file in job.files if file.base]
    placed = load_layout(Settings(layout_file="")).place(job.job_id, job.sku, [file.key for file in base])
    assert dict(placed.files) == {file.key: file.target for file in base if file.target}
    assert set(placed.left_out) == {file.key for file in base if not file.target}


def test_the_first_two_jobs_have_one_to_deliver_and_one_to_reject_and_many_have_all_kinds() -> None:
    assert [job.delivered for job in sample_jobs(2)] == [True, False]
    assert {job.verdict for job in sample_jobs(24)} == {VALID, WARNING, INVALID}
    assert not sample_jobs(2)[1].manifest()


def test_content_is_the_same_each_time_and_another_in_each_file() -> None:
    files = JOBS[0].files
    assert all(len(file.content()) == file.size for file in files)
    assert JOBS[0].manifest() == sample_jobs(1)[0].manifest()
    full = [file.content() for file in files if file.size]
    assert len(set(full)) == len(full)


def test_content_tells_when_chunks_are_in_a_wrong_order() -> None:
    content = JOBS[0].files[0].content()
    assert content[:MB] != content[MB : 2 * MB]


# --- verdict ------------------------------------------------------------------------------------------
def verdict(
    statuses: Mapping[str, str] | None = None, differences: Mapping[str, str] | None = None, left: Sequence[str] = ()
) -> Outcome:
    return judge(JOBS, {**AS_WANTED, **(statuses or {})}, differences or {}, left)


def test_all_as_planned_is_a_success() -> None:
    outcome = verdict()
    assert str(outcome) == "demo: delivered 2 of 3 jobs, rejected 1 as expected, 0 failed"
    assert outcome.exit_code == 0


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (verdict({JOBS[0].job_id: "failed"}), "delivered 1 of 3 jobs, rejected 1 as expected, 1 failed"),
        (verdict({JOBS[1].job_id: "completed"}), "delivered 2 of 3 jobs, rejected 0 as expected, 1 failed"),
        (verdict(None, {f"{JOBS[2].sku}/a.png": "x"}), "delivered 1 of 3 jobs, rejected 1 as expected, 1 failed"),
        (verdict(None, {JOBS[1].sku: "x"}), "delivered 2 of 3 jobs, rejected 0 as expected, 1 failed"),
        (verdict(None, {".S.ncr-new-1": "x"}), "delivered 2 of 3 jobs, rejected 1 as expected, 0 failed"),
        (verdict(left=["4711"]), "delivered 2 of 3 jobs, rejected 1 as expected, 0 failed"),
    ],
    ids=["failed", "not rejected", "wrong file", "rejected but there", "staging left", "work folder left"],
)
def test_anything_else_is_not(outcome: Outcome, line: str) -> None:
    assert str(outcome) == f"demo: {line}"
    assert outcome.exit_code == 1
    assert outcome.problems


# --- display ------------------------------------------------------------------------------------------
STATUSES = ["completed"] * 10 + ["validation_failed"] + ["processing", "uploading"] + ["pending"] * 12
LINES = [
    JobLine(str(number), f"SKU-{number}", 100, status, 50.0, "a text that is too long for most terminals" * 3)
    for number, status in enumerate(STATUSES)
]
SNAPSHOT = Snapshot(LINES, [HostLine("h1", 8 << 30, 1 << 30, 2 << 30, 1 << 30, 2, 4)], 12.0)


@pytest.mark.parametrize(("height", "width"), [(50, 200), (24, 80), (12, 60)])
def test_the_display_fits_the_terminal_and_shows_active_jobs_first(height: int, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, height=height, record=True)
    console.print(render(SNAPSHOT, height, width))
    lines = console.export_text().splitlines()
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "processing" in text
    assert "uploading" in text
    assert "memory h1" in text
    assert ("more: " in text) == (height < len(LINES))


def test_a_job_that_has_ended_counts_whole() -> None:
    assert SNAPSHOT.percentage == pytest.approx((11 * 100 + 14 * 50) / 25)
    assert not SNAPSHOT.over
    assert Snapshot(LINES[:11], [], 0).over


def test_without_a_terminal_plain_lines_tell_the_counts_and_the_memory() -> None:
    file = io.StringIO()
    with display(Console(file=file, width=40)) as shown:
        shown.show(SNAPSHOT)
        shown.show(SNAPSHOT)  # too soon for another line
        shown.show(Snapshot(LINES[:11], [], 15.0))
    assert file.getvalue().splitlines() == [
        "[ 12.0 s]  72 %: 12 pending, 1 processing, 1 uploading, 10 completed, 1 validation_failed",
        "          memory of h1: limit 8.0 GiB, others 1.0, reserved 2,048 MiB, in use 1,024, slots 2/4",
        "[ 15.0 s] 100 %: 10 completed, 1 validation_failed",
    ]


# --- signals ------------------------------------------------------------------------------------------
def test_a_signal_waits_until_a_started_process_has_its_owner() -> None:
    owned = []

    def start() -> None:
        with stoppable(), signals_wait():
            signal.raise_signal(signal.SIGTERM)
            owned.append("process")

    with pytest.raises(Stopped, match="SIGTERM"):
        start()
    assert owned == ["process"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
