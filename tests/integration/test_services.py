"""Each server does real work, comes back after a crash with its data, and leaves nothing behind.

Servers are started here for these tests alone: the shared ones must stay up.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import TypeVar

import httpx2
import paramiko
import psutil
import pytest
import redis
from botocore.exceptions import ClientError
from kombu import Connection as BrokerConnection
from services import MariaDB, OpenSSH, PostgreSQL, RabbitMQ, ServerMissing, SqlServer, debian_binary
from sqlalchemy import NullPool, create_engine, inspect, text

from ncr_worker.sandbox.process import LOOPBACK, ServerFailed, ServerProcess, accepts, free_port
from ncr_worker.sandbox.s3 import S3
from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.sandbox.validator import Validator
from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings

S = TypeVar("S", bound=ServerProcess)
SERVERS: list[type[ServerProcess]] = [Valkey, S3, SFTP, Validator, MariaDB, PostgreSQL, RabbitMQ, OpenSSH]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Unlike tmp_path, one that the servers' own accounts can reach."""
    with tempfile.TemporaryDirectory(prefix="ncr-") as name:
        Path(name).chmod(0o711)
        yield Path(name) / "server"


def make(server: type[S], folder: Path) -> S:
    try:
        return server(folder)
    except ServerMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(f"NOT TESTED: {missing}")


def family(server: ServerProcess) -> list[psutil.Process]:
    leader = psutil.Process(server.pid)
    return [leader, *leader.children(recursive=True)]


def port_of(server: ServerProcess) -> int:
    return int(vars(server)["port"])


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return met


@pytest.mark.parametrize("kind", SERVERS, ids=lambda kind: kind.name)
def test_comes_back_after_a_crash_and_leaves_nothing_when_stopped(kind: type[ServerProcess], folder: Path) -> None:
    server = make(kind, folder)
    with server:
        port, first = port_of(server), family(server)
        server.kill()
        assert not accepts(port)
        assert not any(map(runs, first))
        server.start()
        assert port_of(server) == port
        assert accepts(port)
        second = family(server)
    assert not server.running
    assert not accepts(port)
    assert not any(map(runs, second))


@pytest.mark.parametrize("kind", SERVERS, ids=lambda kind: kind.name)
def test_settings_accept_what_env_gives(kind: type[ServerProcess], folder: Path) -> None:
    server = make(kind, folder)
    names = {name.upper() for name in Settings.model_fields}
    assert server.env()
    assert server.env().keys() <= names


def test_valkey_keeps_data_over_a_crash_and_never_evicts(folder: Path) -> None:
    with Valkey(folder) as server, redis.Redis.from_url(server.url, decode_responses=True) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        client.xadd("events", {"state": "queued"})
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        server.start()
        assert client.xlen("events") == 1


def test_s3_stores_objects_and_refuses_wrong_keys(s3: S3) -> None:
    client = s3.client()
    client.put_object(Bucket=s3.bucket, Key="7/CHAIR/a.png", Body=b"pixels")
    answer = client.get_object(Bucket=s3.bucket, Key="7/CHAIR/a.png")
    assert answer["Body"].read() == b"pixels"
    assert client.head_object(Bucket=s3.bucket, Key="7/CHAIR/a.png")["ContentLength"] == len(b"pixels")
    client.close()

    stranger = S3.client(_with_wrong_secret(s3))
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        stranger.get_object(Bucket=s3.bucket, Key="7/CHAIR/a.png")
    stranger.close()


def _with_wrong_secret(s3: S3) -> S3:
    copy = object.__new__(S3)
    copy.__dict__ = vars(s3) | {"secret_key": "wrong"}
    return copy


def sftp_session(server: SFTP | OpenSSH, **login: str) -> paramiko.Transport:
    transport = paramiko.Transport((LOOPBACK, server.port))
    transport.start_client(timeout=10)
    assert transport.get_remote_server_key().fingerprint == server.fingerprint
    if "password" in login:
        transport.auth_password(server.user_name, login["password"])
    else:
        transport.auth_publickey(server.user_name, paramiko.Ed25519Key.from_private_key_file(str(server.key_path)))
    return transport


def deliver_and_try_to_replace(server: SFTP | OpenSSH, transport: paramiko.Transport) -> None:
    with transport, paramiko.SFTPClient.from_transport(transport) or pytest.fail("no SFTP channel") as client:
        for name in ("staging", "target"):
            client.mkdir(name)
            with client.open(f"{name}/model.glb", "wb") as file:
                file.write(name.encode())
        assert (server.root / "target" / "model.glb").read_text() == "target"
        with pytest.raises(OSError, match=r"(?i)fail|exist"):
            client.rename("staging", "target")
        with pytest.raises(OSError, match=r"(?i)fail|exist"):
            client.rename("staging/model.glb", "target/model.glb")
        assert (server.root / "target" / "model.glb").read_text() == "target"
        client.rename("target", "backup")
        client.rename("staging", "target")
        assert (server.root / "target" / "model.glb").read_text() == "staging"


def test_sftp_never_replaces_on_rename(sftp: SFTP) -> None:
    deliver_and_try_to_replace(sftp, sftp_session(sftp, password=sftp.password))


def test_openssh_never_replaces_on_rename(openssh: OpenSSH) -> None:
    deliver_and_try_to_replace(openssh, sftp_session(openssh))


def test_sftp_lets_nobody_out_of_its_folder_nor_in_with_a_wrong_password(sftp: SFTP) -> None:
    with pytest.raises(paramiko.AuthenticationException):
        sftp_session(sftp, password="wrong")
    transport = sftp_session(sftp)
    with transport, paramiko.SFTPClient.from_transport(transport) or pytest.fail("no SFTP channel") as client:
        assert client.normalize("../../..") == "/"
        with pytest.raises(FileNotFoundError):
            client.stat("/etc/passwd")


