"""The SFTP target on paths that stall. (Deliveries as a whole are tested in test_deliver_*.py.)"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from proxy import proxy_to

from ncr_worker.errors import Transient
from ncr_worker.sandbox.sftp import SFTP
from ncr_worker.settings import Settings
from ncr_worker.stores.sftp import SftpTarget, target

SMALL_BUFFER = 8192


@pytest.fixture
def content(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(bytes(range(256)) * (8 << 12))
    return path


@contextlib.contextmanager
def connected(sftp: SFTP, **changes: Any) -> Iterator[SftpTarget]:
    names = {name.lower(): value for name, value in sftp.env().items()}
    opened = target(Settings.model_validate(names | {"sftp_timeout": 2} | changes))
    yield opened
    opened.close()


@contextlib.contextmanager
def path_that_stalls(port: int, after: int) -> Iterator[int]:
    """A port that leads to `port`, until `after` bytes were sent through it: then nothing is read any more."""
    with socket.socket() as listener, contextlib.ExitStack() as ends:
        # Almost nothing is held on the way, so the sender's socket is full before an SSH channel's window is.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def forward() -> None:
            near = ends.enter_context(listener.accept()[0])
            far = ends.enter_context(socket.create_connection(("127.0.0.1", port)))
            back = threading.Thread(target=_pass_on, args=(far, near))
            back.start()
            _pass_on(near, far, after)
            over.wait()
            for end in (near, far):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            back.join()

        over = threading.Event()
        thread = threading.Thread(target=forward)
        thread.start()
        yield listener.getsockname()[1]
        over.set()
        thread.join()


def _pass_on(source: socket.socket, sink: socket.socket, count: int = 1 << 60) -> None:
    with contextlib.suppress(OSError):
        while count > 0 and (chunk := source.recv(4096)):
            sink.sendall(chunk)
            count -= len(chunk)


def test_a_path_that_takes_no_more_is_cut_in_time(sftp: SFTP, content: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.create_connection

    def create(*where: Any, **options: Any) -> socket.socket:
        made = real(*where, **options)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        return made

    monkeypatch.setattr(socket, "create_connection", create)
    with path_that_stalls(sftp.port, after=1_000_000) as port, connected(sftp, sftp_port=port) as server:
        began = time.monotonic()
        with pytest.raises(Transient) as caught:
            server.upload(content, "full")
        assert caught.value.code == "sftp_cut"
        assert time.monotonic() - began < 10
    with connected(sftp) as server:
        before = server.sizes(".")["full"]
        assert 500_000 < before < content.stat().st_size
        told: list[int] = []
        server.upload(content, "full", told.append)
        assert told[0] == before  # it went on from there
    assert (sftp.root / "full").read_bytes() == content.read_bytes()


def test_a_server_that_does_not_answer_is_cut_in_time(sftp: SFTP) -> None:
    with proxy_to(sftp.port) as path, connected(sftp, sftp_port=path.port) as server:
        server.exists(".")
        path.stall_after = path.sent
        began = time.monotonic()
        with pytest.raises(Transient) as caught:
            server.exists(".")
        assert caught.value.code == "sftp_cut"
        assert time.monotonic() - began < 10
        path.stall_after = None
        assert server.exists(".")
        assert path.connections == 2
