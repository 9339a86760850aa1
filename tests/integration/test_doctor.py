"""`ncr doctor` on real servers: everything right, and each thing wrong in turn, which it names and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from services import MariaDB, RabbitMQ, SqlServer
from serving import migrated
from sqlalchemy import make_url, text

from ncr_worker.cli import main
from ncr_worker.sandbox.process import free_port
from ncr_worker.sandbox.s3 import S3
from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.sandbox.validator import Validator
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.sql import Database

NOWHERE = "SHA256:" + "A" * 43
MEMORY_FOLDER = Path("/dev/shm")


@dataclass
class Report:
    """`wrong`: (check, setting) of every error."""

    exit_code: int
    out: str
    level: str
    findings: list[dict[str, Any]]

    @property
    def wrong(self) -> set[tuple[str, str]]:
        return {(each["check"], each["setting"]) for each in self.findings if each["level"] == "error"}

    def of(self, check: str) -> str:
        """All that is said of it."""
        return json.dumps([each for each in self.findings if each["check"] == check])


@dataclass
class Clinic:
    """The settings of a system in which all is well, to be spoiled one by one."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    secrets: list[str] = field(default_factory=list)

    def doctor(self, **changes: str) -> Report:
        for name, value in changes.items():
            self.monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main(["doctor", "--json"])
        out = self.capsys.readouterr().out
        assert not [secret for secret in self.secrets if secret in out]
        return Report(int(ended.value.code or 0), out, **json.loads(out))


@pytest.fixture
def clinic(
    valkey: Valkey,
    s3: S3,
    sftp: SFTP,
    validator: Validator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Clinic]:
    monkeypatch.chdir(tmp_path)
    names = {name: value for server in (valkey, s3, sftp, validator) for name, value in server.env().items()}
    url = migrated(f"sqlite:///{tmp_path / 'ncr.sqlite3'}")
    for name, value in (names | {"DATABASE_URL": url, "WORK_FOLDER": str(tmp_path / "work")}).items():
        monkeypatch.setenv(name, value)
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CATALOG_URL", "SFTP_ROOT", "PRODUCTION"):
        monkeypatch.setenv(name, "")
    yield Clinic(monkeypatch, capsys, [s3.secret_key, sftp.password])
    assert list(sftp.root.glob(".ncr-doctor*")) == [], "nothing of the doctor stays"


@pytest.fixture(params=["mariadb", "postgresql"])
def server(request: pytest.FixtureRequest) -> SqlServer:
    found: SqlServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def ledger_url(server: SqlServer) -> Iterator[str]:
    url = server.create_database()
    yield url
    server.drop_database(url)


def test_all_is_well(clinic: Clinic, sftp: SFTP) -> None:
    report = clinic.doctor()
    assert (report.wrong, report.exit_code) == (set(), 0)
    assert sftp.fingerprint in report.of("sftp"), "to compare it with what the server's owner says"
    assert {"database", "redis", "s3", "validator", "sftp", "work folder", "memory"} <= {
        each["check"] for each in report.findings
    }


def test_all_is_well_with_every_kind_of_server(clinic: Clinic, ledger_url: str, rabbitmq: RabbitMQ) -> None:
    report = clinic.doctor(
        DATABASE_URL=migrated(ledger_url),
        CELERY_BROKER_URL=rabbitmq.url(),
        CELERY_RESULT_BACKEND=f"db+sqlite:///{Path.cwd() / 'results.sqlite3'}",
        CATALOG_URL=ledger_url,
        SFTP_PUBLISH="symlink",
    )
    assert (report.wrong, report.exit_code) == (set(), 0)
    assert "allowed by the server" in report.of("connections")
    assert "answers" in report.of("results")


def test_lines_for_people(clinic: Clinic) -> None:
    clinic.monkeypatch.setenv("S3_BUCKET", "nowhere")
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    lines = clinic.capsys.readouterr().out
    assert ended.value.code == 1
    assert "✗ s3" in lines
    assert "S3_BUCKET there is no such bucket" in lines
    assert "✓ sftp" in lines
    assert "1 error" in lines


# --- settings and host --------------------------------------------------------------------------------
def test_a_setting_that_is_not_valid(clinic: Clinic) -> None:
    report = clinic.doctor(BATCH_SIZE="none")
    assert (report.wrong, report.exit_code) == ({("settings", "BATCH_SIZE")}, 1)