def test_sftp_keeps_its_host_key_in_its_folder(folder: Path) -> None:
    assert SFTP(folder).fingerprint == SFTP(folder).fingerprint


def package(sku: str, model: bytes = b"glTF....", texture: int = 10) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{sku}/{sku}.glb", model)
        archive.writestr(f"{sku}/textures/wood.png", b"x" * texture)
    return buffer.getvalue()


def ask(validator: Validator, sku: str, content: bytes, key: str | None = None) -> httpx2.Response:
    return httpx2.post(
        f"{validator.url}/{sku}",
        files={"zip_file": (f"{sku}.zip", content)},
        headers={"x-bond-api-public-key": validator.api_key if key is None else key},
        timeout=20,
    )


@pytest.mark.parametrize(
    ("sku", "content", "result", "reason"),
    [
        ("CHAIR", package("CHAIR"), "Valid", ""),
        ("CHAIR", package("CHAIR", texture=5 * 1024 * 1024), "Warning", "wood.png"),
        ("CHAIR", package("TABLE"), "Invalid", "CHAIR.glb is missing"),
        ("CHAIR", package("CHAIR", model=b"<html>"), "Invalid", "not a binary glTF"),
        ("CHAIR", package("CHAIR").replace(b"glTF", b"GLTF"), "Invalid", "checksum is wrong"),
        ("CHAIR", package("CHAIR")[:-30], "Invalid", "cannot be read"),
        ("CHAIR", b"", "Invalid", "cannot be read"),
    ],
)
def test_validator_judges_the_zip(validator: Validator, sku: str, content: bytes, result: str, reason: str) -> None:
    answer = ask(validator, sku, content)
    assert answer.status_code == 200
    [verdict] = answer.json()["data"]
    assert verdict["result"] == result
    assert any(reason in line for line in verdict["reasons"]) or not reason


def test_validator_counts_files_and_calls(validator: Validator) -> None:
    assert ask(validator, "COUNTED", package("COUNTED")).json()["data"][0]["files"] == 2
    assert httpx2.get(f"{validator.url}/calls").json()["COUNTED"] == 1


def test_validator_refuses_a_wrong_key(validator: Validator) -> None:
    assert ask(validator, "CHAIR", package("CHAIR"), key="wrong").status_code == 401


def test_validator_is_flaky_down_or_slow_by_the_name_of_the_sku(validator: Validator) -> None:
    answers = [ask(validator, "A-flaky", package("A-flaky")) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert answers[0].headers["Retry-After"] == "1"
    assert {ask(validator, "A-down", b"").status_code for _ in range(4)} == {503}
    begin = time.monotonic()
    assert ask(validator, "A-slow", package("A-slow")).status_code == 200
    assert time.monotonic() - begin >= 3


@pytest.mark.parametrize("name", ["mariadb", "postgresql"])
def test_databases_are_fresh_and_survive_a_crash(name: str, request: pytest.FixtureRequest) -> None:
    server: SqlServer = request.getfixturevalue(name)
    url = server.create_database()
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE job (id INTEGER PRIMARY KEY, name VARCHAR(50))"))
        connection.execute(text("INSERT INTO job VALUES (1, 'Stühle')"))
    server.kill()
    server.start()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT name FROM job")).scalar_one() == "Stühle"
        server.drop_database(url)  # although a connection to it is open
        connection.invalidate()
    other = create_engine(server.create_database(), poolclass=NullPool)
    assert inspect(other).get_table_names() == []


def test_database_url_is_empty(database_url: str) -> None:
    engine = create_engine(database_url, poolclass=NullPool)
    assert inspect(engine).get_table_names() == []


def test_broker_url_carries_messages(broker_url: str) -> None:
    with BrokerConnection(broker_url) as connection, connection.SimpleQueue("jobs") as queue:
        with pytest.raises(Empty):
            queue.get(block=False)
        queue.put({"id": "7"})
        message = queue.get(timeout=10)
        assert message.payload == {"id": "7"}
        message.ack()


def test_a_server_that_ends_at_once_shows_the_end_of_its_log(folder: Path) -> None:
    class Broken(ServerProcess):
        name = "broken"

        def command(self) -> list[str]:
            return [sys.executable, "-c", "raise SystemExit('no such option: colour')"]

        def ready(self) -> bool:
            return False

        def env(self) -> dict[str, str]:
            return {}

    server = Broken(folder)
    with pytest.raises(ServerFailed, match=r"broken ended with status 1(?s:.*)no such option: colour"):
        server.start()
    assert not server.running


def test_a_missing_server_names_its_package() -> None:
    with pytest.raises(ServerMissing, match="apt-get install some-server"):
        debian_binary("some-server", "/nowhere/some-serverd")


def test_ports_are_never_given_twice() -> None:
    ports = [free_port(10_000) for _ in range(50)]
    assert len({*ports, *(port + 10_000 for port in ports)}) == 100


STARTER = """
import sys, time
from pathlib import Path
from queue import Empty
from ncr_worker.sandbox.valkey import Valkey
server = Valkey(Path(sys.argv[1]))
server.start()
print(server.pid, server.port, flush=True)
time.sleep(600)
"""


def test_a_server_dies_with_a_parent_that_is_killed(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER, str(folder)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, port = map(int, parent.stdout.readline().split())
        server = psutil.Process(pid)
        parent.send_signal(signal.SIGKILL)
    assert eventually(lambda: not runs(server))
    assert eventually(lambda: not accepts(port))
