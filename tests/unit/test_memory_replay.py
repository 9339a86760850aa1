"""benchmarks/memory_replay.py on small traces of the test's own."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import memory_replay
    import peers_memory
    from memory_trace import Task

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HEAD = ("kind", "input_bytes", "peak_bytes", "runtime_ms", "preset_bytes", "start_ms")
GB = 10**9
Row = tuple[str, int | None, int, int, int, int]


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in ("memory_replay", "peers_memory"):
        globals()[name] = importlib.import_module(name)


def written(path: Path, rows: Sequence[Row], head: Sequence[str] = HEAD) -> Path:
    text = io.StringIO()
    csv.writer(text).writerows([head, *rows])
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def mixture(count: int) -> list[Row]:
    dice = random.Random(3)
    rows: list[Row] = []
    for number in range(count):
        given = int(dice.lognormvariate(21, 0.7))
        rows.append(("align", given, int((2 * GB + 3 * given) * dice.uniform(0.97, 1.03)), 60_000, 60 * GB, number))
        rows.append(("index", None, int(GB * dice.uniform(0.97, 1.03)), 9_000, 8 * GB, number))
    return rows


def tasks(rows: Sequence[Row]) -> list[Task]:
    from memory_trace import Task

    return [
        Task(number, kind, given, peak, runtime / 1000, preset)
        for number, (kind, given, peak, runtime, preset, _) in enumerate(rows)
    ]


def replayed(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "memory_replay.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_last_line_tells_of_every_trace_and_every_sizer(tmp_path: Path) -> None:
    plain = written(tmp_path / "plain.csv", mixture(40))
    packed = written(tmp_path / "packed.csv.gz", mixture(40))
    done = replayed(plain, packed, "--host-memory", "128GB", "--slots", "32", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"plain", "packed"}
    ours, preset = found["plain"]["ours"], found["plain"]["preset"]
    assert set(found["plain"]) == {"ours", "preset", "p95", "max", "tovar"}
    assert set(ours) == {"waste_gbh", "failures", "tasks", "makespan_over_clairvoyant", "ms_per_prediction"}
    assert ours["tasks"] == 80
    assert ours["waste_gbh"] < preset["waste_gbh"] / 4
    assert 1.0 <= ours["makespan_over_clairvoyant"] < preset["makespan_over_clairvoyant"]
    without_times = [{**each, "ms_per_prediction": 0} for each in (ours, found["packed"]["ours"])]
    assert without_times[0] == without_times[1]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (("", 1, 1, 1, 1, 1), "line 3: kind is empty"),
        (("k", "much", 1, 1, 1, 1), "line 3: input_bytes is 'much'"),
        (("k", 1, -1, 1, 1, 1), "line 3: peak_bytes is -1"),
        (("k", 1, 1, "nan", 1, 1), "line 3: runtime_ms is nan"),
        (("k", 1, 1, 1), "line 3: preset_bytes is None"),
        (("k" * 200_000, 1, 1, 1, 1, 1), ": field larger than field limit"),
    ],
)
def test_a_row_that_cannot_be_replayed_is_named(tmp_path: Path, row: Row, told: str) -> None:
    done = replayed(written(tmp_path / "bad.csv", [*mixture(1)[:1], row]))
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_column_or_file_is_named(tmp_path: Path) -> None:
    done = replayed(written(tmp_path / "bad.csv", [], ("kind", "peak_bytes")))
    assert "no column input_bytes, runtime_ms, preset_bytes" in done.stderr
    assert "cannot be read" in replayed(tmp_path / "none.csv").stderr
    (tmp_path / "broken.csv.gz").write_bytes(b"\x1f\x8bkind")
    assert "cannot be read" in replayed(tmp_path / "broken.csv.gz").stderr


def test_what_is_packed_is_told_by_its_first_bytes_and_by_an_error(tmp_path: Path) -> None:
    good = written(tmp_path / "good.csv.gz", mixture(20)).read_bytes()
    (tmp_path / "LOUD.CSV.GZ").write_bytes(good)
    done = replayed(tmp_path / "LOUD.CSV.GZ", "--json")
    assert set(json.loads(done.stdout.splitlines()[-1])) == {"LOUD"}
    (tmp_path / "bad.csv.gz").write_bytes(good[:40] + b"\xff\xff\xff" + good[43:])
    bad = replayed(tmp_path / "bad.csv.gz")
    assert "bad.csv.gz: cannot be read" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_a_task_that_no_host_could_run_is_left_out_and_counted(tmp_path: Path) -> None:
    done = replayed(written(tmp_path / "t.csv", [*mixture(2), ("k", 1, 200 * GB, 1, 1, 1)]), "--json")
    assert "t: 1 tasks are left out: they needed more than the host has" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["t"]["ours"]["tasks"] == 4


def test_a_peak_nobody_saw_is_the_least_and_no_preset_the_whole_host(tmp_path: Path) -> None:
    from memory_trace import read

    rows: list[Row] = [("k", 1, 0, 1, 0, 1), ("k", 1, 5, 1, "", 1)]  # type: ignore[list-item]
    unseen, unasked = read(written(tmp_path / "t.csv", rows), 128 * GB).tasks
    assert (unseen.peak, unseen.preset) == (1, 128 * GB)
    assert (unasked.peak, unasked.preset) == (5, 128 * GB)


def test_two_files_of_one_name_are_both_told_of(tmp_path: Path) -> None:
    for folder, count in (("a", 2), ("b", 3)):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder / "t.csv", mixture(count))
    found = json.loads(replayed(tmp_path / "a/t.csv", tmp_path / "b/t.csv", "--json").stdout.splitlines()[-1])
    assert {name: each["ours"]["tasks"] for name, each in found.items()} == {"t": 4, "t-2": 6}


def test_columns_go_by_name_in_any_order(tmp_path: Path) -> None:
    order = [3, 5, 0, 2, 1, 4]
    rows = [tuple(row[index] for index in order) for row in mixture(3)]
    done = replayed(written(tmp_path / "t.csv", rows, [HEAD[index] for index in order]), "--json")  # type: ignore[arg-type]
    assert json.loads(done.stdout.splitlines()[-1])["t"]["ours"]["tasks"] == 6


@pytest.mark.parametrize("text", ["", "much", "0GB", "-1GB"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    done = replayed("t.csv", f"--host-memory={text}")
    assert done.returncode == 2
    assert "is no size" in done.stderr


def test_sizes_are_decimal_or_binary_as_they_say() -> None:
    assert memory_replay.size("128GB") == 128 * GB
    assert memory_replay.size("1.5 GiB") == 3 << 29
    assert memory_replay.size("77") == 77


def test_a_failed_attempt_costs_all_it_had() -> None:
    rows: list[Row] = [("k", None, 2 * GB, 3_600_000, GB, 0)]
    found = memory_replay.waste(tasks(rows), peers_memory.Preset(), 128 * GB)
    assert found.failures == 1
    assert found.gbh == pytest.approx(1.0)  # the first attempt; twice as much is just enough


def test_a_clairvoyant_host_is_never_overfull_and_wastes_nothing() -> None:
    rows = mixture(60)
    machine = memory_replay.Machine(64 * GB, 8, overtake_limit=20)
    packing = memory_replay.Packing(tasks(rows), peers_memory.Clairvoyant(), machine)
    makespan = packing.run()
    assert packing.failures == 0
    assert makespan >= memory_replay.bound(tasks(rows), machine)
    assert memory_replay.waste(tasks(rows), peers_memory.Clairvoyant(), machine.memory).gbh == 0


def test_tasks_run_side_by_side_as_far_as_memory_and_slots_go() -> None:
    rows: list[Row] = [("k", None, GB, 10_000, GB, number) for number in range(6)]
    for memory, slots, seconds in ((6 * GB, 6, 10), (2 * GB, 6, 30), (6 * GB, 3, 20)):
        machine = memory_replay.Machine(memory, slots, overtake_limit=20)
        assert memory_replay.Packing(tasks(rows), peers_memory.Clairvoyant(), machine).run() == seconds


def test_what_failed_comes_back_with_more() -> None:
    rows: list[Row] = [("k", None, 3 * GB, 10_000, GB, 0)]
    packing = memory_replay.Packing(tasks(rows), peers_memory.Preset(), memory_replay.Machine(8 * GB, 2, 20))
    assert packing.run() == 30
    assert packing.failures == 2


def test_peers_are_what_they_are_called() -> None:
    seen = tasks([("k", None, peak * GB, 1000, 9 * GB, 0) for peak in (1, 1, 1, 4)])
    largest, middle, tovar = peers_memory.Percentile(1.0), peers_memory.Percentile(0.5), peers_memory.Tovar()
    for sizer in (largest, middle, tovar):
        assert sizer.need(seen[0]) == 9 * GB
        for task in seen:
            sizer.learn(task)
    assert largest.need(seen[0]) == 4 * GB
    assert middle.need(seen[0]) == GB
    assert tovar.need(seen[0]) == GB  # 4 x 1 + 4 for the one that fails, rather than 4 x 4
    assert [tovar.need(seen[0], GB), tovar.need(seen[0], 4 * GB)] == [4 * GB, 8 * GB]
