"""Client of the external validator: `POST {VALIDATOR_URL}/{sku}`, multipart field `zip_file`, API key header."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from io import FileIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ConfigDict

from ncr_worker.errors import ConfigError, Rejected, StageError, Transient
from ncr_worker.outage import Gate
from ncr_worker.settings import Settings
from ncr_worker.sql import storable
from ncr_worker.stores import Progress, unwatched

PASSING = ("Valid", "Warning")
UNAVAILABLE = "validator_unavailable"
"""Code of all errors that say nothing about the zip: the validator did not answer, or said `not now`."""
LARGEST_ANSWER = 4 * 1024 * 1024
CONNECT_TIMEOUT = 10.0
PIECE = 256 * 1024
"""Bytes of the zip that are sent before the next look whether the job is to stop."""


class Verdict(BaseModel):
    """`result` is the validator's own word; `answer` is all that it said."""

    model_config = ConfigDict(frozen=True)

    result: str
    answer: dict[str, Any]

    @property
    def passed(self) -> bool:
        return self.result in PASSING

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why, in the validator's words, as far as it told."""
        found = self.answer["data"][0]
        for name in ("reasons", "errors", "messages", "message", "detail"):
            if said := found.get(name):
                return tuple(map(str, said)) if isinstance(said, list) else (str(said),)
        return ()


def validator(settings: Settings) -> Validator:
    """The validator of this process. Raises ConfigError."""
    if not settings.validator_url:
        raise ConfigError("VALIDATOR_URL", "is empty", "Set the address of the validator")
    return Validator(settings)


def gate(settings: Settings) -> Gate:
    """Holds this host's jobs back while the validator is down."""
    return Gate(
        settings.work_folder.absolute() / f"validator-{settings.host}.json",
        "validator",
        pause=settings.validator_pause,
        patience=settings.validator_patience,
        longest_call=2 * settings.validator_timeout,
    )


class Validator:
    """Safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.validator_url.rstrip("/")
        self._seconds = settings.validator_timeout
        # No connection is kept: a deadline ends one by cutting it, and there is one call for each job.
        self._client = httpx2.Client(
            headers={settings.validator_api_key_header: settings.validator_api_key.get_secret_value()},
            timeout=httpx2.Timeout(self._seconds, connect=min(CONNECT_TIMEOUT, self._seconds)),
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    def check(self, sku: str, zip_file: Path, progress: Progress = unwatched) -> Verdict:
        """Send the zip, streamed from disk; the verdict, whether good or bad.

        Raises Transient `validator_unavailable` (5xx, 429, cut, no whole answer within VALIDATOR_TIMEOUT) or
        `validator_garbage`, Rejected `validator_refused` (another 4xx), ConfigError `validator_denied`.
        """
        with _Watched(zip_file, progress) as content, _deadline(self._seconds) as deadline:
            files = {"zip_file": (f"{sku}.zip", content, "application/zip")}
            url = f"{self._url}/{quote(sku, safe='')}"
            try:
                with self._client.stream(
                    "POST",
                    url,
                    files=files,
                    extensions={"trace": deadline.trace},
                ) as answer:
                    body = b"".join(_limited(answer))
            except httpx2.HTTPError as error:
                why = f"no whole answer within {self._seconds:g} s" if deadline.passed else str(error)
                raise Transient(f"validator: {why}", code=UNAVAILABLE) from error
        if answer.status_code != httpx2.codes.OK:
            raise _refusal(answer, body)
        return _verdict(body)

    def close(self) -> None:
        self._client.close()


class _Watched(FileIO):
    """A file whose reads are counted. They are larger than asked for: httpx takes 64 KiB at once, and long for each."""

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__(path)
        self._progress = progress

    def read(self, size: int | None = -1) -> bytes:
        chunk = super().read(-1 if size is None else max(size, PIECE))
        self._progress(len(chunk))
        return chunk


class _Deadline:
    """Cuts the connection when the time is over: timeouts of the client begin anew with every byte received."""

    def __init__(self) -> None:
        self.passed = False
        self._socket: socket.socket | None = None
        self._lock = threading.RLock()

    def trace(self, event: str, info: dict[str, Any]) -> None:
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
            if self.passed:
                self.end()

    def end(self) -> None:
        with self._lock:
            self.passed = True
            if self._socket is not None:
                try:
                    self._socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    return  # closed already


@contextmanager
def _deadline(seconds: float) -> Iterator[_Deadline]:
    deadline = _Deadline()
    timer = threading.Timer(seconds, deadline.end)
    timer.daemon = True
    timer.start()
    try:
        yield deadline
    finally:
        timer.cancel()
        timer.join()


def _limited(answer: httpx2.Response) -> Iterator[bytes]:
    size = 0
    for chunk in answer.iter_bytes():
        size += len(chunk)
        if size > LARGEST_ANSWER:
            raise Transient(f"validator: its answer is over {LARGEST_ANSWER:,} bytes", code="validator_garbage")
        yield chunk


def _refusal(answer: httpx2.Response, body: bytes) -> StageError | ConfigError:
    status = answer.status_code
    said = f"validator: HTTP {status}: {body[:200].decode(errors='replace')}"
    if status in (401, 403):
        return ConfigError("VALIDATOR_API_KEY", f"refused with HTTP {status}", "Set it right", code="validator_denied")
    if status in (408, 425, 429) or status >= 500:
        return Transient(said, code=UNAVAILABLE, retry_in=retry_after(answer.headers.get("Retry-After")))
    return Rejected(said, code="validator_refused")


def _verdict(body: bytes) -> Verdict:
    try:
        # Half a character or NaN, which Python takes for JSON, is not what a receipt can hold.
        answer = json.loads(storable(json.dumps(json.loads(body), ensure_ascii=False, allow_nan=False)))
        result = answer["data"][0]["result"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        shown = body[:200].decode(errors="replace")
        raise Transient(f"validator: not an answer: {shown!r}", code="validator_garbage") from error
    if not isinstance(result, str):
        raise Transient(f"validator: result is {result!r}", code="validator_garbage")
    return Verdict(result=result, answer=answer)


def retry_after(value: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Seconds that a Retry-After header asks for: a number or an HTTP date; None when it cannot be read."""
    if value is None:
        return None
    if value.isdecimal():
        seconds = float(value)
    else:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now()
    return min(max(seconds, 0.0), 3600.0)