def test_a_work_folder_in_memory(clinic: Clinic) -> None:
    folder = MEMORY_FOLDER / f"ncr-test-{free_port()}"
    if not MEMORY_FOLDER.is_dir():
        pytest.skip("NOT TESTED: no /dev/shm here")
    try:
        report = clinic.doctor(WORK_FOLDER=str(folder))
    finally:
        for each in (folder, *folder.rglob("*")):
            assert each.is_dir(), "the doctor leaves no files"
        for each in sorted(folder.rglob("*"), reverse=True):
            each.rmdir()
        with suppress(FileNotFoundError):
            folder.rmdir()
    assert report.wrong == {("work folder", "WORK_FOLDER")}
    assert "tmpfs" in report.of("work folder")


# --- database -----------------------------------------------------------------------------------------
def test_a_wrong_database_password(clinic: Clinic, ledger_url: str) -> None:
    wrong = make_url(migrated(ledger_url)).set(password="not-the-right-one").render_as_string(hide_password=False)
    clinic.secrets.append("not-the-right-one")
    report = clinic.doctor(DATABASE_URL=wrong)
    assert report.wrong == {("database", "DATABASE_URL")}
    assert "refuses the login" in report.of("database")


def test_a_database_by_parts_names_the_part(clinic: Clinic, mariadb: MariaDB) -> None:
    url = make_url(mariadb.create_database())
    migrated(url.render_as_string(hide_password=False))
    parts = {"DATABASE_URL": "", "DB_HOST": str(url.host), "DB_PORT": str(url.port), "DB_USER": str(url.username)}
    right = parts | {"DB_PASS": str(url.password), "DB_NAME": str(url.database)}
    assert clinic.doctor(**right).wrong == set()
    assert clinic.doctor(**right | {"DB_PASS": "wrong"}).wrong == {("database", "DB_PASS")}
    assert clinic.doctor(**right | {"DB_NAME": "nowhere"}).wrong == {("database", "DB_NAME")}
    assert clinic.doctor(**right | {"DB_PORT": str(free_port())}).wrong == {("database", "DB_HOST")}


def test_a_wrong_database_port(clinic: Clinic, ledger_url: str) -> None:
    wrong = make_url(ledger_url).set(port=free_port()).render_as_string(hide_password=False)
    report = clinic.doctor(DATABASE_URL=wrong)
    assert report.wrong == {("database", "DATABASE_URL")}
    assert "does not answer" in report.of("database")


def test_a_database_that_does_not_exist(clinic: Clinic, server: SqlServer) -> None:
    report = clinic.doctor(DATABASE_URL=server.url("nowhere"))
    assert report.wrong == {("database", "DATABASE_URL")}
    assert "has no such database" in report.of("database")


def test_missing_migrations(clinic: Clinic, ledger_url: str) -> None:
    report = clinic.doctor(DATABASE_URL=ledger_url)
    assert report.wrong == {("database", "DATABASE_URL")}
    assert "Run: ncr db upgrade" in report.of("database")


def test_too_few_connections(clinic: Clinic, mariadb: MariaDB) -> None:
    url = migrated(mariadb.create_database())
    with closing(Database(url)) as database:
        database.transact(lambda connection: connection.execute(text("SET GLOBAL max_connections = 20")))
        try:
            report = clinic.doctor(DATABASE_URL=url)
        finally:
            database.transact(lambda connection: connection.execute(text("SET GLOBAL max_connections = 300")))
    mariadb.drop_database(url)
    assert report.wrong == {("connections", "DB_POOL_SIZE")}
    assert "max_connections" in report.of("connections")


def test_a_catalog_without_its_tables(clinic: Clinic, tmp_path: Path) -> None:
    report = clinic.doctor(CATALOG_URL=f"sqlite:///{tmp_path / 'empty.sqlite3'}")
    assert report.wrong == {("catalog", "CATALOG_URL")}
    assert "job_files" in report.of("catalog")


# --- Redis and broker ---------------------------------------------------------------------------------
def test_a_redis_that_evicts(clinic: Clinic, valkey: Valkey) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            report = clinic.doctor()
            only_the_board = clinic.doctor(CELERY_BROKER_URL=f"redis://127.0.0.1:{free_port()}/0")
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert report.wrong == {("redis", "REDIS_URL")}
    assert "allkeys-lru" in report.of("redis")
    assert only_the_board.wrong == {("broker", "CELERY_BROKER_URL")}, "the board may be lost"


