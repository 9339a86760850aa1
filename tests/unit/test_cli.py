"""The command `ncr`: what it prints, how it ends."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from ncr_worker import __version__
from ncr_worker.cli import main
from ncr_worker.ledger import schema
from ncr_worker.settings import env_sample

PROJECT = Path(__file__).parents[2]
PANELS = {
    "Jobs": ("submit", "batch", "jobs", "job", "batches", "retry", "cancel", "pause", "resume", "plan"),
    "Services": ("api", "worker", "beat", "flower", "health", "memory"),
    "Try it out": ("sandbox", "demo"),
    "Setup": ("doctor", "settings", "version", "db"),
}
SLOW = ("celery", "fastapi", "sqlalchemy", "alembic", "boto3", "paramiko", "uvicorn", "redis", "rich.table")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without .env, and a ledger of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORK_FOLDER", str(tmp_path / "work"))
    for name in ("DATABASE_URL", "DB_HOST"):
        monkeypatch.delenv(name, raising=False)


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(args)
    return int(ended.value.code or 0)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("version") == 0
    assert capsys.readouterr().out == f"ncr_worker {__version__}\n"


def test_help_names_every_command_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    at = [text.index(f"─ {panel} ─") for panel in PANELS]
    assert at == sorted(at)
    for (panel, commands), begin, end in zip(PANELS.items(), at, [*at[1:], len(text)], strict=True):
        assert all(f"│ {command} " in text[begin:end] for command in commands), panel


@pytest.mark.parametrize("command", [(name,) for names in PANELS.values() for name in names if name != "db"])
def test_every_command_has_an_example(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command, "--help") == 0
    assert f"ncr {command[0]}" in capsys.readouterr().out.partition("Examples:")[2]


def test_the_shell_completes_commands() -> None:
    env = {"_NCR_COMPLETE": "complete_bash", "COMP_WORDS": "ncr bat", "COMP_CWORD": "1", "PATH": os.environ["PATH"]}
    code = "import sys; sys.argv[0] = 'ncr'; from ncr_worker.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert sorted(done.stdout.split()) == ["batch", "batches"]


def test_the_sample_is_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("settings", "--sample") == 0
    assert capsys.readouterr().out == env_sample()


def test_settings_are_shown_without_secrets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("SFTP_PASSWORD", "hunter2")
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://:hunter2@[::1]:1/0")
    assert run("settings") == 0
    text = capsys.readouterr().out
    assert "SFTP_PASSWORD" in text
    assert "@[::1]:1/0" in text, "brackets are not taken for markup"
    assert "hunter2" not in text
    assert run("settings", "--json") == 0
    text = capsys.readouterr().out
    assert json.loads(text)["API_PORT"] == 8001
    assert "hunter2" not in text


@pytest.mark.parametrize("command", [("settings", "--check"), ("worker",), ("api",), ("flower",), ("db", "upgrade")])
def test_a_wrong_setting_ends_every_command_with_one_clean_line(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_SIZE", "none")
    assert run(*command) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("ncr: BATCH_SIZE: ")
    assert output.err.count("\n") == 1


def test_valid_settings_pass_the_check() -> None:
    assert run("settings", "--check") == 0


def test_the_database_is_prepared_from_nothing_and_again(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run("db", "upgrade") == 0
        assert capsys.readouterr().out == f"the database is at revision {schema.head()}\n"


@pytest.mark.parametrize("command", ["api", "worker"])
def test_without_tables_nothing_starts(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command) == 2
    assert "Run: ncr db upgrade" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [("jobs",), ("retry", "x"), ("pause",), ("submit", "1", "--user", "a", "--campaign", "b")]
)
def test_in_a_process_of_its_own_too_a_command_says_what_is_missing(command: tuple[str, ...]) -> None:
    """In this process another test may have imported what a command forgets, or imports in a circle."""
    done = subprocess.run([sys.executable, "-m", "ncr_worker", *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ncr: DATABASE_URL: ")
    assert "Run: ncr db upgrade" in done.stderr


def test_a_database_that_is_away_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hunter2@127.0.0.1:1/x")
    assert run("db", "upgrade") == 1
    error = capsys.readouterr().err
    assert error.startswith("ncr: the database does not answer")
    assert error.count("\n") == 1
    assert "hunter2" not in error


def test_an_unknown_command_is_an_error_of_use() -> None:
    assert run("nonsense") == 2


def test_the_command_starts_quickly_because_it_imports_nothing_slow() -> None:
    code = f"import sys, ncr_worker.cli; print(*[name for name in {SLOW!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("script", "args", "said"), [("start_worker.py", ["--help"], "worker"), ("main.py", ["--help"], "--reload")]
)
def test_the_scripts_are_faces_of_the_command(
    script: str, args: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *args])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(PROJECT / script), run_name="__main__")
    assert not ended.value.code
    assert said in capsys.readouterr().out
