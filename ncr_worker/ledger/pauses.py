"""What people have stopped: the intake of new jobs, or the start of waiting ones."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Column, ColumnElement, Connection, Double, String, Table, delete, exists, insert, select, update
from sqlalchemy.exc import IntegrityError

from ncr_worker.ledger.tables import metadata
from ncr_worker.sql import TABLE, Database, Note, now

pause = Table(
    "pause",
    metadata,
    Column("scope", String(10), primary_key=True),  # intake, work
    Column("actor", Note(120), nullable=False),
    Column("note", Note(400), nullable=False),
    Column("since", Double, nullable=False),
    **TABLE,
)


class Scope(StrEnum):
    INTAKE = "intake"  # new jobs are refused
    WORK = "work"  # nothing new is started; what runs goes on


@dataclass(frozen=True, slots=True)
class Pause:
    """`since`: epoch seconds. `note`: why, in the words of the person who paused it."""

    scope: Scope
    actor: str
    note: str
    since: float


class Pauses:
    def __init__(self, database: Database) -> None:
        self.database = database

    def pause(self, scope: Scope, *, actor: str, note: str = "") -> None:
        """Idempotent; the latest word counts."""

        def work(connection: Connection) -> None:
            values = {"actor": actor, "note": note, "since": now()}
            if connection.execute(update(pause).where(pause.c.scope == scope).values(**values)).rowcount == 0:
                connection.execute(insert(pause).values(scope=scope.value, **values))

        try:
            self.database.transact(work)
        except IntegrityError:  # another person was faster by a moment
            self.database.transact(work)

    def resume(self, scope: Scope) -> bool:
        """Whether it was paused."""
        statement = delete(pause).where(pause.c.scope == scope)
        return self.database.transact(lambda connection: connection.execute(statement).rowcount == 1)

    def active(self) -> list[Pause]:
        rows = self.database.read(lambda connection: connection.execute(select(pause).order_by(pause.c.scope)).all())
        return [Pause(Scope(row.scope), row.actor, row.note, row.since) for row in rows]


def work_paused() -> ColumnElement[bool]:
    """A condition: nothing may be started."""
    return exists(select(pause.c.scope).where(pause.c.scope == Scope.WORK))