def test_a_redis_that_does_not_tell(clinic: Clinic, valkey: Valkey) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.acl_setuser(
            "curt", enabled=True, passwords=["+hush-hush"], keys=["*"], categories=["+@all"], commands=["-info"]
        )
        try:
            clinic.secrets.append("hush-hush")
            report = clinic.doctor(REDIS_URL=valkey.url.replace("//", "//curt:hush-hush@"))
            wrong = clinic.doctor(REDIS_URL=valkey.url.replace("//", "//curt:hush@"))
        finally:
            client.acl_deluser("curt")
    assert report.wrong == set()
    assert "does not tell whether it evicts" in report.of("redis")
    assert wrong.wrong == {("redis", "REDIS_URL")}
    assert "refuses the login" in wrong.of("redis")


def test_a_redis_that_is_down(clinic: Clinic) -> None:
    report = clinic.doctor(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    assert report.wrong == {("redis", "REDIS_URL")}


def test_wrong_brokers(clinic: Clinic, rabbitmq: RabbitMQ) -> None:
    for url in (
        f"pyamqp://guest:guest@127.0.0.1:{free_port()}//",
        rabbitmq.url().replace("guest:guest", "guest:not-this"),
        rabbitmq.url("nowhere"),
        "pigeon://post",
    ):
        report = clinic.doctor(CELERY_BROKER_URL=url)
        assert report.wrong == {("broker", "CELERY_BROKER_URL")}, url
        assert "not-this" not in report.out


def test_a_wrong_result_backend(clinic: Clinic) -> None:
    report = clinic.doctor(CELERY_RESULT_BACKEND=f"redis://127.0.0.1:{free_port()}/0")
    assert report.wrong == {("results", "CELERY_RESULT_BACKEND")}
    report = clinic.doctor(CELERY_RESULT_BACKEND="pigeon://post")
    assert report.wrong == {("results", "CELERY_RESULT_BACKEND")}


# --- services outside ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("S3_BUCKET", "nowhere"),
        ("S3_ACCESS_KEY_ID", "no-such-key"),
        ("S3_SECRET_ACCESS_KEY", "not-this-secret"),
        ("S3_ENDPOINT_URL", "http://127.0.0.1:9"),
    ],
)
def test_s3(clinic: Clinic, setting: str, value: str) -> None:
    report = clinic.doctor(**{setting: value})
    assert report.wrong == {("s3", setting)}
    assert "not-this-secret" not in report.out


def test_a_wrong_pin_shows_the_server_s_key(clinic: Clinic, sftp: SFTP) -> None:
    report = clinic.doctor(SFTP_HOST_KEYS=NOWHERE)
    assert report.wrong == {("sftp", "SFTP_HOST_KEYS")}
    assert sftp.fingerprint in report.of("sftp")


def test_without_pins_nothing_is_sent(clinic: Clinic) -> None:
    report = clinic.doctor(SFTP_HOST_KEYS="")
    assert report.wrong == {("host keys", "SFTP_HOST_KEYS"), ("sftp", "SFTP_HOST_KEYS")}
    assert "ssh-keyscan" in report.of("host keys")


def test_a_wrong_sftp_password(clinic: Clinic) -> None:
    report = clinic.doctor(SFTP_PASSWORD="not-this-password")
    assert report.wrong == {("sftp", "SFTP_USER")}
    assert "SFTP_PASSWORD" in report.of("sftp")
    assert "not-this-password" not in report.out


def test_an_sftp_root_that_is_not_there(clinic: Clinic) -> None:
    assert clinic.doctor(SFTP_ROOT="nowhere").wrong == {("sftp", "SFTP_ROOT")}


def test_an_sftp_root_that_cannot_be_written(clinic: Clinic, sftp: SFTP) -> None:
    (sftp.root / "letter.txt").write_text("dear")
    assert clinic.doctor(SFTP_ROOT="letter.txt").wrong == {("sftp", "SFTP_ROOT")}
    (sftp.root / "letter.txt").unlink()


def test_a_validator_that_is_down(clinic: Clinic) -> None:
    assert clinic.doctor(VALIDATOR_URL=f"http://127.0.0.1:{free_port()}").wrong == {("validator", "VALIDATOR_URL")}
