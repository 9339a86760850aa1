"""How much memory to reserve: what a pipeline declares, until its earlier jobs tell it better."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

from ncr_worker.ledger.observations import Observations, Seen
from ncr_worker.memory.predictor import Observation, Prediction, Predictor
from ncr_worker.sql import Database, DatabaseAway

log = logging.getLogger(__name__)

SERVES = 1.0  # seconds for which what was read of the ledger serves: one job more or less changes little


@dataclass(slots=True)
class _Known:
    predictor: Predictor
    seen: list[Seen] = field(default_factory=list)
    read_at: float = 0.0  # monotonic seconds


class Needs:
    """`learned`: whether what was observed counts at all. Safe to share between threads."""

    def __init__(self, database: Database, *, learned: bool) -> None:
        self.observations = Observations(database)
        self.learned = learned
        self._known: dict[tuple[str, str | None], _Known] = {}
        self._lock = threading.Lock()

    def predict(self, kind: str, version: int, stage: str | None, input_bytes: int | None, declared: int) -> Prediction:
        """For a stage of a kind, or for a whole job (`stage` None). All sizes in bytes.

        While the database is away: by what is known.
        """
        if not self.learned:
            return Prediction(declared, "declared", 1.0, 0.0, 0, "as declared (MEMORY_PREDICTION=declared)")
        with self._lock:
            return self._predictor(kind, stage).predict(kind, version, _size(input_bytes, declared), declared)

    def foresee(self, kind: str, version: int, input_bytes: int | None, declared: int | None) -> int | None:
        """Bytes that a job which waits will need, by what is known now; None when nothing is."""
        found = self.predict(kind, version, None, input_bytes, declared or 0)
        return found.need if found.samples else None

    def _predictor(self, kind: str, stage: str | None) -> Predictor:
        known = self._known.setdefault((kind, stage), _Known(Predictor()))
        if not known.read_at or time.monotonic() - known.read_at > SERVES:
            known.read_at = time.monotonic()
            try:
                seen = self.observations.newest(kind, stage)
            except DatabaseAway as error:
                log.warning("memory is predicted by what was known before: %s", error)
                return known.predictor
            if seen != known.seen:
                known.seen, known.predictor = seen, Predictor()
                sized = any(_size(one.input_bytes, one.declared) is not None for one in seen)
                for one in seen:
                    size = _size(one.input_bytes, one.declared)
                    if size is not None or not sized:
                        what = Observation(size, one.peak, one.seconds, one.killed)
                        known.predictor.learn(one.kind, one.version, what)
        return known.predictor


def _size(input_bytes: int | None, declared: int | None) -> int | None:
    """What the need depends on: the input; where that is not known, what the pipeline says of each job."""
    return declared if input_bytes is None else input_bytes
