"""What people ask of a whole batch: many jobs in each transaction, so that a large batch takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from ncr_worker.errors import Conflict, NotFound
from ncr_worker.job import Job
from ncr_worker.ledger import Ledger
from ncr_worker.ledger.intake import Again, cancel, retry

CHUNK = 200
"""Jobs in one transaction: short enough that nobody waits for it."""


@dataclass(frozen=True, slots=True)
class Retried:
    """`refused`: job id -> why it has no new round."""

    job_ids: list[str]
    refused: dict[str, str]


class Batches:
    """Each chunk is settled by itself: what is stopped on its way may be asked for again. Raises DatabaseAway."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def cancel(self, job_ids: Sequence[str], *, actor: str) -> list[str]:
        """Ask jobs to stop; those of them that had not ended."""
        return [job_id for chunk in _chunks(job_ids) for job_id in self._cancel(chunk, actor)]

    def retry(self, job_ids: Sequence[str], again: Callable[[Job], Again], *, actor: str) -> Retried:
        """A new round for each that can have one. `again` may raise Conflict, NotFound."""
        retried = Retried([], {})
        for chunk in _chunks(job_ids):
            ready, refused = [], {}
            for job in self.ledger.reads.jobs(chunk):
                try:
                    ready.append((job.id, again(job)))
                except (Conflict, NotFound) as error:
                    refused[job.id] = str(error)
            done = self._retry(ready, actor)
            retried.job_ids.extend(done.job_ids)
            retried.refused.update(refused | done.refused)
        return retried

    def _cancel(self, job_ids: Sequence[str], actor: str) -> list[str]:
        def stops(connection: Connection, job_id: str) -> bool:
            try:
                cancel(connection, job_id, actor=actor)
            except (Conflict, NotFound):  # it has ended meanwhile
                return False
            return True

        return self.ledger.database.transact(lambda connection: [i for i in job_ids if stops(connection, i)])

    def _retry(self, ready: Sequence[tuple[str, Again]], actor: str) -> Retried:
        def work(connection: Connection) -> Retried:
            done = Retried([], {})
            for job_id, again in ready:
                try:
                    retry(connection, job_id, again, actor=actor)
                    done.job_ids.append(job_id)
                except (Conflict, NotFound) as error:
                    done.refused[job_id] = str(error)
            return done

        return self.ledger.intake.settle(work)


def _chunks(job_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (job_ids[start : start + CHUNK] for start in range(0, len(job_ids), CHUNK))
