"""Who calls. With AUTH=keys only those who send one of API_KEYS are served: pure ASGI, before a body is read."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any

from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ncr_worker.api.problems import documented, unauthorized

OPEN = frozenset({"/", "/docs", "/redoc", "/openapi.json", "/health", "/health/live", "/health/ready"})
ANYBODY = "api"
"""The actor in audit trails when nobody is asked who he is."""

_TEXT = "One of API_KEYS, as `Authorization: Bearer KEY` or `X-API-Key: KEY`."
_BEARER = HTTPBearer(scheme_name="bearer", description=_TEXT, auto_error=False)
_HEADER = APIKeyHeader(name="X-API-Key", scheme_name="apiKey", description=_TEXT, auto_error=False)
DOCUMENTED: dict[str, Any] = {
    "dependencies": [Security(_BEARER), Security(_HEADER)],
    "responses": documented(401),
}
"""Options of a router whose routes ask for a key. The middleware does ask; these say so in OpenAPI."""


class Authentication:
    """`callers`: (name, key). The name of who calls is `request.state.caller`; without a key only OPEN is served."""

    def __init__(self, app: ASGIApp, callers: Sequence[tuple[str, str]]) -> None:
        self.app = app
        self.callers = [(name, key.encode()) for name, key in callers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            name = self._name(_sent(Headers(scope=scope)))
            if name is None:
                await unauthorized(Request(scope))(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = name
        await self.app(scope, receive, send)

    def _name(self, sent: str) -> str | None:
        # All are compared, each in constant time: how long it takes tells nothing about the keys.
        matching = [name for name, key in self.callers if hmac.compare_digest(key, sent.encode())]
        return matching[0] if matching else None


def _sent(headers: Headers) -> str:
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("X-API-Key", "")
