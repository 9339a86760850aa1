"""What the checks make of settings alone, and how they are run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from ncr_worker.checks import CHECKS, Check, Level, Process, examine, guard, rules
from ncr_worker.checks.finding import Finding, error, ok, warning
from ncr_worker.checks.host import filesystem, memory, work_folder
from ncr_worker.errors import ConfigError, Transient
from ncr_worker.settings import Settings

SAFE: dict[str, Any] = {
    "production": True,
    "auth": "keys",
    "api_keys": SecretStr("ops:a-long-key"),
    "database_url": "postgresql+psycopg://ncr:pw@db.example/ncr",
    "s3_endpoint_url": "https://s3.wasabisys.com",
    "s3_access_key_id": SecretStr("AKIA42"),
    "s3_secret_access_key": SecretStr("4711-4711"),
    "sftp_host": "sftp.example",
    "sftp_password": SecretStr("correct horse"),
    "sftp_host_keys": ("SHA256:abc",),
    "validator_url": "https://validator.example",
}
RULES = (rules.limits, rules.exposure, rules.credentials, rules.host_keys)


def settings_with(**changes: Any) -> Settings:
    return Settings(_env_file=None, **changes)


def found(settings: Settings) -> set[tuple[str, str]]:
    """(level, setting) of all that the rules say against these settings."""
    findings = [finding for rule in RULES for finding in rule(settings)]
    return {(str(each.level), each.setting) for each in findings if each.level is not Level.OK}


def test_the_defaults_do_not_contradict_each_other() -> None:
    assert found(settings_with()) == set()


def test_a_safe_production_system_has_nothing_against_it() -> None:
    assert found(settings_with(**SAFE)) == set()


@pytest.mark.parametrize(
    ("changes", "level", "setting"),
    [
        ({"validator_patience": 2, "validator_pause": 5}, "error", "VALIDATOR_PATIENCE"),
        ({"validator_patience": 200, "validator_timeout": 250}, "error", "VALIDATOR_PATIENCE"),
        ({"shutdown_grace": 60}, "warning", "SHUTDOWN_GRACE"),
        ({"host_lease": 20, "host_heartbeat": 6, "database_url": "mysql://db/x"}, "warning", "HOST_LEASE"),
        ({"batch_timeout": 100}, "warning", "BATCH_TIMEOUT"),
        ({"max_batch_jobs": 100, "max_backlog": 10}, "warning", "MAX_BATCH_JOBS"),
    ],
)
def test_contradictions(changes: dict[str, Any], level: str, setting: str) -> None:
    assert found(settings_with(**changes)) == {(level, setting)}


@pytest.mark.parametrize("changes", [{"validator_patience": 0}, {"host_lease": 20, "host_heartbeat": 6}])
def test_no_contradictions(changes: dict[str, Any]) -> None:
    assert found(settings_with(**changes)) == set()


@pytest.mark.parametrize(
    ("changes", "level", "setting"),
    [
        ({"auth": "off"}, "error", "AUTH"),
        ({"cors_origins": ("https://a.example", "*")}, "error", "CORS_ORIGINS"),
        ({"database_url": "sqlite:////data/ncr.sqlite3"}, "warning", "DATABASE_URL"),
        ({"database_url": "mysql+pymysql://root@db/ncr"}, "warning", "DATABASE_URL"),
        ({"database_url": "", "db_host": "db"}, "warning", "DB_PASS"),
        ({"s3_access_key_id": SecretStr("minioadmin")}, "error", "S3_ACCESS_KEY_ID"),
        ({"s3_secret_access_key": SecretStr("")}, "error", "S3_SECRET_ACCESS_KEY"),
        ({"s3_endpoint_url": "https://[::1]:8333"}, "error", "S3_ENDPOINT_URL"),
        ({"s3_endpoint_url": "http://s3.internal:9000"}, "warning", "S3_ENDPOINT_URL"),
        ({"sftp_password": SecretStr("")}, "error", "SFTP_PASSWORD"),
        ({"sftp_password": SecretStr("Password")}, "error", "SFTP_PASSWORD"),
        ({"sftp_host": "127.0.0.1"}, "error", "SFTP_HOST"),
        ({"sftp_host": "localhost"}, "error", "SFTP_HOST"),
        ({"validator_url": "http://validator.example"}, "warning", "VALIDATOR_URL"),
    ],
)
def test_what_production_mode_does_not_take(changes: dict[str, Any], level: str, setting: str) -> None:
    assert found(settings_with(**SAFE | changes)) == {(level, setting)}
    assert found(settings_with(**SAFE | changes | {"production": False})) == set(), "a developer may"


@pytest.mark.parametrize(
    "changes",
    [
        {"s3_endpoint_url": "", "s3_access_key_id": SecretStr(""), "s3_secret_access_key": SecretStr("")},
        {"sftp_password": SecretStr(""), "sftp_key_path": "/keys/sftp"},
        {"validator_url": "http://localhost:8080"},
    ],
    ids=["AWS by role", "SFTP by key", "validator beside us"],
)
def test_what_production_mode_takes(changes: dict[str, Any]) -> None:
    assert found(settings_with(**SAFE | changes)) == set()


@pytest.mark.parametrize("pins", [(), ("ssh-ed25519 AAAAC3Nza",), ("SHA256:abc", "MD5:00:11")])
def test_host_keys_must_be_pinned_in_any_mode(pins: tuple[str, ...]) -> None:
    settings = settings_with(sftp_host="sftp.example", sftp_port=2222, sftp_host_keys=pins)
    assert found(settings) == {("error", "SFTP_HOST_KEYS")}
    with pytest.raises(ConfigError, match=r"ssh-keyscan -p 2222 sftp\.example \| ssh-keygen -lf -"):
        guard(settings, Process.WORKER)


# --- this host ----------------------------------------------------------------------------------------
MOUNTS = """\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:20 / /dev/shm rw shared:2 - tmpfs tmpfs rw
23 21 0:21 / /data rw - xfs /dev/vdb rw
24 23 0:22 / /data/my\\040work rw - ramfs none rw
25 23 0:23 / /data/over rw - tmpfs none rw
26 25 0:24 / /data/over rw - ext4 /dev/vdc rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/ann/work", "ext4"),
        ("/dev/shm", "tmpfs"),
        ("/dev/shm/work", "tmpfs"),
        ("/dev/shmem", "ext4"),
        ("/data/work", "xfs"),
        ("/data/my work/jobs", "ramfs"),
        ("/data/over/jobs", "ext4"),
    ],
)
def test_the_file_system_of_a_folder(path: str, kind: str) -> None:
    assert filesystem(Path(path), MOUNTS) == kind


