"""How much memory a job will need, learned from earlier jobs of its kind. Pure: history in, a number out.

The need is a factor times a curve over the job's input bytes. Several curves are fitted, and for each every factor
that would just have held one of the earlier jobs is tried, with several margins. What would have cost least decides:
too much reserved is paid for as long as the job ran, a failed attempt ten times over. Each earlier job is judged by
what would have been chosen without it, or the closest fit would always look the best.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice, takewhile
from operator import itemgetter

from ncr_worker.growth import MARGIN, grown
from ncr_worker.memory.curves import BEYOND, Curve, curves

KEPT = 200  # observations of one version
PRIOR = 20  # observations below which a version leans on its predecessors
FAILURE = 10.0  # times a failed attempt's byte-seconds: it also holds a slot, and its retry delays what comes after
MARGINS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
FIRST = 0.1  # margin while one job is all that is known
NOISE = 16 << 20  # bytes by which two runs of the same work differ: allocators, buffers, the order of threads
RANKS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24)  # of the largest ratios, as factors: more failures are never worth it
STALE = 8  # one part of so many that is new makes a fit anew


@dataclass(frozen=True, slots=True)
class Observation:
    """One attempt. `peak`: bytes. `seconds`: how long it ran. `killed`: for memory; it needed more."""

    input_bytes: int | None
    peak: int
    seconds: float
    killed: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """`need`: bytes. `base`: name of the curve, or declared, largest, doubled. `quantile`: share (0..1) of the earlier
    jobs that factor times curve holds before `margin` (0.05: 5 %). `samples`: what it rests on. `why`: plain words.
    `line`: bytes that factor times curve says, without `margin` and NOISE; None where there is no curve. `guessed`: it
    rests on attempts that were ended too, of which nobody knows what they would have needed."""

    need: int
    base: str
    quantile: float
    margin: float
    samples: int
    why: str
    line: int | None = None
    guessed: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """`rank`: so many of the `samples` are above factor times curve. `cost`: byte-seconds."""

    cost: float
    curve: Curve
    factor: float
    rank: int
    margin: float
    samples: int


class Fit:
    """What a history says. `earlier`: of versions before it; the more of its own there are, the less they count.

    A job whose input is known is judged by those of which it is known too; another one by all.
    """

    def __init__(self, own: Sequence[Observation], earlier: Sequence[Observation] = ()) -> None:
        self.own, self.earlier = tuple(own), tuple(earlier)
        self._seen = seen = max((each.peak for each in chain(earlier, own) if not each.killed), default=0)
        weighted = chain(((each, 1 / (1 + len(own))) for each in earlier), ((each, 1.0) for each in own))
        told = [(each, weight) for each, weight in weighted if not each.killed or each.peak > seen]
        history, weights = [each for each, _ in told], [weight for _, weight in told]
        # How much more a killed one needed is unknown until another that needed as much has ended: twice, as its retry.
        peaks = [max(2 * each.peak if each.killed else each.peak, 1) for each in history]
        times = [max(each.seconds, 1e-3) * weight for each, weight in zip(history, weights, strict=True)]
        rows = list(zip(history, peaks, times, strict=True))
        known = [row for row in rows if row[0].input_bytes is not None]
        self._all = _Judges(rows)
        self._known = _Judges(known) if 0 < len(known) < len(rows) else self._all
        self._most = BEYOND * max(peaks, default=0)

    @property
    def samples(self) -> int:
        """Earlier attempts that tell something."""
        return self._all.samples

    def predict(self, input_bytes: int | None, declared: int, failed: int = 0) -> Prediction:
        """`declared`: bytes that the kind asks for, the answer while nothing is known.

        `failed`: bytes that an earlier attempt of this job had, and that were too few.
        """
        if failed:
            return self._again(failed, declared)
        judges = self._judges(input_bytes)
        choice = judges.flat if input_bytes is None else judges.best
        if choice is not None:
            return self._learned(choice, float(input_bytes or 0), judges.guesses)
        if judges.samples:
            known = " whose input is known" if self.samples > 1 else ""
            need = int(judges.first * (1 + FIRST)) + NOISE
            why = f"the peak of the only job so far{known}, and {FIRST:.0%}"
            return Prediction(need, "largest", 1.0, FIRST, 1, why, guessed=judges.guesses)
        return Prediction(declared, "declared", 1.0, 0.0, 0, "as declared: no job of this kind has ended yet")

    def outdated(self, news: int, last: Observation) -> bool:
        """Whether a new fit is worth its time. `news`: observations since this one, of which `last` is the last."""
        if self._all.guesses or last.killed or news * STALE > self._judges(last.input_bytes).samples:
            return True
        return last.peak > self.predict(last.input_bytes, 0).need

    def _judges(self, input_bytes: int | None) -> _Judges:
        return self._all if input_bytes is None else self._known

    def _learned(self, choice: Choice, given: float, guessed: bool) -> Prediction:
        line = min(choice.factor * choice.curve.at(given), self._most)
        need = int(line * (1 + choice.margin)) + NOISE
        quantile = 1 - choice.rank / choice.samples
        why = f"{choice.curve.name} that holds {quantile:.0%} of {choice.samples} jobs, and {choice.margin:.1%}"
        figures = (quantile, choice.margin, choice.samples)
        return Prediction(need, choice.curve.name, *figures, why, int(line), guessed)

    def _again(self, failed: int, declared: int) -> Prediction:
        need = grown(failed, failed, self._seen, declared)
        if need == 2 * failed:
            base, why = "doubled", "twice that"
        elif failed > 2 * self._seen:
            base, why = "declared", f"half way to {declared:,} as declared"
        else:
            base, why = "largest", f"the largest peak so far, and {MARGIN:.0%}"
        return Prediction(need, base, 1.0, MARGIN, self.samples, f"{failed:,} bytes were too few: {why}")


@dataclass(slots=True)
class _Known:
    """One version of a kind."""

    recent: deque[Observation] = field(default_factory=lambda: deque(maxlen=KEPT))
    fit: Fit | None = None
    news: int = 0  # since the fit


class Predictor:
    """Learns online, per kind and version. A version with few jobs of its own leans on those before it.

    Not safe to share between threads.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, dict[int, _Known]] = {}

    def learn(self, kind: str, version: int, observation: Observation) -> None:
        """Call it in the order in which the jobs ended."""
        self._known(kind, version).recent.append(observation)
        for known in self._kinds[kind].values():
            known.news += 1
            if known.fit and known.fit.outdated(known.news, observation):
                known.fit = None

    def predict(self, kind: str, version: int, input_bytes: int | None, declared: int, failed: int = 0) -> Prediction:
        """As Fit.predict. Microseconds, and a millisecond when what was learned of the kind asks for a new fit."""
        return self.fit(kind, version).predict(input_bytes, declared, failed)

    def fit(self, kind: str, version: int) -> Fit:
        known = self._known(kind, version)
        if known.fit is None:
            known.fit, known.news = self._fit(kind, version), 0
        return known.fit

    def _known(self, kind: str, version: int) -> _Known:
        return self._kinds.setdefault(kind, {}).setdefault(version, _Known())

    def _fit(self, kind: str, version: int) -> Fit:
        versions = self._kinds[kind]
        own = versions[version].recent
        earlier = (reversed(versions[each].recent) for each in sorted(versions, reverse=True) if each < version)
        prior = list(islice(chain.from_iterable(earlier), max(PRIOR - len(own), 0)))
        return Fit(own, prior[::-1])


