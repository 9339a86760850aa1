"""Ways to decide how much memory a task gets: ours, and those that memory_replay.py compares it with."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from typing import Protocol

from memory_trace import Task

from ncr_worker.memory.predictor import Observation, Predictor


class Sizer(Protocol):
    learns: bool
    """Whether what it says of a kind changes when one of its tasks has ended."""

    def need(self, task: Task, failed: int = 0) -> int:
        """Bytes for the next attempt. `failed`: what an earlier one had, and that was too little."""

    def learn(self, task: Task) -> None:
        """The task has ended well."""

    def learn_failure(self, task: Task, had: int) -> None:
        """An attempt has ended for want of memory."""


class Ours:
    """What the worker ships."""

    learns = True

    def __init__(self) -> None:
        self.predictor = Predictor()

    def need(self, task: Task, failed: int = 0) -> int:
        return self.predictor.predict(task.kind, 1, task.input_bytes, task.preset, failed).need

    def learn(self, task: Task) -> None:
        self.predictor.learn(task.kind, 1, Observation(task.input_bytes, task.peak, task.seconds))

    def learn_failure(self, task: Task, had: int) -> None:
        self.predictor.learn(task.kind, 1, Observation(task.input_bytes, had, task.seconds, killed=True))


class Peer:
    """None of them learns from a failure, nor is its knowledge sought: they run in the order of the queue."""

    learns = False

    def learn(self, task: Task) -> None:
        return

    def learn_failure(self, task: Task, had: int) -> None:
        return


class Clairvoyant(Peer):
    """Knows what each task will need."""

    def need(self, task: Task, failed: int = 0) -> int:
        return task.peak


class Preset(Peer):
    """What the workflow asks for; after a failure twice that."""

    def need(self, task: Task, failed: int = 0) -> int:
        return 2 * failed or task.preset


class Percentile(Peer):
    """A share (0..1) of the peaks seen, interpolated; after a failure the largest seen, then twice that.

    The preset until one of the kind has ended. With 1.0: the largest seen.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._peaks: dict[str, list[int]] = defaultdict(list)

    def need(self, task: Task, failed: int = 0) -> int:
        peaks = self._peaks[task.kind]
        if failed:
            return peaks[-1] if peaks and peaks[-1] > failed else 2 * failed
        if not peaks:
            return task.preset
        place = self.share * (len(peaks) - 1)
        low = int(place)
        high = min(low + 1, len(peaks) - 1)
        return int(peaks[low] + (place - low) * (peaks[high] - peaks[low]))

    def learn(self, task: Task) -> None:
        insort(self._peaks[task.kind], task.peak)


class Tovar(Peer):
    """The first allocation that would have wasted least over all tasks seen, were the largest seen the second one.

    Tovar et al., A Job Sizing Strategy for High-Throughput Scientific Workflows, IEEE TPDS 29 (2), 2018. A failed
    attempt counts in full. Further failures double, and the preset serves until one of the kind has ended.
    """

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[int, float]]] = defaultdict(list)  # peak, seconds; by peak

    def need(self, task: Task, failed: int = 0) -> int:
        seen = self._seen[task.kind]
        if not seen:
            return 2 * failed or task.preset
        largest = seen[-1][0]
        if failed:
            return largest if largest > failed else 2 * failed
        whole = sum(seconds for _, seconds in seen)
        held = 0.0
        best = (float("inf"), largest)
        for peak, seconds in seen:
            held += seconds
            best = min(best, (peak * whole + largest * (whole - held), peak))
        return best[1]

    def learn(self, task: Task) -> None:
        seen = self._seen[task.kind]
        seen.insert(bisect_left(seen, (task.peak, task.seconds)), (task.peak, task.seconds))
