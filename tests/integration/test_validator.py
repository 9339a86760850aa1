"""The validator's client against servers that misbehave in every way."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ncr_worker.errors import Cancelled, ConfigError, NcrError, Rejected, Transient
from ncr_worker.settings import Settings
from ncr_worker.stores import Progress, unwatched
from ncr_worker.validator import Validator, Verdict, retry_after

Answer = Callable[[socket.socket], None]


@pytest.fixture
def zip_file(tmp_path: Path) -> Path:
    path = tmp_path / "x.zip"
    path.write_bytes(b"z" * 3_000_000)
    return path


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def ask(
    listener: socket.socket, zip_file: Path, answer: Answer, *, seconds: float = 5, progress: Progress = unwatched
) -> Verdict:
    """One call while a thread accepts, reads the request when `answer` does, and answers."""
    settings = Settings(validator_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1/", validator_timeout=seconds)
    ended = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                answer(connection)
            except OSError:
                return
            ended.wait(seconds + 5)

    server = threading.Thread(target=serve)
    server.start()
    client = Validator(settings)
    try:
        return client.check("S KU/1", zip_file, progress)
    finally:
        ended.set()
        client.close()
        server.join()


def read_request(connection: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"--\r\n"):
        chunk = connection.recv(1 << 20)
        if not chunk:
            raise ConnectionError("the client went away")
        received += chunk
    return received


def saying(text: str, status: str = "200 OK", headers: str = "") -> Answer:
    def answer(connection: socket.socket) -> None:
        read_request(connection)
        body = text.encode()
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        connection.sendall(head.encode() + body)

    return answer


def test_the_request_is_as_agreed(listener: socket.socket, zip_file: Path) -> None:
    seen = []
    told: list[int] = []

    def answer(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        body = b'{"data": [{"result": "Warning", "reasons": ["big"]}], "more": 1}'
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    verdict = ask(listener, zip_file, answer, progress=told.append)
    assert verdict.passed
    assert verdict.reasons == ("big",)
    assert verdict.answer["more"] == 1
    head, _, body = seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/S%20KU%2F1 HTTP/1.1")
    assert b"x-bond-api-public-key" in head.lower()
    assert b'name="zip_file"' in body
    assert body.count(b"z" * 3_000_000) == 1
    assert sum(told) == 3_000_000


@pytest.mark.parametrize("place", ["result", "reasons"])
def test_half_a_character_in_an_answer_does_no_harm(listener: socket.socket, zip_file: Path, place: str) -> None:
    answer = {"data": [{"result": "Invalid", "reasons": "oak"} | {place: "\ud800 \0 oak", "\udfff": 1}]}
    verdict = ask(listener, zip_file, saying(json.dumps(answer)))
    assert not verdict.passed
    assert verdict.answer == {"data": [{"result": "Invalid", "reasons": "oak"} | {place: "? \0 oak", "?": 1}]}
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


@pytest.mark.parametrize(
    ("answer", "kind", "code", "retry_in"),
    [
        (saying("busy", "503 Busy", "Retry-After: 7\r\n"), Transient, "validator_unavailable", 7.0),
        (saying("slow down", "429 Too Many", "Retry-After: 2\r\n"), Transient, "validator_unavailable", 2.0),
        (saying("oops", "500 Oops"), Transient, "validator_unavailable", None),
        (saying("no", "401 No"), ConfigError, "validator_denied", None),
        (saying("what?", "404 What"), Rejected, "validator_refused", None),
        (saying("<html>"), Transient, "validator_garbage", None),
        (saying('{"data": []}'), Transient, "validator_garbage", None),
        (saying('{"data": [{"result": null}]}'), Transient, "validator_garbage", None),
        (saying("[]"), Transient, "validator_garbage", None),
        (saying('{"data": [{"result": "Valid", "score": NaN}]}'), Transient, "validator_garbage", None),
        (saying('{"data": [{"result": "Valid", "score": 1e999}]}'), Transient, "validator_garbage", None),
        (saying("[" * 100_000), Transient, "validator_garbage", None),
        (saying('{"data": [{"result": "Valid"}]}' + " " * 5_000_000), Transient, "validator_garbage", None),
        (lambda connection: connection.close(), Transient, "validator_unavailable", None),
        (saying('{"data"', headers="Content-Length: 99\r\n"), Transient, "validator_unavailable", None),
    ],
)
def test_answers_that_are_no_verdict(
    listener: socket.socket, zip_file: Path, answer: Answer, kind: type[NcrError], code: str, retry_in: float | None
) -> None:
    with pytest.raises(kind) as caught:
        ask(listener, zip_file, answer)
    assert caught.value.code == code
    assert getattr(caught.value, "retry_in", None) == retry_in


def dripping_head(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)  # the pace of the server is what is tested


def dripping_body(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.05)


def silent(connection: socket.socket) -> None:
    read_request(connection)


def deaf(_connection: socket.socket) -> None:
    """Never reads."""


@pytest.mark.parametrize("answer", [dripping_head, dripping_body, silent, deaf])
def test_one_deadline_holds_for_the_whole(listener: socket.socket, tmp_path: Path, answer: Answer) -> None:
    large = tmp_path / "large.zip"
    with large.open("wb") as sparse:
        sparse.truncate(64 << 20 if answer is deaf else 1000)
    began = time.monotonic()
    with pytest.raises(Transient, match="no whole answer within 1 s") as caught:
        ask(listener, large, answer, seconds=1)
    assert caught.value.code == "validator_unavailable"
    assert time.monotonic() - began < 3


def test_it_stops_when_asked(listener: socket.socket, zip_file: Path) -> None:
    def stop(_count: int) -> None:
        raise Cancelled("by test")

    with pytest.raises(Cancelled):
        ask(listener, zip_file, silent, progress=stop)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, None), ("", None), ("5", 5.0), ("99999999", 3600.0), ("soon", None), ("-3", None), ("nan", None),
     ("Thu, 01 Jan 1970 00:01:40 GMT", 60.0), ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0)],
)  # fmt: skip
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, now=lambda: 40.0) == seconds
