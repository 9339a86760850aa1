"""Every line of a running job says which job, whoever wrote it; no line holds a secret."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import structlog
from pydantic import SecretStr
from records import a_job

from ncr_worker import logs
from ncr_worker.settings import MASK, Settings


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Log(io.StringIO):
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def only(self) -> dict[str, Any]:
        (line,) = self.lines()
        return line


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging belongs to the whole process: give it back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def settings(**changes: Any) -> Settings:
    return Settings(_env_file=None, **{"log_format": "json", "host_id": "host-1", **changes})


def configured(**changes: Any) -> Log:
    log = Log()
    logs.configure(settings(**changes), log)
    return log


def test_a_line_is_json_with_time_level_logger_and_host() -> None:
    log = configured()
    structlog.get_logger("ncr_worker.runner").info("stage began", files=3)
    line = log.only()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "stage began",
        "files": 3,
        "level": "info",
        "logger": "ncr_worker.runner",
        "host": "host-1",
    }


def test_lines_of_a_running_job_carry_it_and_later_ones_do_not() -> None:
    log = configured()
    with logs.bind(a_job(id="j1", ref="A-1", stage="fetch", attempt=2), request_id="r1"):
        structlog.get_logger().info("inside")
    structlog.get_logger().info("outside")
    inside, outside = log.lines()
    expected = {"job_id": "j1", "kind": "deliver", "ref": "A-1", "stage": "fetch", "attempt": 2, "request_id": "r1"}
    assert expected.items() <= inside.items()
    assert not expected.keys() & outside.keys()


def test_the_next_stage_replaces_the_one_before() -> None:
    log = configured()
    job = a_job(stage="fetch")
    with logs.bind(job):
        with logs.bind(job.evolve(stage="pack")):
            structlog.get_logger().info("packing")
        structlog.get_logger().info("fetching")
    assert [line["stage"] for line in log.lines()] == ["pack", "fetch"]


@pytest.mark.parametrize("name", ["celery.worker", "uvicorn.error", "sqlalchemy.pool", "somebody.else"])
def test_lines_of_libraries_carry_the_job_too(name: str) -> None:
    logging.getLogger(name).addHandler(logging.NullHandler())
    logging.getLogger(name).propagate = not name.startswith(("celery", "uvicorn"))
    log = configured()
    with logs.bind(a_job(id="j1")):
        logging.getLogger(name).warning("lost %s", "connection", extra={"peer": "db", "color_message": "lost"})
    line = log.only()
    assert "color_message" not in line
    assert (line["event"], line["peer"], line["job_id"], line["logger"]) == ("lost connection", "db", "j1", name)


def test_threads_carry_the_job_when_told_to() -> None:
    log = configured()

    def fetch(key: str) -> str:
        structlog.get_logger().info("fetched", key=key)
        return key

    with logs.bind(a_job(id="j1")), ThreadPoolExecutor(2) as threads:
        assert list(threads.map(logs.carry(fetch), ["a", "b", "c"])) == ["a", "b", "c"]
    assert {line["key"]: line["job_id"] for line in log.lines()} == {"a": "j1", "b": "j1", "c": "j1"}


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("secret", ["hush-hush", 'q"uo\\te', "пароль"])
def test_secrets_are_masked_in_messages_fields_and_tracebacks(log_format: str, secret: str) -> None:
    log = configured(log_format=log_format, sftp_password=SecretStr(secret))
    logging.getLogger("paramiko").warning("login as ann with %s", secret)
    structlog.get_logger().info("connecting", password=secret, url="redis://:hush@r/0", key=SecretStr(secret))
    try:
        raise RuntimeError(f"cannot log in with {secret}")
    except RuntimeError:
        structlog.get_logger().exception("failed")
    written = log.getvalue()
    assert secret not in written
    assert json.dumps(secret)[1:-1] not in written
    assert ":hush@" not in written
    assert written.count(MASK) >= 4
    assert "RuntimeError: cannot log in with" in written


def test_a_very_short_secret_does_not_blacken_the_log() -> None:
    log = configured(sftp_password=SecretStr("an"))
    structlog.get_logger().info("plan and run")
    assert log.only()["event"] == "plan and run"


def test_the_level_is_that_of_the_settings() -> None:
    log = configured(log_level="warning")
    structlog.get_logger().info("no")
    logging.getLogger("lib").info("no")
    structlog.get_logger().warning("yes")
    assert log.only()["event"] == "yes"


def test_libraries_that_write_whole_requests_stay_quiet_at_debug() -> None:
    log = configured(log_level="DEBUG")
    logging.getLogger("botocore.auth").debug("Authorization: …")
    structlog.get_logger().debug("ours")
    assert log.only()["event"] == "ours"


def test_warnings_are_log_lines() -> None:
    log = configured()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old way", UserWarning, stacklevel=1)
    assert "old way" in log.only()["event"]


def test_configuring_again_writes_each_line_once_to_the_latest_stream() -> None:
    first, second = configured(), configured()
    structlog.get_logger().info("once")
    assert not first.getvalue()
    assert second.only()["event"] == "once"


def test_auto_is_for_people_on_a_terminal_and_json_elsewhere() -> None:
    terminal, file = Terminal(), Log()
    logs.configure(settings(log_format="auto"), terminal)
    structlog.get_logger().info("hello", files=1)
    logs.configure(settings(log_format="auto"), file)
    structlog.get_logger().info("hello")
    assert "hello" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")
    assert file.only()["event"] == "hello"
