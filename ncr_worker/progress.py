"""How far a job is: stage weights -> percent, rate, time left. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Figures of the stage that runs now. `seconds`: since this stage began (monotonic).

    Changed in place: it is told thousands of times a second.
    """

    stage: str | None = None
    files: int = 0
    total_files: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    current_file: str = ""
    seconds: float = 0.0

    @property
    def fraction(self) -> float:
        """0..1 of the stage: by bytes where known, else by files."""
        done, total = (self.bytes_done, self.bytes_total) if self.bytes_total else (self.files, self.total_files)
        return min(done / total, 1.0) if total else 0.0

    @property
    def rate(self) -> float:
        """Bytes a second in this stage."""
        return self.bytes_done / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta(self) -> float | None:
        """Seconds this stage still needs at its rate so far; None while unknown."""
        return (self.bytes_total - self.bytes_done) / self.rate if self.rate and self.bytes_total else None


def percent(weights: Sequence[tuple[str, float]], stage: str | None, fraction: float) -> float:
    """0..100 over all stages: those before `stage` count whole, `stage` counts by `fraction`.

    `weights`: (stage name, weight) in order. An unknown stage is 0.
    """
    total = sum(weight for _, weight in weights)
    done = 0.0
    for name, weight in weights:
        if name == stage:
            return round(100 * (done + weight * min(max(fraction, 0.0), 1.0)) / total, 1)
        done += weight
    return 0.0
