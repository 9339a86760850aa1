"""The memory limit and what counts against it, read from small trees of kernel files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncr_worker.memory import domain
from ncr_worker.memory.domain import Domain, Reading, descendants, rss_anon, tree_anon
from ncr_worker.pipeline import GIB, MIB

MEMINFO = "MemTotal: 8388608 kB\nMemFree: 1 kB\nAnonPages: 1048576 kB\nShmem: 524288 kB\n"
HOST = Reading(8 * GIB, "host", 1536 * MIB)
V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"
NOBODY = 2**22 + 1  # the kernel's highest pid is below
Tree = Callable[..., Domain]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """`tree(cgroup_line, {path: text})`: a domain that reads these files only."""

    def make(groups: str | None = None, files: dict[str, str] | None = None, *, limit: int = 0) -> Domain:
        all_files = {"proc/meminfo": MEMINFO} | (files or {})
        if groups is not None:
            all_files["proc/self/cgroup"] = groups
        for name, text in all_files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return Domain(limit, tmp_path)

    return make


def group_v2(path: str, limit: str, anon: int = 0) -> dict[str, str]:
    return {f"{V2}/{path}/memory.max": f"{limit}\n", f"{V2}/{path}/memory.stat": f"anon {anon}\nfile 99999\n"}


def group_v1(path: str, limit: int, rss: int = 0) -> dict[str, str]:
    stat = f"cache 99999\nrss 1\nhierarchical_memory_limit {limit}\ntotal_cache 5\ntotal_rss {rss}\n"
    return {f"{V1}/{path}/memory.limit_in_bytes": f"{limit}\n", f"{V1}/{path}/memory.stat": stat}


@contextmanager
def running(program: str) -> Iterator[tuple[int, int]]:
    """Python code that ends when its input is closed: its pid, and the number that it prints when it is ready."""
    command = [sys.executable, "-c", "import os, threading\n" + program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())


def family(size: int) -> AbstractContextManager[tuple[int, int]]:
    """Pids of a child and of its own child, which holds `size` bytes."""
    return running(f"""
pid = os.fork()
if not pid:
    block = bytearray(b"x" * {size})
    print(os.getpid(), flush=True)
    os.read(0, 1)
    os._exit(0)
