"""What the API says of itself is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate
from serving import on_sqlite, serving

from ncr_worker.sandbox.valkey import Valkey
from ncr_worker.settings import Settings

ROUTES = {
    "/": "get",
    "/process-job": "post",
    "/process-batch": "post",
    "/job-status/{task_id}": "get",
    "/batch-status/{batch_id}": "get",
    "/jobs": "get",
    "/jobs/active": "get",
    "/jobs/{task_id}": "get",
    "/jobs/{task_id}/audit": "get",
    "/jobs/{task_id}/receipt": "get",
    "/jobs/{task_id}/events": "get",
    "/jobs/{task_id}/explain": "get",
    "/jobs/{task_id}/cancel": "post",
    "/jobs/{task_id}/retry": "post",
    "/batches": "get",
    "/batches/{batch_id}/cancel": "post",
    "/batches/{batch_id}/retry": "post",
    "/pauses": "get",
    "/pause": "post",
    "/resume": "post",
    "/plan": "get",
    "/health": "get",
    "/health/live": "get",
    "/health/ready": "get",
    "/memory-stats": "get",
    "/hosts/{host}/memory": "get",
    "/admission/explain": "get",
    "/celery-stats": "get",
    "/metrics": "get",
}


@pytest.fixture
def sqlite_settings(valkey: Valkey, tmp_path: Path) -> Settings:
    return on_sqlite(valkey.url, tmp_path)


def test_the_openapi_document_is_valid_and_describes_every_route(sqlite_settings: Settings) -> None:
    with serving(sqlite_settings) as (client, _):
        document = client.get("/openapi.json").json()
        validate(document)
        assert {path: next(iter(methods)) for path, methods in document["paths"].items()} == ROUTES
        for path, method in ROUTES.items():
            operation = document["paths"][path][method]
            assert operation["summary"], path
            assert operation["description"], path
            good = next(answer for code, answer in operation["responses"].items() if code.startswith("2"))
            if "application/json" in good["content"]:
                assert _schema(document, good, "application/json")["examples"], path
            else:
                assert all(text["example"] for text in good["content"].values()), path
            if "requestBody" in operation:
                assert operation["requestBody"]["content"]["application/json"]["schema"]["examples"], path
            for code, answer in operation["responses"].items():
                if code.startswith(("4", "5")) and (path, code) != ("/health", "503"):
                    assert _schema(document, answer, "application/problem+json")["title"] == "Problem", (path, code)
        for page in ("/docs", "/redoc"):
            assert client.get(page).status_code == 200


def _schema(document: dict[str, Any], answer: dict[str, Any], media_type: str) -> dict[str, Any]:
    found = answer["content"][media_type]["schema"]
    name = found.get("oneOf", [found])[0]["$ref"].rpartition("/")[2]
    schema: dict[str, Any] = document["components"]["schemas"][name]
    return schema


def test_the_examples_are_what_the_document_promises(sqlite_settings: Settings) -> None:
    """An example of an answer has the very fields of the answer."""
    with serving(sqlite_settings) as (client, _):
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        for name, schema in schemas.items():
            for example in schema.get("examples", []):
                assert set(schema["required"]) <= set(example) <= set(schema["properties"]), name


def test_links_lead_somewhere(sqlite_settings: Settings) -> None:
    with serving(sqlite_settings) as (client, _):
        service = client.get("/").json()
        assert service["version"]
        assert all(client.get(link).status_code == 200 for link in service["links"].values())


def test_browsers_of_the_named_origins_may_call(sqlite_settings: Settings) -> None:
    with serving(sqlite_settings) as (client, _):
        for origin, allowed in (("https://ui.example", "https://ui.example"), ("https://other.example", None)):
            answer = client.get("/job-status/unknown", headers={"Origin": origin})
            assert answer.headers.get("Access-Control-Allow-Origin") == allowed
