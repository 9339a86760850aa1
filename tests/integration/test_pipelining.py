"""Pipelined SFTP writes: all that was sent is there, refusals are told, and the channel is in order afterwards."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import paramiko
import pytest
from services import OpenSSH
from wilful import wilful_sftp

from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.settings import Settings
from ncr_worker.stores.packets import BatchPacketizer, BufferedSocket
from ncr_worker.stores.pipelining import ANSWERS, PipelinedWrites
from ncr_worker.stores.sftp import target

CONTENT = random.Random(1).randbytes(32_000)
MANY = 5 * ANSWERS + 1


@pytest.fixture(params=["sftp", "openssh"])
def server(request: pytest.FixtureRequest) -> SFTP | OpenSSH:
    server: SFTP | OpenSSH = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def client(server: SFTP | OpenSSH) -> Iterator[paramiko.SFTPClient]:
    with connected(server) as client:
        yield client


@contextmanager
def connected(server: SFTP | OpenSSH, **options: Any) -> Iterator[paramiko.SFTPClient]:
    sock = BufferedSocket(socket.create_connection(("127.0.0.1", server.port)))
    with paramiko.Transport(sock, packetizer_class=BatchPacketizer, **options) as transport:
        transport.connect(username=server.user_name, pkey=paramiko.PKey.from_path(server.key_path))
        client = paramiko.SFTPClient.from_transport(transport)
        assert client
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


@pytest.mark.parametrize("ciphers", [("aes128-gcm@openssh.com",), ("aes256-gcm@openssh.com",), ("aes256-ctr",)])
def test_every_cipher_brings_the_same(server: SFTP | OpenSSH, ciphers: Sequence[str]) -> None:
    others = [name for name in cast(Any, paramiko.Transport)._preferred_ciphers if name not in ciphers]
    with connected(server, disabled_algorithms={"ciphers": others}) as client:
        for length in (1, 15, 16, 17, 32_703, 32_704, 32_705, 255 * 1024):  # all paddings; more than a packet
            content = random.Random(length).randbytes(length)
            with client.open("any", "wb") as file, PipelinedWrites(file, 0) as writes:
                writes.write(content)
            assert (server.root / "any").read_bytes() == content


@pytest.mark.parametrize("window", [1, 21, 22, 40, 97])
def test_the_servers_window_may_end_anywhere(tmp_path: Path, window: int) -> None:
    (tmp_path / "content").write_bytes(CONTENT[:3_000])
    with wilful_sftp(tmp_path / "files", window) as server:
        connector = target(Settings.model_validate({name.lower(): value for name, value in server.env().items()}))
        connector.upload(tmp_path / "content", "any")
        connector.close()
    assert (tmp_path / "files/any").read_bytes() == CONTENT[:3_000]


def test_new_keys_come_in_between(server: SFTP | OpenSSH, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchPacketizer, "REKEY_BYTES", 100_000)
    with connected(server) as client:
        with client.open("rekeyed", "wb") as file:
            _write(PipelinedWrites(file, 0), 20 * MANY)
        transport = cast(Any, client.get_channel()).get_transport()
        first, now = transport.session_id, transport.H  # the hashes of the first and of the last exchange of keys
        assert now != first
    assert (server.root / "rekeyed").read_bytes() == CONTENT * MANY * 20
