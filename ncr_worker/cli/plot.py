"""A small plot for the terminal: what earlier jobs took, and the line by which memory is reserved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter

from rich.filesize import decimal
from rich.text import Text

from ncr_worker.views.prediction import MEASURES, NeedExplanation, skewed

WIDTH, HEIGHT, LABELS = 80, 13, 9
"""Characters of the whole, at most; of its height, without axis and legend; of the figures at its left."""
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a braille character: by column, then row
LINE, DIM, OWN, BAD = "cyan", "dim", "bold yellow", "bold red"
JOB, JOBS, KILLED, RESERVED, USED = ("•", ""), ("●", ""), ("✕", BAD), ("◇", OWN), ("◆", OWN)
MARKS = {JOB: "a job", JOBS: "several", KILLED: "ran out of memory", RESERVED: "its reservation", USED: "its peak"}
NEED, CURVE = ("⠤⠤", LINE), ("⠄⠠", LINE)


@dataclass(frozen=True, slots=True)
class Axis:
    """`dots` from `low` to `high`. `ratios`: equal steps are equal ratios."""

    low: int
    high: int
    dots: int
    ratios: bool

    @classmethod
    def over(cls, values: Sequence[int], dots: int) -> Axis:
        """Wide enough for all; from 0 on where that costs no more than half of it."""
        low, high, ratios = min(values), max(values), skewed(values)
        return cls(0 if not ratios and 2 * low <= high else low, max(high, low + 1), dots, ratios)

    def dot(self, value: int) -> int:
        part = (value - self.low) / (self.high - self.low)
        if self.ratios:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        return round((self.dots - 1) * part)


class Plot:
    """`found`: one with a curve. `reserved`, `used`: of the job itself, in bytes."""

    def __init__(self, found: NeedExplanation, width: int, reserved: int | None, used: int | None) -> None:
        self.name = MEASURES[found.measure or "input_bytes"]
        self.columns = max(min(width, WIDTH) - LABELS - 1, LABELS)
        jobs = [(one.size_bytes, one.peak_bytes, one.killed) for one in found.points if one.size_bytes is not None]
        own = [(found.size_bytes, size, mark) for size, mark in ((reserved, RESERVED), (used, USED))]
        mine = [(size, bytes_, mark) for size, bytes_, mark in own if size is not None and bytes_]
        points = [(size, bytes_) for size, bytes_, _ in (*jobs, *mine)]
        need = [(one.size_bytes, one.need_bytes) for one in found.curve]
        line = [(one.size_bytes, one.line_bytes) for one in found.curve]
        self.x = Axis.over([x for x, _ in points + need], 2 * self.columns)
        self.y = Axis.over([y for _, y in points + need + line], 4 * HEIGHT)
        there = Counter(self._cell(size, peak) for size, peak, _ in jobs)
        self.marks = {cell: JOBS if number > 1 else JOB for cell, number in there.items()}
        self.marks |= {self._cell(size, peak): KILLED for size, peak, killed in jobs if killed}
        self.marks |= {self._cell(size, bytes_): mark for size, bytes_, mark in mine}
        self.dots = Counter[tuple[int, int]]()
        for curve, every in ((need, 1), (line, 4)):
            for number, (x, y) in enumerate(self._stroke(curve)):
                if number % every == 0:
                    self.dots[x // 2, y // 4] |= DOTS[x % 2][3 - y % 4]

    def lines(self) -> Iterator[Text]:
        yield Text(f"{'peak':>{LABELS}}{_scale(self.y)}", DIM)
        ends = {HEIGHT - 1: self.y.high, 0: self.y.low}
        for row in reversed(range(HEIGHT)):
            label = f"{decimal(ends[row]):>{LABELS}}┤" if row in ends else f"{'│':>{LABELS + 1}}"
            cells = groupby((self._at(column, row) for column in range(self.columns)), itemgetter(1))
            yield Text.assemble((label, DIM), *(("".join(char for char, _ in same), style) for style, same in cells))
        left, right, name = decimal(self.x.low), decimal(self.x.high), self.name + _scale(self.x)
        yield Text(f"{'└':>{LABELS + 1}}{'─' * self.columns}", DIM)
        name = name.center(self.columns - len(left) - len(right))
        yield Text(f"{'':{LABELS + 1}}{left}{name}{right}", DIM)
        there = set(self.marks.values())
        marks = {mark: text for mark, text in MARKS.items() if mark in there}
        for legend in (marks, {NEED: "what a job gets", CURVE: "the same without its margin"}):
            keys = Text("  ").join(Text.assemble(mark, f" {text}") for mark, text in legend.items())
            yield Text(" " * (LABELS + 1)) + keys

    def _at(self, column: int, row: int) -> tuple[str, str]:
        dots = self.dots[column, row]
        return self.marks.get((column, row)) or ((chr(0x2800 + dots), LINE) if dots else (" ", ""))

    def _cell(self, size: int, bytes_: int) -> tuple[int, int]:
        return self.x.dot(size) // 2, self.y.dot(bytes_) // 4

    def _stroke(self, curve: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """The dots from point to point, each beside the one before."""
        for (x1, y1), (x2, y2) in pairwise((self.x.dot(size), self.y.dot(bytes_)) for size, bytes_ in curve):
            steps = max(abs(x2 - x1), abs(y2 - y1), 1)
            for step in range(steps + 1):
                yield x1 + round((x2 - x1) * step / steps), y1 + round((y2 - y1) * step / steps)


def _scale(axis: Axis) -> str:
    return " (equal steps: equal ratios)" if axis.ratios else ""