os.read(0, 1)
os.waitpid(pid, 0)
""")


def test_without_groups_it_is_the_host(tree: Tree) -> None:
    assert tree().read() == HOST


def test_a_v2_limit_with_its_anonymous_memory(tree: Tree) -> None:
    files = group_v2("app", str(2 * GIB), 100 * MIB)
    assert tree("0::/app\n", files).read() == Reading(2 * GIB, "cgroup v2", 100 * MIB)


def test_a_v1_limit_with_the_memory_of_all_its_children(tree: Tree) -> None:
    lines = "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/init\n"
    assert tree(lines, group_v1("docker/abc", GIB, 7 * MIB)).read() == Reading(GIB, "cgroup v1", 7 * MIB)


def test_a_v1_controller_named_among_others(tree: Tree) -> None:
    assert tree("4:hugetlb,memory:/a\n", group_v1("a", GIB)).read().limit == GIB


def test_max_is_no_limit(tree: Tree) -> None:
    assert tree("0::/app\n", group_v2("app", "max", 5)).read() == HOST


def test_the_number_that_v1_writes_for_no_limit_is_no_limit(tree: Tree) -> None:
    assert tree("4:memory:/a\n", group_v1("a", 9223372036854771712)).read() == HOST


def test_a_limit_above_the_host_is_no_limit(tree: Tree) -> None:
    assert tree("0::/app\n", group_v2("app", str(64 * GIB))).read() == HOST


def test_a_tighter_ancestor_counts_with_its_own_usage(tree: Tree) -> None:
    files = group_v2("a/b/c", str(4 * GIB), 1) | group_v2("a/b", "max", 2) | group_v2("a", str(GIB), 3 * MIB)
    assert tree("0::/a/b/c\n", files).read() == Reading(GIB, "cgroup v2", 3 * MIB)


def test_a_tighter_child_counts_before_its_ancestors(tree: Tree) -> None:
    files = group_v2("a/b", str(GIB), 1) | group_v2("a", str(4 * GIB), 2)
    assert tree("0::/a/b\n", files).read() == Reading(GIB, "cgroup v2", 1)


def test_the_tightest_of_v1_and_v2_counts(tree: Tree) -> None:
    files = group_v1("a", 2 * GIB, 1) | group_v2("b", str(GIB), 2)
    assert tree("4:memory:/a\n0::/b\n", files).read() == Reading(GIB, "cgroup v2", 2)


def test_in_a_container_the_group_is_mounted_at_the_top(tree: Tree) -> None:
    files = {f"{V2}/memory.max": f"{GIB}\n", f"{V2}/memory.stat": "anon 9\n"}
    assert tree("0::/kubepods/pod7/abc\n", files).read() == Reading(GIB, "cgroup v2", 9)


def test_a_path_outside_the_own_namespace_ends_at_the_top(tree: Tree) -> None:
    files = {f"{V2}/memory.max": f"{GIB}\n", f"{V2}/memory.stat": "anon 9\n"}
    assert tree("0::/../../elsewhere\n", files).read().limit == GIB


def test_a_limit_without_statistics_counts_with_no_usage(tree: Tree) -> None:
    assert tree("0::/app\n", {f"{V2}/app/memory.max": f"{GIB}\n"}).read() == Reading(GIB, "cgroup v2", 0)


def test_a_group_without_a_limit_file_is_no_limit(tree: Tree) -> None:
    assert tree("0::/app\n", {f"{V2}/app/memory.stat": "anon 9\n"}).read() == HOST


def test_a_limit_from_the_settings_wins_with_the_usage_of_the_tightest_group(tree: Tree) -> None:
    files = group_v2("app", str(2 * GIB), 100 * MIB)
    assert tree("0::/app\n", files, limit=7 * GIB).read() == Reading(7 * GIB, "setting", 100 * MIB)


@pytest.mark.parametrize("groups", ["", "\n\n", "nonsense\n", "0:\n", "a:b:c\n", ":::\n"])
def test_malformed_lists_of_groups_leave_the_host(tree: Tree, groups: str) -> None:
    assert tree(groups).read() == HOST


@pytest.mark.parametrize("text", ["", "\n", "lots\n", "-1\n", "1e9\n", "12 34\n"])
def test_a_malformed_limit_is_no_limit(tree: Tree, text: str) -> None:
    assert tree("0::/app\n", group_v2("app", text.removesuffix("\n"))).read() == HOST


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.text(max_size=60), st.text(max_size=20), st.text(max_size=60))
def test_no_content_of_kernel_files_raises(tree: Tree, groups: str, limit: str, stat: str) -> None:
    files = {f"{V2}/memory.max": limit, f"{V2}/memory.stat": stat}
    assert 0 <= tree(groups + "\n0::/\n", files).read().limit <= HOST.limit


def test_the_real_system_has_a_limit_and_uses_less() -> None:
    reading = Domain().read()
    assert 0 < reading.anonymous < reading.limit


def test_anonymous_memory_of_a_process_and_of_one_that_is_gone() -> None:
    before = rss_anon(os.getpid())
    block = bytearray(b"x" * (32 * MIB))
    assert rss_anon(os.getpid()) - before > 24 * MIB
    del block
    assert (rss_anon(NOBODY), tree_anon(NOBODY), descendants(NOBODY)) == (0, 0, [])


def test_anonymous_memory_is_what_the_kernel_calls_so() -> None:
    with family(8 * MIB) as (child, _):
        status = Path(f"/proc/{child}/status").read_text()
        assert f"RssAnon:\t{rss_anon(child) // 1024:8} kB" in status


@pytest.mark.parametrize("listed", [True, False], ids=["kernel lists children", "kernel does not"])
def test_a_tree_counts_the_children_of_children(listed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert domain.CHILDREN_LISTED, "the kernel here has no /proc/PID/task/TID/children"
    monkeypatch.setattr(domain, "CHILDREN_LISTED", listed)
    with family(32 * MIB) as (child, grandchild):
        assert {child, grandchild} <= set(descendants(os.getpid()))
        assert descendants(child) == [grandchild]
        assert tree_anon(child) == rss_anon(child) + rss_anon(grandchild)
        assert rss_anon(grandchild) > 32 * MIB
    assert descendants(child) == []
    assert tree_anon(child) == 0


def test_children_are_found_whichever_thread_started_them_and_however_many() -> None:
    many = 700  # more than fit on one page of the kernel's list
    program = f"""
def start():
    for _ in range({many}):
        if not os.fork():
            os.read(0, 1)
            os._exit(0)
    print({many}, flush=True)
    os.read(0, 1)
threading.Thread(target=start).start()
"""
    with running(program) as (pid, _):
        assert len(descendants(pid)) == many
