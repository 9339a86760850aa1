"""What FastAPI's OpenAPI document does not have by itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from ncr_worker.api.problems import Problem


def complete(api: FastAPI) -> None:
    """Let the document of `api` describe problems, and be a document of the version that it names."""
    plain = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = plain()
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            document["components"]["schemas"].update(problem.pop("$defs"), Problem=problem)
            for answer in _answers(document):
                for content in answer.get("content", {}).values():
                    content.pop("itemSchema", None)  # of event streams; OpenAPI has it from version 3.2 on
        return plain()

    api.openapi = openapi  # type: ignore[method-assign]


def _answers(document: dict[str, Any]) -> list[dict[str, Any]]:
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    return [answer for operation in operations for answer in operation["responses"].values()]
