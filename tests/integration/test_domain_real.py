"""The memory limit in memory groups of the kernel's own, and in containers. Needs root; see also unit/layouts."""

from __future__ import annotations

import io
import json
import os
import secrets
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from memory_group import MemoryGroup, NoMemoryGroup, memory_group
from services import ServerMissing, debian_binary

import ncr_worker
from ncr_worker.memory.domain import Reading
from ncr_worker.pipeline import GIB, MIB
from ncr_worker.sandbox.process import ServerFailed, ServerProcess

LIMIT = 192 * MIB
PROJECT = Path(ncr_worker.__file__).parents[1]
READER = """
import json, mmap, os, sys
from dataclasses import asdict
import psutil
from ncr_worker.memory.domain import Domain
domain, held = Domain(), []
print("up", flush=True)
for line in sys.stdin:
    what, size, path = json.loads(line)
    if what == "hold":
        held.append(b"x" * size)
    elif what == "share":
        held.append(mmap.mmap(-1, size))
        for _ in range(size >> 20):
            held[-1].write(bytes(1 << 20))
    elif what == "file":
        with open(path, "wb") as file:
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
    print(json.dumps([asdict(domain.read()), psutil.virtual_memory()._asdict()]), flush=True)
"""


@dataclass(frozen=True)
class Seen:
    """By one process at one moment. `psutil`: the fields of its virtual_memory()."""

    reading: Reading
    psutil: dict[str, Any]


class Reader:
    """A process that does as told, and says what it then sees."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.asks, self.answers = process.stdin, process.stdout
        assert self.answers.readline() == "up\n"

    def look(self, what: str = "", size: int = 0, path: Path = Path()) -> Seen:
        """After it did `what`: hold or share `size` bytes of memory, or write them to the file at `path`."""
        print(json.dumps([what, size, str(path)]), file=self.asks, flush=True)
        reading, virtual = json.loads(self.answers.readline())
        return Seen(Reading(**reading), virtual)


@contextmanager
def reader(command: Sequence[str]) -> Iterator[Reader]:
    """`command` starts Python with the arguments that follow it. It ends with the block."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield Reader(process)


def reader_in(group: MemoryGroup) -> AbstractContextManager[Reader]:
    return reader(group.inside([sys.executable, "-c", READER]))


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    try:
        with memory_group(LIMIT) as made:
            yield made
    except NoMemoryGroup as missing:
        pytest.skip(f"NOT TESTED: {missing}")


@contextmanager
def below(group: MemoryGroup, limit: int) -> Iterator[MemoryGroup]:
    """A group inside of `group`."""
    handed_down = group.folder / "cgroup.subtree_control"
    if handed_down.exists():
        handed_down.write_text("+memory")
    inner = type(group)(group.folder, limit)
    try:
        yield inner
    finally:
        inner.remove()


def test_the_limit_is_the_groups_where_psutil_sees_the_host(group: MemoryGroup) -> None:
    with reader_in(group) as process:
        seen = process.look()
    assert seen.reading.limit == LIMIT
    assert seen.reading.source.startswith("cgroup")
    assert 0 < seen.reading.anonymous < LIMIT
    assert seen.psutil["total"] == psutil.virtual_memory().total > LIMIT
    assert seen.psutil["available"] > LIMIT  # what psutil calls free here would be the death of the process


def test_a_file_larger_than_the_limit_is_no_use_of_memory(group: MemoryGroup, tmp_path: Path) -> None:
    with reader_in(group) as process:
        before = process.look().reading
        after = process.look("file", 2 * LIMIT, tmp_path / "large").reading
        assert abs(after.anonymous - before.anonymous) < 8 * MIB
    assert group.peak > 0.9 * LIMIT, "the group was not full of page cache: nothing was shown"
    assert group.kernel_kills == 0


@pytest.mark.parametrize("what", ["hold", "share"])
def test_memory_without_a_file_behind_it_counts(group: MemoryGroup, what: str) -> None:
    with reader_in(group) as process:
        before = process.look().reading
        after = process.look(what, 64 * MIB).reading
    assert after.anonymous - before.anonymous == pytest.approx(64 * MIB, abs=8 * MIB)


