"""Processes that must not start, as an operator starts them: they say why and end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import redis
from services import OpenSSH
from serving import migrated

from ncr_worker.checks import Process, guard
from ncr_worker.errors import ConfigError
from ncr_worker.sandbox.process import free_port
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import load_settings

NCR = (sys.executable, "-m", "ncr_worker")
CELERY = (sys.executable, "-m", "celery", "-A", "ncr_worker.worker", "worker", "--pool=solo")
UVICORN = (sys.executable, "-m", "uvicorn", "ncr_worker.api:app", "--port", str(free_port()))
IN_SANDBOX = {"SFTP_HOST": "127.0.0.1", "SFTP_HOST_KEYS": "SHA256:abc", "SFTP_PASSWORD": "not-a-default"}


@pytest.fixture
def env(valkey: Valkey, tmp_path: Path) -> dict[str, str]:
    """Settings with which everything would start."""
    return {
        **{name: "" for name in os.environ if name.startswith(("SFTP_", "S3_", "CELERY_", "DB_"))},
        "DATABASE_URL": migrated(f"sqlite:///{tmp_path / 'ncr.sqlite3'}"),
        "REDIS_URL": valkey.url,
        "WORK_FOLDER": str(tmp_path / "work"),
        "VALIDATOR_URL": "",
    }


def refused(command: Sequence[str], env: Mapping[str, str], folder: Path) -> str:
    """What a process says that ends by itself, and not well."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("process", "changes", "said"),
    [
        ("api", {"PRODUCTION": "true"}, "AUTH: is off"),
        ("api", {"DATABASE_URL": "sqlite:///new.sqlite3"}, "Run: ncr db upgrade"),
        ("worker", {"PRODUCTION": "true", **IN_SANDBOX}, "SFTP_HOST: 127.0.0.1 is this machine"),
        ("worker", {"SFTP_HOST": "sftp.example"}, "ssh-keyscan -p 22 sftp.example | ssh-keygen -lf -"),
        ("beat", {"VALIDATOR_PATIENCE": "1"}, "VALIDATOR_PATIENCE: 1 s end before"),
    ],
)
def test_a_command_ends_with_one_line(
    process: str, changes: dict[str, str], said: str, env: dict[str, str], tmp_path: Path
) -> None:
    output = refused([*NCR, process], env | changes, tmp_path)
    [line] = [line for line in output.splitlines() if "starting all the same" not in line]
    assert line.startswith("ncr: ")
    assert said in line


def test_other_ways_to_start_are_guarded_too(env: dict[str, str], tmp_path: Path) -> None:
    assert "SFTP_HOST_KEYS: is empty" in refused(CELERY, env | {"SFTP_HOST": "sftp.example"}, tmp_path)
    assert "AUTH: is off" in refused(UVICORN, env | {"PRODUCTION": "true"}, tmp_path)


@pytest.mark.parametrize("process", list(Process))
def test_no_process_starts_on_a_redis_that_evicts(
    process: Process, env: dict[str, str], valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    guard(load_settings(), process)
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("maxmemory-policy", "volatile-lru")
        try:
            with pytest.raises(ConfigError, match=r"REDIS_URL: .*volatile-lru.*Set maxmemory-policy noeviction"):
                guard(load_settings(), process)
        finally:
            client.config_set("maxmemory-policy", "noeviction")


def test_a_redis_that_is_down_is_no_reason_not_to_start(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (env | {"REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}).items():
        monkeypatch.setenv(name, value)
    notes = guard(load_settings(), Process.WORKER)
    assert any(note.startswith("REDIS_URL: does not answer") for note in notes)


def test_the_remedy_for_unknown_host_keys_gives_fingerprints_to_pin(openssh: OpenSSH) -> None:
    """On a real OpenSSH server, with its own tools."""
    with pytest.raises(ConfigError) as refused:
        guard(load_settings(sftp_host="127.0.0.1", sftp_port=openssh.port, sftp_host_keys=()), Process.WORKER)
    command = refused.value.remedy.partition("to compare: ")[2]
    shown = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True).stdout
    assert openssh.fingerprint in shown
