"""Traces of tasks' memory: what memory_replay.py reads."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GZIP = b"\x1f\x8b"
COLUMNS = ("kind", "input_bytes", "peak_bytes", "runtime_ms", "preset_bytes")


class TraceError(Exception):
    """A trace that cannot be replayed; the message names file, line and column."""


@dataclass(frozen=True, slots=True)
class Task:
    """`input_bytes` is None where the trace leaves it empty. `preset`: bytes that the workflow asked for."""

    number: int
    kind: str
    input_bytes: int | None
    peak: int
    seconds: float
    preset: int


@dataclass(frozen=True, slots=True)
class Trace:
    """`tasks` in the order of the file, which is that of their start. `name`: the file's, without .csv and .gz.

    `too_large`: so many tasks are left out, because they needed more than the host has.
    """

    name: str
    tasks: Sequence[Task]
    too_large: int = 0


def read(path: Path, host_memory: int) -> Trace:
    """Columns go by name, further ones are ignored. `host_memory`: bytes. Raises TraceError."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(GZIP) else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    tasks, too_large = list[Task](), 0
    try:
        if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
            raise TraceError(f"{path}: no column {', '.join(missing)}; the first line must name {', '.join(COLUMNS)}")
        for row in rows:
            task = _task(len(tasks), row, host_memory)
            if task.peak > host_memory:
                too_large += 1
            else:
                tasks.append(task)
    except (ValueError, csv.Error) as error:
        raise TraceError(f"{path}, line {rows.line_num}: {error}") from None
    if not any(task.seconds for task in tasks):
        raise TraceError(f"{path}: there is no task in it that runs for any time on a host of {host_memory:,} bytes")
    return Trace(re.sub(r"(\.csv)?(\.gz)?$", "", path.name, flags=re.IGNORECASE), tasks, too_large)


def _task(number: int, row: Mapping[str, str | None], host_memory: int) -> Task:
    """A peak of 0 is one nobody saw: the least there is. Where nothing was asked for, it is the whole host."""
    if not row["kind"]:
        raise ValueError("kind is empty")
    given = row["input_bytes"]
    return Task(
        number,
        row["kind"],
        int(_number(row, "input_bytes", least=0)) if given else None,
        max(int(_number(row, "peak_bytes", least=0)), 1),
        _number(row, "runtime_ms", least=0) / 1000,
        host_memory if row["preset_bytes"] == "" else int(_number(row, "preset_bytes", least=0)) or host_memory,
    )


def _number(row: Mapping[str, str | None], column: str, least: int) -> float:
    text = row[column]
    try:
        number = float(text or "")
    except ValueError:
        raise ValueError(f"{column} is {text!r}, not a number") from None
    if not least <= number < 1 << 62:  # NaN is not either
        raise ValueError(f"{column} is {text}; it may be from {least}, and must be a size that exists")
    return number
