"""Curves of peak memory over input bytes, each with what it says of every job when fitted without that job. Pure."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import mul, truediv

NEIGHBOURS = 3
CURVED = 8  # points that power and neighbours take
ALONE = 1e-4  # of a point's own say in its fit: less is left to the others, and without it there is no line


@dataclass(frozen=True, slots=True)
class Curve:
    """`at`: input bytes -> bytes, up to a factor. `left_out`: what it says of each point when fitted without it."""

    name: str
    at: Callable[[float], float]
    left_out: Sequence[float]


def curves(inputs: Sequence[int | None], peaks: Sequence[int], exact: Sequence[bool]) -> Iterator[Curve]:
    """The flat one first; the others where all inputs are known, and differ. Peaks > 0.

    `exact`: False where the peak is only a lower bound. No line is drawn through such a point.
    """
    yield Curve("flat", lambda _: 1.0, [1.0] * len(peaks))
    known = [float(each) for each in inputs if each is not None]
    if len(known) < max(len(inputs), 3) or sum(exact) < 3 or min(known) == max(known):
        return
    low, high = min(peaks) / 2, max(peaks) * 4  # a line goes on for ever, memory does not

    def bounded(line: float) -> float:
        return low if line < low else high if line > high else line

    counted = [float(each) for each in exact]
    for name, weights in (("line", counted), ("relative line", list(map(truediv, counted, peaks)))):
        at, left_out = _least_squares(known, peaks, weights)
        yield Curve(name, _then(at, bounded), [bounded(each) for each in left_out])
    if sum(exact) < CURVED:
        return
    logs = [math.log1p(each) for each in known]
    at, left_out = _least_squares(logs, [math.log(each) for each in peaks], counted)
    least, most = math.log(low), math.log(high)

    def power(exponent: float) -> float:
        return math.exp(least if exponent < least else most if exponent > most else exponent)

    yield Curve("power", lambda given: power(at(math.log1p(given))), [power(each) for each in left_out])
    yield _neighbours(logs, peaks)


def _then(first: Callable[[float], float], second: Callable[[float], float]) -> Callable[[float], float]:
    return lambda given: second(first(given))


def _least_squares(
    xs: Sequence[float], ys: Sequence[float], weights: Sequence[float]
) -> tuple[Callable[[float], float], list[float]]:
    """A weighted line, and what it says of each point without that point: in closed form, by the point's leverage."""
    whole = sum(weights)
    middle_x = sum(map(mul, weights, xs)) / whole
    middle_y = sum(map(mul, weights, ys)) / whole
    offsets = [x - middle_x for x in xs]
    weighted = list(map(mul, weights, offsets))
    spread = sum(map(mul, weighted, offsets))
    slope = sum(map(mul, weighted, ys)) / spread if spread else 0.0
    left_out = []
    for y, weight, offset in zip(ys, weights, offsets, strict=True):
        rest = 1 - weight / whole - (weight * offset * offset / spread if spread else 0.0)
        fitted = middle_y + slope * offset
        left_out.append(y - (y - fitted) / rest if rest > ALONE else middle_y)
    return lambda x: middle_y + slope * (x - middle_x), left_out


def _neighbours(logs: Sequence[float], peaks: Sequence[int]) -> Curve:
    """The largest peak among the jobs with the nearest inputs, by ratio."""
    order = sorted(range(len(logs)), key=logs.__getitem__)
    xs = [logs[index] for index in order]
    ys = [float(peaks[index]) for index in order]

    def largest(x: float, left: int, right: int) -> float:
        """Of those outwards from `left` and `right`, both included."""
        found = 0.0
        for _ in range(NEIGHBOURS):
            if right >= len(xs) or (left >= 0 and x - xs[left] <= xs[right] - x):
                found = max(found, ys[left])
                left -= 1
            else:
                found = max(found, ys[right])
                right += 1
        return found

    left_out = [0.0] * len(xs)
    for place, index in enumerate(order):
        left_out[index] = largest(xs[place], place - 1, place + 1)

    def at(given: float) -> float:
        x = math.log1p(given)
        place = bisect_right(xs, x)
        return largest(x, place - 1, place)

    return Curve("neighbours", at, left_out)
