"""SQLite by its driver alone, for the few statements of which every job's start costs some.

SQLAlchemy spends several times as long on each as SQLite (docs/decisions/0027-picks-by-the-driver-alone.md).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, cast

from sqlalchemy import ClauseElement, Dialect, Engine, Executable
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.compiler import SQLCompiler


class Changed(Protocol):
    @property
    def rowcount(self) -> int: ...


class Executes(Protocol):
    """What statements with single values need of a connection: SQLAlchemy's has it, and `Direct`."""

    @property
    def dialect(self) -> Dialect: ...

    def execute(self, statement: Executable, parameters: Mapping[str, Any], /) -> Changed: ...


class Direct:
    """A connection that stays open. What it commits a power cut may undo, until another one has flushed the file:
    then all that was committed before is safe too. Raises sqlite3.Error."""

    dialect: Dialect = sqlite.dialect(paramstyle="named")

    def __init__(self, engine: Engine) -> None:
        opened = engine.raw_connection()
        opened.detach()
        self._connection = cast(sqlite3.Connection, opened.dbapi_connection)
        self._connection.execute("pragma synchronous=normal")
        self._prepared: dict[Executable, _Prepared] = {}

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._connection:  # which commits, or rolls back
            self._connection.execute("begin immediate")
            yield

    def execute(self, statement: Executable, parameters: Mapping[str, Any], /) -> sqlite3.Cursor:
        prepared = self._prepared.get(statement) or self._prepare(statement)
        values = {**prepared.values, **parameters}
        for name, process in prepared.processors:
            values[name] = process(values[name])
        return self._connection.execute(prepared.text, values)

    def close(self) -> None:
        self._connection.close()

    def _prepare(self, statement: Executable) -> _Prepared:
        compiled = cast(SQLCompiler, cast(ClauseElement, statement).compile(dialect=self.dialect))
        processors = (
            (name, bound.type.dialect_impl(self.dialect).bind_processor(self.dialect))
            for bound, name in compiled.bind_names.items()
        )
        found = tuple((name, process) for name, process in processors if process is not None)
        self._prepared[statement] = prepared = _Prepared(str(compiled), compiled.params, found)
        return prepared


class _Prepared(NamedTuple):
    """`values`: those that the statement brings along; `processors`: what makes a value fit its column, by name."""

    text: str
    values: Mapping[str, Any]
    processors: tuple[tuple[str, Callable[[Any], Any]], ...]