class _Judges:
    """Earlier attempts that a job is judged by. `rows`: each with its peak, bytes, and weighted seconds.

    `flat`, `best`: of more than one, the flat choice and the one that would have cost least. `first`: the first peak.
    """

    def __init__(self, rows: Sequence[tuple[Observation, int, float]]) -> None:
        self.samples = len(rows)
        self.guesses = any(each.killed for each, _, _ in rows)
        self.first = rows[0][1] if rows else 0
        self.flat: Choice | None = None
        self.best: Choice | None = None
        if len(rows) > 1:
            history, peaks, times = zip(*rows, strict=True)
            found = curves([each.input_bytes for each in history], peaks, [not each.killed for each in history])
            choices = [_cheapest(curve, peaks, times) for curve in found]
            self.flat, self.best = choices[0], min(choices, key=lambda choice: choice.cost)


def _cheapest(curve: Curve, peaks: Sequence[int], times: Sequence[float]) -> Choice:
    """The factor and margin that would have cost least. `times`: seconds of each job, weighted.

    Sorted by falling ratio of peak to curve, the factor of rank k is the k-th ratio: k jobs lie above it. Without one
    of the first k + 1 jobs it would have been the next ratio. Running sums make each trial cheap.
    """
    largest = max(peaks)
    rows = sorted(
        (
            (peak / line, line * time, peak * time, (largest - peak + FAILURE * peak) * time)
            for peak, line, time in zip(peaks, curve.left_out, times, strict=True)
        ),
        reverse=True,
    )
    rising = [-row[0] for row in rows]
    lines, used, lost = ([0.0, *accumulate(map(itemgetter(column), rows))] for column in (1, 2, 3))
    best = (math.inf, 0, 0.0)
    for rank in takewhile(lambda rank: rank < len(rows) - 1, RANKS):
        factor, without, head = rows[rank][0], rows[rank + 1][0], rank + 1
        tail = factor * (lines[-1] - lines[head])
        for margin in MARGINS:
            failed = bisect_left(rising, -without * (1 + margin), 0, head)
            reserved = (1 + margin) * (tail + without * (lines[head] - lines[failed]))
            cost = reserved - (used[-1] - used[failed]) + lost[failed]
            if cost < best[0]:
                best = (cost, rank, margin)
    cost, rank, margin = best
    return Choice(cost, curve, rows[rank][0], rank, margin, len(rows))
