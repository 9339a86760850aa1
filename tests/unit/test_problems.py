"""Every error is a problem with a stable code, and never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Body, FastAPI
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException

from ncr_worker.api import problems
from ncr_worker.api.middleware import BodyLimit, RequestContext
from ncr_worker.errors import (
    Busy,
    ConfigError,
    Conflict,
    GivenBack,
    NcrError,
    NeverFits,
    NotFound,
    Rejected,
    Transient,
)
from ncr_worker.pipelines.deliver.model import DeliverArgs
from ncr_worker.sql import DatabaseAway

ERRORS: dict[str, Exception] = {
    "not_found": NotFound("there is no job x"),
    "conflict": Conflict("taken"),
    "never_fits": NeverFits("too large"),
    "busy": Busy("later", retry_in=2.1),
    "database_unavailable": DatabaseAway("gone", retry_in=0.2),
    "config_error": ConfigError("DATABASE_URL", "old", "Upgrade"),
    "already_active": Conflict("taken", code="already_active"),
    "in_flight": Conflict("not answered yet", code="in_flight", retry_in=1),
    "bug": ZeroDivisionError("secret detail"),
    "rejected": Rejected("two keys for one target", code="layout_collision"),
    "transient": Transient("S3 is away", code="s3_unreachable", retry_in=2.1),
    "stray": GivenBack("a stage's error", reason="yielded"),
    "teapot": HTTPException(418, "short and stout"),
}
router = APIRouter()


@router.get("/raise/{name}")
def fail(name: str) -> None:
    raise ERRORS[name]


@router.post("/jobs")
def take(many: Annotated[list[DeliverArgs], Body()]) -> int:
    return len(many)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    api = FastAPI()
    api.include_router(router)
    problems.install(api)
    api.add_middleware(BodyLimit, limit=2000)
    api.add_middleware(RequestContext)
    with TestClient(api) as client:
        yield client


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("not_found", 404, "not_found"),
        ("conflict", 409, "conflict"),
        ("already_active", 409, "already_active"),
        ("in_flight", 409, "in_flight"),
        ("never_fits", 422, "never_fits"),
        ("busy", 503, "busy"),
        ("database_unavailable", 503, "database_unavailable"),
        ("config_error", 503, "config_error"),
        ("bug", 500, "internal_error"),
        ("rejected", 422, "layout_collision"),
        ("transient", 503, "s3_unreachable"),
        ("stray", 500, "internal_error"),
        ("teapot", 418, "http_error"),
    ],
)
def test_each_error_has_its_status_and_code(client: TestClient, name: str, status: int, code: str) -> None:
    answer = client.get(f"/raise/{name}", headers={"X-Request-ID": "abc-1"})
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (status, problems.MEDIA_TYPE)
    assert (problem["status"], problem["code"], problem["instance"]) == (status, code, f"/raise/{name}")
    assert problem["request_id"] == answer.headers["X-Request-ID"] == "abc-1"


def test_every_error_of_the_tree_that_reaches_the_edge_is_mapped() -> None:
    """The others belong to jobs, not to requests."""
    of_jobs = {"StageError", "OutOfMemory", "Cancelled", "GivenBack", "NeedsMemory", "ServiceDown", "LostOwnership"}
    errors = {each for each in _descendants(NcrError) if each.__module__ == NcrError.__module__}
    assert {each.__name__ for each in errors - problems.STATUS.keys()} == of_jobs


def _descendants(error: type[NcrError]) -> set[type[NcrError]]:
    return {each for child in error.__subclasses__() for each in (child, *_descendants(child))}


@pytest.mark.parametrize(
    ("name", "seconds"),
    [("busy", "3"), ("transient", "3"), ("database_unavailable", "1"), ("in_flight", "1"), ("already_active", None)],
)
def test_where_waiting_helps_it_says_how_long(client: TestClient, name: str, seconds: str | None) -> None:
    assert client.get(f"/raise/{name}").headers.get("Retry-After") == seconds


def test_a_bug_is_answered_with_a_reference_and_nothing_else(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.get("/raise/bug")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.headers["X-Request-ID"] in answer.json()["detail"]
    assert "secret detail" in caplog.text, "the log has what the client does not see"


@pytest.mark.parametrize("given", ["", "x" * 129, "two words", "né"])
def test_a_bad_request_id_is_replaced(client: TestClient, given: str) -> None:
    answer = client.get("/nowhere", headers={b"X-Request-ID": given.encode()})
    assert answer.headers["X-Request-ID"] not in ("", given)


def test_an_unknown_route_and_a_wrong_method_are_problems_too(client: TestClient) -> None:
    unknown, wrong = client.get("/nowhere"), client.get("/jobs")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert wrong.headers["Allow"] == "POST"
    assert "POST" in wrong.json()["detail"]


GOOD: dict[str, Any] = {"job_id": "1", "username": "ann", "campaign": "spring"}


@pytest.mark.parametrize(
    ("body", "place", "field"),
    [
        ([GOOD, {**GOOD, "job_id": "../etc"}], "body", "1.job_id"),
        ([{**GOOD, "username": ""}], "body", "0.username"),
        ([{"job_id": "1", "username": "ann"}], "body", "0.campaign"),
        ([{**GOOD, "row_id": "x"}], "body", "0.row_id"),
        ([{**GOOD, "extra": 1}], "body", "0.extra"),
        ({}, "body", "body"),
    ],
)
def test_bad_input_names_the_field(client: TestClient, body: Any, place: str, field: str) -> None:
    answer = client.post("/jobs", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "invalid_request")
    assert [(each["place"], each["field"]) for each in problem["errors"]] == [(place, field)]
    assert problem["detail"].startswith(f"{field}: ")


@pytest.mark.parametrize(
    "body", [b"{", b"", b'[{"job_id": "\\ud800", "\\ud800": 1}]', b"\xff\xfe", b"[" * 1500, b"NaN", b"1e999", b"null"]
)
def test_no_body_however_odd_is_more_than_a_4xx(client: TestClient, body: bytes) -> None:
    answer = client.post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == problems.MEDIA_TYPE


def test_only_the_first_errors_of_a_large_batch_are_listed(client: TestClient) -> None:
    answer = client.post("/jobs", json=[{}] * 60)
    assert len(answer.json()["errors"]) == problems.MOST_ERRORS
    assert answer.json()["detail"].endswith("; and 177 more")


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_above_the_limit_is_refused(client: TestClient, announced: bool) -> None:
    body = b"[" + b" " * 2000 + b"]"
    answer = client.post(
        "/jobs", content=body if announced else iter([body]), headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert "2,000" in answer.json()["detail"]
