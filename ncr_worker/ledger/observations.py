"""What runs were seen to use: shared by all hosts, there after a restart. The predictor learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select

from ncr_worker.ledger.tables import observation
from ncr_worker.sql import Database

KEPT = 200  # observations of each stage of a kind


@dataclass(frozen=True, slots=True)
class Seen:
    """One run of a stage, or of the whole job (`stage` None). Sizes in bytes. `declared`: what its pipeline had said.

    `killed`: it ran out of memory, so it would have needed more than `peak`.
    """

    kind: str
    version: int
    stage: str | None
    input_bytes: int | None
    declared: int | None
    peak: int
    seconds: float
    killed: bool = False


_FIELDS = tuple(Seen.__dataclass_fields__)


def note(connection: Connection, seen: Sequence[Seen]) -> None:
    if seen:
        connection.execute(insert(observation), [asdict(one) for one in seen])


def largest(connection: Connection, kind: str) -> int:
    """The largest peak among the newest KEPT runs of a kind; 0 when there are none."""
    newest = select(observation.c.peak).where(*_of(kind, None)).order_by(observation.c.id.desc()).limit(KEPT).subquery()
    return int(connection.execute(select(func.max(newest.c.peak))).scalar_one() or 0)


class Observations:
    def __init__(self, database: Database) -> None:
        self.database = database

    def newest(self, kind: str, stage: str | None) -> list[Seen]:
        """The newest KEPT of a stage of a kind, oldest first."""
        return self.since(kind, stage, 0)[1]

    def since(self, kind: str, stage: str | None, after: int) -> tuple[int, list[Seen]]:
        """As `newest`, those whose id is above `after`; and the id of the last, to ask for the next ones by."""
        columns = (observation.c.id, *(observation.c[name] for name in _FIELDS))
        query = select(*columns).where(*_of(kind, stage), observation.c.id > after)
        query = query.order_by(observation.c.id.desc()).limit(KEPT)
        rows = self.database.read(lambda connection: connection.execute(query).all())
        return (rows[0].id if rows else after), [
            Seen(**{name: getattr(row, name) for name in _FIELDS} | {"killed": bool(row.killed)})
            for row in reversed(rows)
        ]

    def forget(self) -> int:
        """Delete what is older than the newest KEPT of each stage; how many. For housekeeping."""
        of_stage = select(observation.c.kind, observation.c.stage).distinct()
        return sum(self._forget(row.kind, row.stage) for row in self.database.read(lambda c: c.execute(of_stage).all()))

    def _forget(self, kind: str, stage: str | None) -> int:
        query = select(observation.c.id).where(*_of(kind, stage)).order_by(observation.c.id.desc())

        def work(connection: Connection) -> int:
            oldest = connection.execute(query.offset(KEPT).limit(1)).scalar_one_or_none()
            if oldest is None:
                return 0
            where = (*_of(kind, stage), observation.c.id <= oldest)
            return connection.execute(delete(observation).where(*where)).rowcount

        return self.database.transact(work)


def _of(kind: str, stage: str | None) -> tuple[ColumnElement[bool], ...]:
    return observation.c.kind == kind, observation.c.stage.is_(None) if stage is None else observation.c.stage == stage
