"""Structured logs on stdout: ours and those of every library, as JSON or for a terminal, with secrets masked.

Whoever starts a process calls `configure(settings)` once. Celery leaves logging to us when its signal
`setup_logging` has a receiver, uvicorn when it is started with `log_config=None`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import Any, ParamSpec, TextIO, TypeVar

import structlog
from pydantic import SecretStr
from structlog.typing import EventDict, Processor, WrappedLogger

from ncr_worker.job import Job
from ncr_worker.settings import MASK, Settings, mask_passwords

# These write whole requests, headers included, at DEBUG, and a line for each request at INFO.
NOISY = ("amqp", "boto3", "botocore", "httpcore2", "httpx2", "paramiko", "s3transfer", "urllib3")
# A shorter secret would blacken innocent words all over the log.
SHORTEST_SECRET = 4

P = ParamSpec("P")
T = TypeVar("T")


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Send all logging of this process to `stream` (default: stdout). May be called again: the last call counts."""
    stream = stream or sys.stdout
    pretty = settings.log_format == "console" or (settings.log_format == "auto" and stream.isatty())
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _on(settings.host),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *before,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Cached loggers would keep the processors of an earlier call.
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        _Masked(
            masker(settings),
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(pretty, stream)],
            foreign_pre_chain=[*before, structlog.stdlib.ExtraAdder(), _without_uvicorns_colours],
        )
    )
    _route_everything_to(handler, settings.log_level.upper())


def bind(job: Job, **more: Any) -> AbstractContextManager[None]:
    """Inside, every line carries job_id, kind, ref, attempt, request_id, the job's stage, and `more`."""
    return structlog.contextvars.bound_contextvars(**job.log_context(), stage=job.stage, **more)


def request_id() -> str | None:
    """That of the request that is served here, as log lines carry it; None outside of one."""
    bound: str | None = structlog.contextvars.get_contextvars().get("request_id")
    return bound


def carry(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, to be called in another thread, with what is bound in this one: threads inherit nothing."""
    context = copy_context()

    def carried(*args: P.args, **kwargs: P.kwargs) -> T:
        return context.copy().run(function, *args, **kwargs)

    return carried


def secrets_of(settings: Settings) -> frozenset[str]:
    """The values that must never be seen in a log, as they are and as JSON writes them."""
    values = {value.get_secret_value() for _, value in settings if isinstance(value, SecretStr)}
    values |= {key for _, key in settings.callers}
    return frozenset(
        form for value in values if len(value) >= SHORTEST_SECRET for form in (value, json.dumps(value)[1:-1])
    )


def masker(settings: Settings) -> Callable[[str], str]:
    """What takes a text and masks all secrets in it, the passwords of URLs included."""
    # The longest first: a secret may be part of another.
    alternatives = "|".join(re.escape(secret) for secret in sorted(secrets_of(settings), key=len, reverse=True))
    secrets = re.compile(alternatives or r"(?!)")
    return lambda text: mask_passwords(secrets.sub(MASK, text))


class _Masked(structlog.stdlib.ProcessorFormatter):
    """Masks secrets in the finished line, so that tracebacks and libraries' messages are covered too."""

    def __init__(self, mask: Callable[[str], str], **options: Any) -> None:
        super().__init__(**options)
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        return self._mask(super().format(record))


def _on(host: str) -> Processor:
    def add_host(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.setdefault("host", host)
        return event

    return add_host


def _without_uvicorns_colours(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event.pop("color_message", None)  # the same message again, with escape codes
    return event


def _renderers(pretty: bool, stream: TextIO) -> list[Processor]:
    if pretty:
        # The plain traceback: the rich one prints local variables, and with them what we mask.
        return [
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
            )
        ]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _route_everything_to(handler: logging.Handler, level: str) -> None:
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in logging.root.manager.loggerDict:
        if name.partition(".")[0] in ("celery", "flower", "uvicorn"):
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = True
    for name in NOISY:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))
    logging.captureWarnings(True)
