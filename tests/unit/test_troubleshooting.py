"""docs/troubleshooting.md knows every error code, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import ncr_worker
from ncr_worker.job import Reason

PACKAGE = Path(ncr_worker.__file__).parent
DOCUMENT = PACKAGE.parent / "docs" / "troubleshooting.md"
WORD = re.compile(r"[a-z][a-z0-9_]+")


def codes(tree: ast.Module) -> Iterator[str]:
    """Every code in a file: `code="…"`, `code = "…"` in a class, the fallback and the table of HTTP's own."""
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    waits = {id(keyword) for call in obstacles(tree) for keyword in call.keywords}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "code" and id(node) not in waits:
            yield from _words(node.value, constants)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id == "code":
                yield from _words(node.value, constants)
            elif node.targets[0].id == "CODES" and isinstance(node.value, ast.Dict):
                yield from (word for value in node.value.values for word in _words(value, constants))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_answer":
            yield from _words(node.args[2], constants)


def obstacles(tree: ast.Module) -> Iterator[ast.Call]:
    """Where it is said why a job waits: these words are no errors."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return (call for call in calls if getattr(call.func, "id", "") == "Obstacle")


def _words(value: ast.expr, constants: Mapping[str, object]) -> Iterator[str]:
    if isinstance(value, ast.IfExp):
        yield from _words(value.body, constants)
        yield from _words(value.orelse, constants)
    elif isinstance(value, ast.Call):  # CODES.get(status, "http_error")
        yield from (word for each in value.args[1:] for word in _words(each, constants))
    found = constants.get(value.id) if isinstance(value, ast.Name) else getattr(value, "value", None)
    if isinstance(found, str) and WORD.fullmatch(found):
        yield found


def words_below(heading: str) -> list[str]:
    """What stands in the first columns of the tables below a heading of the document."""
    section = DOCUMENT.read_text(encoding="utf-8").partition(heading)[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return [code for row in rows for code in re.findall(r"`([a-z][a-z0-9_]+)`", row.split("|")[1])]


def test_every_reason_to_wait_is_explained() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    given = (each for tree in trees for call in obstacles(tree) for each in call.keywords if each.arg == "code")
    said = {word for keyword in given for word in _words(keyword.value, {})}
    assert {"paused", "no_slot"} <= said
    assert sorted(words_below("## Reasons of a waiting job")) == sorted({*(reason.value for reason in Reason), *said})


def test_every_code_is_explained() -> None:
    lost = {Reason.HOST_LOST.value, Reason.WORKER_LOST.value}  # the ledger's words for a process that died
    used = lost | {
        code for path in PACKAGE.rglob("*.py") for code in codes(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert {"internal_error", "http_error", "validator_unavailable", "sftp_host_key", "body_too_large"} <= used
    explained = set(words_below("## Error codes"))
    assert sorted(used - explained) == [], "say in docs/troubleshooting.md what these mean and what to do"
    assert sorted(explained - used) == [], "no such code any more"
