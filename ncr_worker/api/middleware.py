"""What surrounds every request: an id, the last word about unexpected errors, a limit for bodies. Pure ASGI."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ncr_worker.api.problems import unexpected

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-ID"
_ACCEPTABLE = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # goes into logs and headers


class RequestContext:
    """Takes `X-Request-ID` from the client or makes one; it is in the answer and in every log line of the request.

    An exception that nobody has handled is logged with it, and answered without a traceback.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _ACCEPTABLE.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, with_id)
            except Exception:
                if started:  # too late for another answer: the server cuts the connection
                    raise
                log.exception("unexpected error at %s %s", scope["method"], scope["path"])
                await unexpected(Request(scope))(scope, receive, with_id)


class Measured:
    """Tells `answered` of each answer: route template (`other`: no route), method, status, seconds until it began."""

    def __init__(self, app: ASGIApp, answered: Callable[[str, str, int, float], None]) -> None:
        self.app = app
        self.answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self.answered(route, scope["method"], message["status"], time.monotonic() - began)
            await send(message)

        await self.app(scope, receive, noted)


class BodyLimit:
    """Answers 413 to a body of more than `limit` bytes, before or while it is read."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("Content-Length", "")
        read = 0

        async def limited() -> Message:
            nonlocal read
            self._refuse(int(announced) if announced.isdecimal() else 0)
            message = await receive()
            read += len(message.get("body", b""))
            self._refuse(read)
            return message

        await self.app(scope, limited, send)

    def _refuse(self, size: int) -> None:
        if size > self.limit:
            raise HTTPException(413, f"the body may have {self.limit:,} bytes at most; split the request")
