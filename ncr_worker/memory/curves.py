"""Curves of peak memory over input bytes, each with what it says of every job when fitted without that job. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import mul

SIDE = 3  # neighbours on each side
CROWD = 10  # points below which they are no neighbours
BEYOND = 4  # times the largest peak: a line goes on for ever, memory does not
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
    low, high = min(peaks) / 2, max(peaks) * BEYOND

    def bounded(line: float) -> float:
        return low if line < low else high if line > high else line

    at, left_out = _least_squares(known, peaks, [each / peak for each, peak in zip(exact, peaks, strict=True)])
    yield Curve("line", lambda given: bounded(at(given)), [bounded(each) for each in left_out])
    if len(known) >= CROWD:
        yield _neighbours(known, peaks)


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


def _neighbours(inputs: Sequence[float], peaks: Sequence[int]) -> Curve:
    """The largest peak among the jobs whose inputs come next, on both sides."""
    order = sorted(range(len(inputs)), key=inputs.__getitem__)
    xs = [inputs[index] for index in order]
    ys = [float(peaks[index]) for index in order]
    left_out = [0.0] * len(xs)
    for place, index in enumerate(order):
        left_out[index] = max(ys[max(place - SIDE, 0) : place] + ys[place + 1 : place + 1 + SIDE])

    def at(given: float) -> float:
        place = bisect_right(xs, given)
        return max(ys[max(place - SIDE, 0) : place + SIDE])

    return Curve("neighbours", at, left_out)
