"""A file of jobs to deliver: a JSON array, NDJSON or CSV; told apart by how it begins. Pure."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ncr_worker.errors import Rejected
from ncr_worker.pipelines.deliver.model import DeliverArgs

DELIMITERS = ",;\t"
SHOWN = 5
"""So many wrong lines are named; the rest is counted."""
_BLANK = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands for one job, and the line on which it begins."""

    line: int
    values: Any


class Wrong(Exception):
    """`line`: the first one is 1."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")


def read(name: str, content: bytes) -> list[DeliverArgs]:
    """The jobs in the file `name`, in its order. Raises Rejected, which names lines and fields, when any is wrong."""
    try:
        entries = list(_entries(content))
    except Wrong as error:
        raise _rejected(name, [str(error)]) from error
    if not entries:
        raise _rejected(name, ["there is no job in it"])
    jobs: list[DeliverArgs] = []
    problems: list[str] = []
    firsts: dict[str, Entry] = {}
    for entry in entries:
        try:
            job = DeliverArgs.model_validate(entry.values)
        except ValidationError as error:
            problems += [f"line {entry.line}{explain(wrong)}" for wrong in error.errors()]
            continue
        first = firsts.setdefault(job.job_id, entry)
        if first is not entry:
            problems.append(f"line {entry.line}, job_id: {job.job_id} stands on line {first.line} already")
        jobs.append(job)
    if problems:
        raise _rejected(name, problems)
    return jobs


def explain(wrong: Any) -> str:
    """`, campaign: Field required`, of one of pydantic's errors; without a field when the whole is wrong."""
    field = ".".join(str(part) for part in wrong["loc"])
    return f", {field}: {wrong['msg']}" if field else ": not an object with job_id, username, campaign"


def _rejected(name: str, problems: Sequence[str]) -> Rejected:
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return Rejected(f"{name}: {'; '.join(problems[:SHOWN])}{more}. Nothing was stored", code="invalid_batch_file")


def _entries(content: bytes) -> Iterator[Entry]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Wrong(line, "not UTF-8; save the file with this encoding") from error
    match text.lstrip()[:1]:
        case "[":
            return _array(text)
        case "{":
            return _lines(text)
    return _csv(text)


def _array(text: str) -> Iterator[Entry]:
    at = text.index("[") + 1
    line, counted = 1, 0
    mark = ","
    while mark == ",":
        at = _after_blank(text, at)
        line, counted = line + text.count("\n", counted, at), at
        if text.startswith("]", at) and text[:at].rstrip().endswith("["):
            mark = "]"
        else:
            value, at = _value(text, at, line)
            yield Entry(line, value)
            at = _after_blank(text, at)
            mark = text[at : at + 1]
        at += 1
    line += text.count("\n", counted, at)
    if mark != "]":
        raise Wrong(line, "a comma or ] is missing")
    if _after_blank(text, at) < len(text):
        raise Wrong(line, "something stands behind the closing ]")


def _lines(text: str) -> Iterator[Entry]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            start = _after_blank(line, 0)
            value, end = _value(line, start, number)
            if _after_blank(line, end) < len(line):
                raise Wrong(number, "more than one JSON object; write one a line")
            yield Entry(number, value)


def _value(text: str, at: int, line: int) -> tuple[Any, int]:
    """The JSON value that begins at `at`, and where it ends."""
    try:
        return json.JSONDecoder().raw_decode(text, at)
    except json.JSONDecodeError as error:
        inside = text.count("\n", at, error.pos)
        raise Wrong(line + inside, f"not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise Wrong(line, "not JSON that makes sense") from error


def _after_blank(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _csv(text: str) -> Iterator[Entry]:
    first = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        header = _header(next(rows, []))
        line = rows.line_num + 1
        for row in rows:
            if len(row) > len(header):
                raise Wrong(line, f"{len(row)} fields, the header has {len(header)}")
            values = {name: cell.strip() for name, cell in zip(header, row, strict=False) if cell.strip()}
            if values:
                yield Entry(line, values)
            line = rows.line_num + 1  # a quoted field may span lines
    except csv.Error as error:
        raise Wrong(line, f"not CSV: {error}") from error


def _header(row: Sequence[str]) -> list[str]:
    header = [cell.strip() for cell in row]
    known = list(DeliverArgs.model_fields)
    unknown = [name for name in header if name not in known]
    needed = [name for name, field in DeliverArgs.model_fields.items() if field.is_required() and name not in header]
    if unknown or needed or len(set(header)) != len(header):
        raise Wrong(1, f"the header must be {','.join(known)} (row_id may be left out), it is {','.join(header)!r}")
    return header
