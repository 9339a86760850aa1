"""Which source of a setting wins, that secrets stay secret, and that errors say what to do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from ncr_worker.errors import ConfigError
from ncr_worker.settings import MASK, Settings, env_sample, load_settings, mask_passwords, settings_table

NAMES = {name.upper() for name in Settings.model_fields}
PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting comes from the machine that runs the tests."""
    for name in set(os.environ) & (NAMES | {f"{name}_FILE" for name in NAMES}):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("environment", "broker", "board"),
    [
        ({}, "redis://127.0.0.1:6380/0", "redis://127.0.0.1:6380/0"),
        ({"REDIS_HOST": "r", "REDIS_PORT": "1"}, "redis://r:1/0", "redis://r:1/0"),
        ({"REDIS_HOST": "r", "REDIS_URL": "redis://u/2"}, "redis://u/2", "redis://u/2"),
        (
            {"REDIS_HOST": "r", "REDIS_URL": "redis://u/2", "CELERY_BROKER_URL": "pyamqp://b//"},
            "pyamqp://b//",
            "redis://u/2",
        ),
    ],
)
def test_broker_and_board(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], broker: str, board: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.broker_url, settings.board_url) == (broker, board)


def test_database_url_wins_over_db_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_HOST", "db")
    assert load_settings().ledger_url.startswith("mysql+pymysql://root:@db:3306/csv_worker")
    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://pg/x")
    assert load_settings().ledger_url == "postgresql+psycopg://pg/x"


def test_without_a_database_the_ledger_is_sqlite_in_the_work_folder(tmp_path: Path) -> None:
    assert load_settings(work_folder=tmp_path).ledger_url == f"sqlite:///{tmp_path}/ncr.sqlite3"


@given(user=st.text(min_size=1), password=st.text(min_size=1))
def test_any_user_and_password_survive_in_the_url(user: str, password: str) -> None:
    settings = Settings(_env_file=None, db_host="db", db_user=user, db_pass=SecretStr(password))
    url = make_url(settings.ledger_url)
    assert (url.username, url.password, url.host) == (user, password, "db")


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_PORT", "")
    assert load_settings().api_port == 8001


def test_the_environment_wins_over_a_secret_file_and_that_over_dotenv(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path(".env").write_text("SFTP_PASSWORD=from-dotenv\n")
    assert load_settings().sftp_password.get_secret_value() == "from-dotenv"
    (tmp_path / "secret").write_text("from-file\n")
    monkeypatch.setenv("SFTP_PASSWORD_FILE", str(tmp_path / "secret"))
    assert load_settings().sftp_password.get_secret_value() == "from-file"
    monkeypatch.setenv("SFTP_PASSWORD", "from-environment")
    assert load_settings().sftp_password.get_secret_value() == "from-environment"


def test_a_secret_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_SECRET_ACCESS_KEY_FILE", "/nowhere/key")
    with pytest.raises(ConfigError, match=r"S3_SECRET_ACCESS_KEY_FILE: cannot read /nowhere/key"):
        load_settings()


def test_secrets_are_masked_wherever_settings_are_printed() -> None:
    settings = load_settings(
        validator_api_key=SecretStr("hush-1"),
        database_url="mysql+pymysql://ann:hush-2@db/x",
        redis_url="redis://:hush-3@r/0",
        celery_broker_url="pyamqp://bob:hush-4@b//",
    )
    assert "hush" not in f"{settings!r} {settings}"
    assert f"://ann:{MASK}@db/x" in repr(settings)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://r:6379/0", "redis://r:6379/0"),
        ("see http://h/a:b@c", "see http://h/a:b@c"),
        ("pyamqp://u:p@ss@b//", f"pyamqp://u:{MASK}@b//"),
        ('{"a": "redis://r:1", "b": "x@y"}', '{"a": "redis://r:1", "b": "x@y"}'),
        ("sftp://u:p@h1, sftp://u:q@h2", f"sftp://u:{MASK}@h1, sftp://u:{MASK}@h2"),
    ],
)
def test_only_the_passwords_of_urls_are_masked(text: str, masked: str) -> None:
    assert mask_passwords(text) == masked


def test_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "https://a.example, https://b.example,")
    assert load_settings().cors_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize(
    ("name", "value"),
    [("API_PORT", "many"), ("MAX_MEMORY_USAGE_PERCENT", "101"), ("BATCH_SIZE", "0"), ("LOG_LEVEL", "LOUD")],
)
def test_a_wrong_value_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"^{name}: .*env_sample") as caught:
        load_settings()
    assert caught.value.setting == name


def test_a_lease_must_outlive_some_heartbeats() -> None:
    with pytest.raises(ConfigError, match="HOST_LEASE"):
        load_settings(host_lease=20, host_heartbeat=10)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().api_port = 1  # type: ignore[misc]


def test_env_sample_is_current() -> None:
    assert (PROJECT / "env_sample").read_text() == env_sample(), "run: make lock"


def test_the_table_of_settings_is_current() -> None:
    assert (PROJECT / "docs" / "settings.md").read_text() == settings_table(), "run: make lock"


def test_the_table_of_settings_has_a_row_for_each() -> None:
    rows = [line for line in settings_table().splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows} == NAMES
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows)


def test_env_sample_names_every_setting_and_gives_its_default() -> None:
    uncommented = "".join(
        f"{line.removeprefix('#')}\n" for line in env_sample().splitlines() if not line.startswith("# ")
    )
    Path(".env").write_text(uncommented)
    assert {line.partition("=")[0] for line in uncommented.splitlines() if line} == NAMES
    assert load_settings() == Settings(_env_file=None)


def test_every_setting_says_what_it_means() -> None:
    assert all(field.description for field in Settings.model_fields.values())