def test_a_tighter_group_above_counts_with_what_all_in_it_use(group: MemoryGroup) -> None:
    with below(group, GIB) as ours, below(group, GIB) as others, reader_in(ours) as us, reader_in(others) as them:
        before = us.look().reading
        assert before.limit == LIMIT
        them.look("hold", 64 * MIB)
        assert us.look().reading.anonymous - before.anonymous == pytest.approx(64 * MIB, abs=8 * MIB)


def test_what_others_took_of_a_wider_limit_above_is_missing_here(group: MemoryGroup) -> None:
    small = LIMIT - 32 * MIB
    with below(group, small) as ours, below(group, GIB) as others, reader_in(ours) as us, reader_in(others) as them:
        them.look("hold", 128 * MIB)
        seen = us.look().reading
    assert seen.limit == small
    assert seen.limit - seen.anonymous < LIMIT - 128 * MIB


class Docker(ServerProcess):
    """An engine of our own without a network, whose containers run the Python of this machine."""

    name = "dockerd"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.programs = [debian_binary("docker.io", name) for name in ("dockerd", "docker")]
        self.socket = f"unix://{self.folder}/docker.sock"
        self.groups = f"ncr-{secrets.token_hex(4)}"
        self.was_there = Path("/run/docker").exists()

    def command(self) -> Sequence[str]:
        places = [f"--data-root={self.folder}/data", f"--exec-root={self.folder}/run", f"--pidfile={self.folder}/pid"]
        network = ["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]
        return [self.programs[0], "--host", self.socket, f"--cgroup-parent=/{self.groups}", *places, *network]

    def client(self, *arguments: str) -> list[str]:
        return [self.programs[1], "--host", self.socket, *arguments]

    def ready(self) -> bool:
        return subprocess.run(self.client("version"), capture_output=True, check=False).returncode == 0

    def env(self) -> dict[str, str]:
        return {"DOCKER_HOST": self.socket}

    def clean_up(self) -> None:
        for left in [*Path("/sys/fs/cgroup").glob(f"*/{self.groups}"), Path("/sys/fs/cgroup") / self.groups]:
            with suppress(FileNotFoundError):
                left.rmdir()
        if not self.was_there:
            for left in (Path("/run/docker/plugins"), Path("/run/docker")):
                with suppress(FileNotFoundError):
                    left.rmdir()

    def import_empty_image(self, name: str) -> None:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            folder = tarfile.TarInfo("proc")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        subprocess.run(self.client("import", "-", name), input=archive.getvalue(), capture_output=True, check=True)

    def python(self, image: str, *options: str) -> list[str]:
        """The command that runs our Python in a new container, which is removed at its end."""
        shown = {"/usr", "/lib", "/lib64", sys.base_prefix, sys.prefix, str(PROJECT)}
        volumes = [f"--volume={path}:{path}:ro" for path in sorted(shown) if Path(path).exists()]
        environment = f"--env=PYTHONPATH={PROJECT}"
        alone = ["--rm", "--interactive", "--network=none", environment]
        return self.client("run", *alone, *volumes, *options, image, sys.executable, "-B")


@pytest.fixture(scope="module")
def docker() -> Iterator[Docker]:
    if os.geteuid():
        pytest.skip("NOT TESTED: a Docker engine can be started by root only")
    with tempfile.TemporaryDirectory(prefix="ncr-") as name:
        try:
            engine = Docker(Path(name))
            engine.start()
        except (ServerMissing, ServerFailed) as missing:
            pytest.skip(f"NOT TESTED: {missing}")
        try:
            engine.import_empty_image("empty:1")
            yield engine
        finally:
            engine.stop()


@pytest.mark.parametrize("namespace", ["host", "private"])
def test_in_a_container_the_limit_is_the_containers(docker: Docker, namespace: str) -> None:
    command = docker.python("empty:1", "--memory=300m", f"--cgroupns={namespace}")
    with reader([*command, "-c", READER]) as process:
        before = process.look()
        after = process.look("hold", 64 * MIB).reading
    assert before.reading.limit == 300 * MIB
    assert before.psutil["total"] == psutil.virtual_memory().total
    assert after.anonymous - before.reading.anonymous == pytest.approx(64 * MIB, abs=8 * MIB)
