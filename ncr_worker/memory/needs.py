"""How much memory to reserve: what a pipeline declares, until its earlier jobs tell it better."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ncr_worker.ledger.hosts import LARGEST
from ncr_worker.ledger.observations import KEPT, Observations, Seen
from ncr_worker.memory.predictor import Fit, Observation, Prediction, Predictor
from ncr_worker.sql import Database, DatabaseAway

log = logging.getLogger(__name__)

MEASURES = ("input_bytes", "declared")
SERVES = 1.0  # seconds for which what was read of the ledger serves: one job more or less changes little,
FEW = 20  # ... unless they are but so few
SERVES_FEW = 0.2


@dataclass(slots=True)
class _Known:
    """One stage of a kind. `seen`: its newest runs; `last`: the id up to which they were read.

    `measure`: what the need depends on. The input; where no job has told its own, what the pipeline says of each job.
    Never both: they are no points of one curve. None where neither is known.
    """

    seen: deque[Seen] = field(default_factory=lambda: deque(maxlen=KEPT))
    last: int = 0
    read_at: float = -math.inf  # monotonic seconds
    measure: str | None = None
    predictor: Predictor = field(default_factory=Predictor)

    def learn(self, news: Sequence[Seen]) -> None:
        self.seen += news
        known = (each for each in MEASURES if any(getattr(one, each) is not None for one in self.seen))
        if self.measure != (measure := next(known, None)):
            self.measure, self.predictor, news = measure, Predictor(), list(self.seen)
        for one in news:
            size = self.size(one.input_bytes, one.declared)
            self.predictor.learn(one.kind, one.version, Observation(size, one.peak, one.seconds, one.killed))

    def size(self, input_bytes: int | None, declared: int | None) -> int | None:
        return {"input_bytes": input_bytes, "declared": declared}.get(self.measure or "")


@dataclass(frozen=True, slots=True)
class Basis:
    """A prediction and what it rests on. `measure`: as in _Known; `size`: this job's by that measure, in bytes."""

    prediction: Prediction
    fit: Fit
    measure: str | None
    size: int | None


class Needs:
    """`learned`: whether what was observed counts at all. Safe to share between threads."""

    def __init__(self, database: Database, *, learned: bool) -> None:
        self.observations = Observations(database)
        self.learned = learned
        self._known: dict[tuple[str, str | None], _Known] = {}
        self._largest_host = 0  # bytes
        self._looked_at = -math.inf  # monotonic seconds
        self._lock = threading.Lock()

    def predict(self, kind: str, version: int, stage: str | None, input_bytes: int | None, declared: int) -> Prediction:
        """For a stage of a kind, or for a whole job (`stage` None). All sizes in bytes.

        While the database is away: by what is known.
        """
        return self._possible(self._predict(kind, version, stage, input_bytes, declared))

    def _predict(
        self, kind: str, version: int, stage: str | None, input_bytes: int | None, declared: int
    ) -> Prediction:
        """As `predict`, be it more than any host has."""
        if not self.learned:
            return Prediction(declared, "declared", 1.0, 0.0, 0, "as declared (MEMORY_PREDICTION=declared)")
        with self._lock:
            known = self._read(kind, stage)
            return known.predictor.predict(kind, version, known.size(input_bytes, declared), declared)

    def basis(self, kind: str, version: int, stage: str | None, input_bytes: int | None, declared: int) -> Basis:
        """As `predict`, with what it rests on: for people."""
        found = self.predict(kind, version, stage, input_bytes, declared)
        with self._lock:
            known = self._read(kind, stage)
            fit, size = known.predictor.fit(kind, version), known.size(input_bytes, declared)
        return Basis(found, fit, known.measure, size)

    def at_submit(self, kind: str, version: int, input_bytes: int | None, declared: int) -> int:
        """Bytes that a new job is judged by: it may be refused for what others of its kind needed, not for a guess."""
        found = self._predict(kind, version, None, input_bytes, declared)
        if found.guessed:
            return declared
        return found.need if (found.line or 0) > self._largest_host else self._possible(found).need

    def foresee(self, kind: str, version: int, input_bytes: int | None, declared: int | None) -> int | None:
        """Bytes that a job which waits will need, by what is known now; None when nothing is."""
        found = self.predict(kind, version, None, input_bytes, declared or 0)
        return found.need if found.samples else None

    def _possible(self, found: Prediction) -> Prediction:
        """No prediction denies a job that was taken in the largest host: it may have that once, alone."""
        most = self._largest_host
        if not most or not found.samples or found.need <= most:
            return found
        return replace(found, need=most, why=f"{found.why}; no more than the largest worker host has")

    def _read(self, kind: str, stage: str | None) -> _Known:
        known = self._known.setdefault((kind, stage), _Known())
        if time.monotonic() - known.read_at > (SERVES if len(known.seen) > FEW else SERVES_FEW):
            known.read_at = time.monotonic()
            try:
                self._look_at_hosts()
                known.last, news = self.observations.since(kind, stage, known.last)
            except DatabaseAway as error:
                log.warning("memory is predicted by what was known before: %s", error)
            else:
                known.learn(news)
        return known

    def _look_at_hosts(self) -> None:
        """Once for all kinds and stages: hosts seldom come and go."""
        if time.monotonic() - self._looked_at > SERVES:
            self._largest_host = self.observations.database.read(lambda c: c.execute(LARGEST).scalar_one()) or 0
            self._looked_at = time.monotonic()