@given(st.text(), st.text())
def test_whatever_the_kernel_says_is_read(mounts: str, folder: str) -> None:
    assert isinstance(filesystem(Path("/") / folder.replace("\0", ""), mounts + MOUNTS), str)


def test_a_work_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    [finding] = work_folder(settings_with(work_folder=tmp_path / "file" / "work"))
    assert (finding.level, finding.setting) == (Level.ERROR, "WORK_FOLDER")


def test_memory_for_no_job_and_for_too_few() -> None:
    def wrong(mib: int) -> set[tuple[str, str]]:
        findings = memory(settings_with(host_memory_bytes=mib * 1024**2))
        return {(str(each.level), each.setting) for each in findings if each.level is not Level.OK}

    assert ("error", "MAX_MEMORY_USAGE_PERCENT") in wrong(16)
    assert wrong(200) == {("warning", "CELERY_WORKER_CONCURRENCY")}
    assert wrong(1024) == set()
    assert wrong(1 << 40) == {("warning", "HOST_MEMORY_BYTES")}


# --- how checks are run -------------------------------------------------------------------------------
def check(name: str, *findings: Finding | Exception, guards: frozenset[Process] = frozenset(Process)) -> Check:
    def look(_settings: Settings) -> Iterator[Finding]:
        for finding in findings:
            if isinstance(finding, Exception):
                raise finding
            yield finding

    return Check(name, look, f"SETTING_OF_{name}", guards)


WRONG = error("it", "is wrong", "NAME", "Mend it")


def test_a_check_that_fails_hides_neither_what_it_found_nor_the_others() -> None:
    checks = [
        check("a", ok("fine"), Transient("cut")),
        check("b", ValueError("odd")),
        check("c", ConfigError("NAME", "is wrong", "Mend it")),
        check("d", ok("fine")),
    ]
    findings = [(name, each.level, each.setting) for name, each in examine(settings_with(), checks)]
    assert findings == [
        ("a", Level.OK, ""),
        ("a", Level.ERROR, "SETTING_OF_a"),
        ("b", Level.ERROR, "SETTING_OF_b"),
        ("c", Level.ERROR, "NAME"),
        ("d", Level.OK, ""),
    ]


def test_a_check_without_an_answer_is_told_in_time() -> None:
    end = threading.Event()

    def hang(_settings: Settings) -> Iterator[Finding]:
        end.wait(60)
        yield ok("late")

    try:
        findings = dict(
            examine(settings_with(), [Check("slow", hang, "ADDRESS"), check("quick", ok("fine"))], patience=0.2)
        )
    finally:
        end.set()
    assert (findings["slow"].level, findings["slow"].setting) == (Level.ERROR, "ADDRESS")
    assert findings["quick"].level is Level.OK


def test_no_secret_is_in_a_finding() -> None:
    settings = settings_with(sftp_password=SecretStr("hush-1"), redis_url="redis://:hush-2@r/0")
    told = error("login hush-1", "hush-1 and redis://:hush-2@r/0", "NAME", "not hush-1")
    [(_, finding)] = examine(settings, [check("a", told)])
    assert "hush" not in str(finding)
    with pytest.raises(ConfigError) as refused:
        guard(settings, Process.API, [check("a", told)])
    assert "hush" not in str(refused.value)


def test_a_guard_names_setting_and_remedy() -> None:
    with pytest.raises(ConfigError, match=r"^NAME: is wrong\. Mend it$"):
        guard(settings_with(), Process.API, [check("a", WRONG)])


def test_a_guard_lets_pass_what_may_mend_itself_or_is_not_its_business() -> None:
    away = error("it", "does not answer", "ADDRESS", "Check it", away=True)
    others = check("b", WRONG, guards=frozenset({Process.WORKER}))
    checks = [check("a", away, ok("fine")), others, check("c", warning("it", "is odd", "ODD", "Look"))]
    assert guard(settings_with(), Process.API, checks) == ["ADDRESS: does not answer. Check it", "ODD: is odd. Look"]


def test_every_check_has_its_own_name_and_a_setting_that_exists() -> None:
    assert len({each.name for each in CHECKS}) == len(CHECKS)
    assert {each.setting.lower() for each in CHECKS} <= set(Settings.model_fields)
