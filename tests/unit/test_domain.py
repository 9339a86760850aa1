"""The memory limit and what counts against it, read from small trees of kernel files."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from engine import eventually
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ncr_worker.memory import domain
from ncr_worker.memory.domain import Domain, Reading, descendants, is_ending, rss_anon, tree_anon
from ncr_worker.memory.groups import memory_groups
from ncr_worker.pipeline import GIB, MIB

MEMINFO = "MemTotal: 8388608 kB\nMemFree: 1 kB\nAnonPages: 1048576 kB\nShmem: 524288 kB\n"
HOST = Reading(8 * GIB, "host", 1536 * MIB)
V2 = "sys/fs/cgroup"
LAYOUTS = sorted((Path(__file__).parent / "layouts").glob("*.toml"))
NOBODY = 2**22 + 1  # the kernel's highest pid is below
EXIT = {"x86_64": 60, "aarch64": 93}  # the system call, by machine
Tree = Callable[..., Domain]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """`tree(cgroup_line, {path: text})`: a domain that reads these files only."""

    def make(groups: str | None = None, files: dict[str, str] | None = None, *, limit: int = 0) -> Domain:
        all_files = {"proc/meminfo": MEMINFO} | (files or {})
        if groups is not None:
            all_files["proc/self/cgroup"] = groups
        plant(tmp_path, all_files)
        return Domain(limit, tmp_path)

    return make


def group_v2(path: str, limit: str, anon: int = 0) -> dict[str, str]:
    return {f"{V2}/{path}/memory.max": f"{limit}\n", f"{V2}/{path}/memory.stat": f"anon {anon}\nfile 99999\n"}


def plant(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


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


@pytest.mark.parametrize("layout", LAYOUTS, ids=[layout.stem for layout in LAYOUTS])
def test_a_recorded_layout(layout: Path) -> None:
    recorded = tomllib.loads(layout.read_text())
    with tempfile.TemporaryDirectory(prefix="ncr-") as name:  # pytest's own folders are closed to other accounts
        Path(name).chmod(0o755)
        plant(Path(name), recorded["files"])
        for hidden in recorded.get("hidden", []):
            (Path(name) / hidden).chmod(0)
        with without_rights() if "hidden" in recorded else nullcontext():
            found = Domain(root=Path(name)).read()
    assert asdict(found) == {"pressure": None} | recorded["expected"]


@contextmanager
def without_rights() -> Iterator[None]:
    """Root may read everything: for a while we are nobody."""
    ours = os.geteuid()
    if ours == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(ours)


def test_without_groups_it_is_the_host(tree: Tree) -> None:
    assert tree().read() == HOST


def test_without_meminfo_there_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="MemTotal"):
        Domain(root=tmp_path).read()


def test_a_limit_above_the_host_is_no_limit(tree: Tree) -> None:
    assert tree("0::/app\n", group_v2("app", str(64 * GIB))).read() == HOST


def test_a_tighter_child_counts_before_its_ancestors(tree: Tree) -> None:
    files = group_v2("a/b", str(GIB), 1) | group_v2("a", str(4 * GIB), 2)
    assert tree("0::/a/b\n", files).read() == Reading(GIB, "cgroup v2", 1)


def test_a_limit_from_the_settings_wins_with_the_usage_of_the_tightest_group(tree: Tree) -> None:
    files = group_v2("app", str(2 * GIB), 100 * MIB)
    assert tree("0::/app\n", files, limit=7 * GIB).read() == Reading(7 * GIB, "setting", 100 * MIB)


def test_a_smaller_limit_from_the_settings_leaves_no_more_than_there_is(tree: Tree) -> None:
    files = group_v2("a/b", str(2 * GIB), 1) | group_v2("a", str(6 * GIB), 5 * GIB + 512 * MIB)
    assert tree("0::/a/b\n", files, limit=GIB).read() == Reading(GIB, "setting", 512 * MIB)


def test_a_smaller_limit_from_the_settings_has_the_same_usage(tree: Tree) -> None:
    assert tree("0::/app\n", group_v2("app", str(4 * GIB), 5), limit=GIB).read() == Reading(GIB, "setting", 5)


def test_limits_and_memberships_that_change_are_seen(tree: Tree, tmp_path: Path) -> None:
    reader = tree("0::/app\n", group_v2("app", str(2 * GIB)) | group_v2("other", str(3 * GIB)))
    assert reader.read().limit == 2 * GIB
    plant(tmp_path, group_v2("app", str(GIB), 5))
    assert reader.read() == Reading(GIB, "cgroup v2", 5)
    plant(tmp_path, {"proc/self/cgroup": "0::/other\n"})
    assert reader.read().limit == 3 * GIB


def test_a_group_that_is_removed_leaves_what_is_above(tree: Tree, tmp_path: Path) -> None:
    reader = tree("0::/a/b\n", group_v2("a/b", str(GIB)) | group_v2("a", str(2 * GIB)))
    assert reader.read().limit == GIB
    shutil.rmtree(tmp_path / V2 / "a/b")
    assert reader.read().limit == 2 * GIB


@pytest.mark.parametrize("groups", ["", "\n\n", "nonsense\n", "0:\n", "a:b:c\n", ":::\n"])
def test_malformed_lists_of_groups_leave_the_host(tree: Tree, groups: str) -> None:
    assert tree(groups).read() == HOST


@pytest.mark.parametrize("text", ["", "\n", "lots\n", "-1\n", "1e9\n", "12 34\n", "9" * 5000])
def test_a_malformed_limit_is_no_limit(tree: Tree, text: str) -> None:
    assert tree("0::/app\n", group_v2("app", text.removesuffix("\n"))).read() == HOST


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=30), st.text(max_size=60))
def test_no_content_of_kernel_files_raises(tree: Tree, groups: str, mounts: str, limit: str, stat: str) -> None:
    files = {f"{V2}/{name}": limit for name in ("memory.max", "memory.high", "memory.swap.current")}
    files |= {f"{V2}/memory.stat": f"{stat}\nanon {limit}\nshmem {stat}", f"{V2}/memory.pressure": stat}
    files |= {"proc/self/mountinfo": mounts, "proc/pressure/memory": f"some avg10={limit} "}
    assert 0 < tree(groups + "\n0::/\n", files).read().limit <= HOST.limit


@given(st.text("a/.\n:0memory,\x00") | st.text(), st.text())
def test_no_text_leads_out_of_the_mounts(membership: str, mountinfo: str) -> None:
    mounted = f"805 804 0:26 / /groups ro - cgroup2 cgroup rw\n{mountinfo}\n"
    _, folders = memory_groups(f"0::/{membership}", mounted, Path("/nowhere"))
    assert folders
    assert all(folder.is_relative_to("/nowhere") and ".." not in folder.parts for folder in folders)


def test_the_real_system_has_a_limit_and_uses_less() -> None:
    reading = Domain().read()
    assert 0 < reading.anonymous < reading.limit


def test_anonymous_memory_of_a_process_and_of_one_that_is_gone() -> None:
    before = rss_anon(os.getpid())
    block = bytearray(b"x" * (32 * MIB))
    assert rss_anon(os.getpid()) - before > 24 * MIB
    del block
    assert (rss_anon(NOBODY), tree_anon(NOBODY), descendants(NOBODY)) == (0, 0, [])


def test_what_lives_is_not_ending_and_neither_is_what_is_dead_or_gone() -> None:
    child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    try:
        assert not is_ending(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, but not buried
        assert not is_ending(child.pid)
    finally:
        child.communicate()
    assert not is_ending(child.pid)
    assert not is_ending(NOBODY)


def test_a_process_whose_first_thread_has_ended_before_the_others_is_ending() -> None:
    """As a killed one with threads: it is a zombie already, and its other threads hold its memory."""
    program = "import ctypes, os, threading; threading.Thread(target=os.read, args=(0, 1)).start();"
    program += f"ctypes.CDLL(None).syscall({EXIT[platform.machine()]}, 0)"  # of this thread alone
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    try:
        assert eventually(lambda: is_ending(child.pid))
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    finally:
        child.kill()
        child.communicate()
    assert not is_ending(child.pid)


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
    many = 1100  # more than fit on one page of the kernel's list, if their pids have four digits
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
