"""Pipelined SFTP writes: all that was sent is there, refusals are told, and the channel is in order afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator

import paramiko
import pytest
from services import OpenSSH

from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.stores.pipelining import ANSWERS, PipelinedWrites

CONTENT = random.Random(1).randbytes(32_000)
MANY = 5 * ANSWERS + 1


@pytest.fixture(params=["sftp", "openssh"])
def server(request: pytest.FixtureRequest) -> SFTP | OpenSSH:
    server: SFTP | OpenSSH = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def client(server: SFTP | OpenSSH) -> Iterator[paramiko.SFTPClient]:
    with paramiko.SSHClient() as ssh:
        ssh.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        ssh.connect(
            "127.0.0.1",
            server.port,
            server.user_name,
            key_filename=str(server.key_path),
            allow_agent=False,
            look_for_keys=False,
        )
        with ssh.open_sftp() as client:
            yield client


def _write(writes: PipelinedWrites, times: int, error: Exception | None = None) -> None:
    with writes:
        for _ in range(times):
            writes.write(CONTENT)
        if error:
            raise error


def test_all_is_written_where_it_belongs(client: paramiko.SFTPClient, server: SFTP | OpenSSH) -> None:
    with client.open("many", "wb") as file:
        _write(PipelinedWrites(file, 0), MANY)
    with client.open("many", "r+b") as file, PipelinedWrites(file, MANY * len(CONTENT)) as writes:
        writes.write(b"end")
    assert (server.root / "many").read_bytes() == CONTENT * MANY + b"end"


def test_a_refusal_is_told_and_the_channel_goes_on(client: paramiko.SFTPClient) -> None:
    client.open("refused", "wb").close()
    with client.open("refused", "rb") as file, pytest.raises(OSError, match=r"."):
        _write(PipelinedWrites(file, 0), MANY)
    assert client.stat("refused").st_size == 0


def test_the_channel_is_in_order_after_an_error_of_ours(client: paramiko.SFTPClient) -> None:
    with client.open("stopped", "wb") as file, pytest.raises(ZeroDivisionError):
        _write(PipelinedWrites(file, 0), 10, ZeroDivisionError())
    assert client.stat("stopped").st_size == 10 * len(CONTENT)
