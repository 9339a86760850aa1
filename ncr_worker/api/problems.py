"""Errors as `application/problem+json` (RFC 9457): the one place where an exception becomes an HTTP status."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ncr_worker.errors import Busy, ConfigError, Conflict, NcrError, NeverFits, NotFound, Rejected, Transient

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
MOST_ERRORS = 50  # named one by one; a batch may have thousands

STATUS: Mapping[type[NcrError], int] = {
    NotFound: 404,
    Conflict: 409,
    NeverFits: 422,
    Rejected: 422,  # what a plan says of a job that would fail
    Busy: 503,
    Transient: 503,
    ConfigError: 503,
}
"""Any other NcrError does not belong here and is answered like a bug: 500."""
TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}  # their names before Python 3.13 were others
CODES = {400: "bad_request", 401: "unauthorized", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class FieldError(BaseModel):
    """`place`: body, path, query or header. `field`: its name; in a batch `2.username` is that of the third job."""

    place: str
    field: str
    message: str


class Problem(BaseModel):
    """What every error looks like. `code` is stable; `errors` names the fields of a request that was not valid."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    instance: str
    request_id: str
    errors: list[FieldError] | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Conflict",
                    "status": 409,
                    "code": "already_active",
                    "detail": "'4711' is already being worked on by job 0b0f9f0e-6f0c-4a46-9d5e-0f3f0b1f2a3c; "
                    "wait until it ends, or cancel it",
                    "instance": "/process-job",
                    "request_id": "5f0c7a3e0d9b4c7f8a1e2d3c4b5a6978",
                }
            ]
        }
    )


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that may answer with these problems."""
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    return {
        status: {"description": _title(status), "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in (*statuses, 500)
    }


def install(api: FastAPI) -> None:
    """Make `api` answer every error as a problem."""
    api.add_exception_handler(NcrError, _ncr_error)
    api.add_exception_handler(RequestValidationError, _invalid_request)
    api.add_exception_handler(HTTPException, _http_error)


def unexpected(request: Request) -> Response:
    """The answer to a bug: no details, but the reference under which the log has them."""
    reference = request.state.request_id
    return _answer(request, 500, "internal_error", f"internal error; the log has the details under {reference}")


def unauthorized(request: Request) -> Response:
    """The answer to somebody who has sent no key, or one that we do not know."""
    detail = "send one of the API keys, as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
    return _answer(request, 401, CODES[401], detail, {"WWW-Authenticate": 'Bearer realm="ncr_worker"'})


async def _ncr_error(request: Request, error: Exception) -> Response:
    status = next((STATUS[each] for each in type(error).__mro__ if each in STATUS), None)
    if not isinstance(error, NcrError) or status is None:
        raise error
    headers = {}
    if isinstance(error, Busy | Transient) or (isinstance(error, Conflict) and error.retry_in is not None):
        headers["Retry-After"] = str(max(math.ceil(error.retry_in or 0), 1))
    log.log(logging.WARNING if status >= 500 else logging.INFO, "%d %s: %s", status, error.code, error)
    return _answer(request, status, error.code, str(error), headers)


async def _invalid_request(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    errors = [_field_error(each) for each in error.errors()]
    shown = "; ".join(f"{each.field}: {each.message}" for each in errors[:3])
    detail = shown + (f"; and {len(errors) - 3} more" if len(errors) > 3 else "")
    return _answer(request, 422, "invalid_request", detail, errors=errors[:MOST_ERRORS])


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    detail = error.detail
    if error.status_code == 404:
        detail = f"there is no {request.url.path}; /docs describes every route"
    elif error.status_code == 405:
        detail = f"{request.method} is not for {request.url.path}; allowed: {headers.get('Allow', 'see /docs')}"
    return _answer(request, error.status_code, CODES.get(error.status_code, "http_error"), detail, headers)


def _field_error(error: Mapping[str, Any]) -> FieldError:
    place, *path = (str(part) for part in error["loc"])
    if error["type"] == "json_invalid":
        text = f"not JSON: {error['ctx']['error']} at character {path[0]}"
        return FieldError(place=place, field=place, message=text)
    return FieldError(place=place, field=".".join(path) or place, message=error["msg"])


def _answer(
    request: Request,
    status: int,
    code: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[FieldError] | None = None,
) -> Response:
    problem = Problem(
        title=_title(status),
        status=status,
        code=code,
        detail=detail,
        instance=request.url.path,
        request_id=request.state.request_id,
        errors=list(errors) if errors else None,
    )
    # Written in ASCII: what a client sent may hold characters that UTF-8 does not have.
    text = json.dumps(problem.model_dump(exclude_none=True))
    return Response(text, status, headers, MEDIA_TYPE)


def _title(status: int) -> str:
    return TITLES.get(status) or HTTPStatus(status).phrase
