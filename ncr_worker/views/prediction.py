"""Why a job is expected to need so much memory: in plain words, and as figures to draw. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median_low
from typing import Any, Literal

from pydantic import BaseModel
from rich.filesize import decimal

from ncr_worker.memory.needs import Basis
from ncr_worker.memory.predictor import NOISE, Observation, Prediction

SAMPLES = 21  # of the curve
MEASURES = {"input_bytes": "input", "declared": "declared need"}
SKEWED = 30  # times the median: where the largest is more, even steps would press most of them into a corner


class EarlierJob(BaseModel):
    """`size`: bytes of its input, or declared of it; null: unknown. `killed`: for want of memory, it needed more."""

    size_bytes: int | None
    peak_bytes: int
    killed: bool


class CurvePoint(BaseModel):
    """What a job of this size needs: `line` as the curve says, `need` with its margin, which is reserved."""

    size_bytes: int
    line_bytes: int
    need_bytes: int


class SizeNeed(BaseModel):
    """What a job with so much input would get: as the smallest of the earlier jobs, the middle one, the largest."""

    name: Literal["smallest", "typical", "largest"]
    size_bytes: int
    need_bytes: int


class StageNeed(BaseModel):
    """What is held in one stage, by `jobs` earlier ones that ran it."""

    stage: str
    need_bytes: int
    jobs: int


class NeedExplanation(BaseModel):
    """What a job is expected to need by what is known now, and why.

    `measure`: what the need depends on, the bytes of input or what the pipeline declares of each job; null: neither is
    known. `size`: of this job, null: not known (yet). `base`: declared, largest (the only job so far), or the name of
    the curve: flat, line, neighbours; `margin_percent` and `margin_bytes` are on top of it. `jobs`: on so many it
    rests. `enough_for`: so many that ended stayed below what they would get now. `points`: earlier jobs, the last `own`
    of this `version`, those before of versions before. `curve`: from the smallest of them to the largest, or to this
    job; empty where nothing is to draw.
    """

    version: int
    need_bytes: int
    text: str
    measure: Literal["input_bytes", "declared"] | None
    size_bytes: int | None
    base: str
    jobs: int
    own: int
    enough_for: int
    margin_percent: float
    margin_bytes: int
    sizes: list[SizeNeed]
    stages: list[StageNeed]
    points: list[EarlierJob]
    curve: list[CurvePoint]


PREDICTION: dict[str, Any] = {
    "version": 2,
    "need_bytes": 1_000_000_000,
    "text": "it grows with the input, by a line, with 2 % and 33.6 MB on top: enough for 2 of 2 that ended",
    "measure": "input_bytes",
    "size_bytes": 300_000_000,
    "base": "line",
    "jobs": 2,
    "own": 2,
    "enough_for": 2,
    "margin_percent": 2.0,
    "margin_bytes": NOISE,
    "sizes": [
        {"name": "smallest", "size_bytes": 100_000_000, "need_bytes": 410_000_000},
        {"name": "typical", "size_bytes": 100_000_000, "need_bytes": 410_000_000},
        {"name": "largest", "size_bytes": 500_000_000, "need_bytes": 1_700_000_000},
    ],
    "stages": [{"stage": "pack", "need_bytes": 1_000_000_000, "jobs": 2}],
    "points": [
        {"size_bytes": 100_000_000, "peak_bytes": 350_000_000, "killed": False},
        {"size_bytes": 500_000_000, "peak_bytes": 1_600_000_000, "killed": False},
    ],
    "curve": [{"size_bytes": 300_000_000, "line_bytes": 950_000_000, "need_bytes": 1_000_000_000}],
}


def explained(basis: Basis, version: int, stages: Mapping[str, Prediction]) -> NeedExplanation:
    """`stages`: of each that was run before, its own prediction."""
    found, seen = basis.prediction, [*basis.fit.earlier, *basis.fit.own]
    sizes = sorted(one.input_bytes for one in seen if one.input_bytes is not None)
    drawn = found.line is not None and len(set(sizes)) > 1
    typical = median_low(sizes) if drawn else None
    stayed = _stayed(basis, by_size=basis.size is not None and drawn)
    return NeedExplanation(
        version=version,
        need_bytes=found.need,
        text=_words(basis, sizes if drawn else (), stayed) + _besides(basis),
        measure=basis.measure,
        size_bytes=basis.size,
        base=found.base,
        jobs=found.samples,
        own=len(basis.fit.own),
        enough_for=stayed,
        margin_percent=round(100 * found.margin, 2),
        margin_bytes=NOISE if found.samples else 0,
        sizes=[] if typical is None else list(_sizes(basis, sizes[0], typical, sizes[-1])),
        stages=[StageNeed(stage=name, need_bytes=each.need, jobs=each.samples) for name, each in stages.items()],
        points=[_point(one) for one in seen],
        curve=_curve(basis, sizes) if drawn else [],
    )


def skewed(values: Sequence[int]) -> bool:
    """Whether they are to be drawn by their ratios."""
    return min(values) > 0 and max(values) > SKEWED * median_low(values)


def _point(one: Observation) -> EarlierJob:
    return EarlierJob(size_bytes=one.input_bytes, peak_bytes=one.peak, killed=one.killed)


def _sizes(basis: Basis, smallest: int, typical: int, largest: int) -> Iterator[SizeNeed]:
    yield SizeNeed(name="smallest", size_bytes=smallest, need_bytes=basis.fit.predict(smallest, 0).need)
    yield SizeNeed(name="typical", size_bytes=typical, need_bytes=basis.fit.predict(typical, 0).need)
    yield SizeNeed(name="largest", size_bytes=largest, need_bytes=basis.fit.predict(largest, 0).need)


def _curve(basis: Basis, sizes: Sequence[int]) -> list[CurvePoint]:
    """From the smallest to the largest of `sizes`, or to this job's where that is farther out."""
    ends = [*sizes, *([] if basis.size is None else [basis.size])]
    low, high = min(ends), max(ends)
    steps = [step / (SAMPLES - 1) for step in range(SAMPLES)]
    at = [low * (high / low) ** step if skewed(ends) else low + (high - low) * step for step in steps]
    told = [(round(size), basis.fit.predict(round(size), 0)) for size in at]
    return [CurvePoint(size_bytes=size, line_bytes=each.line or 0, need_bytes=each.need) for size, each in told]


def _stayed(basis: Basis, *, by_size: bool) -> int:
    """How many of the earlier jobs stayed below what they would get now."""
    need, fit = basis.prediction.need, basis.fit
    ended = (one for one in (*fit.earlier, *fit.own) if not one.killed)
    return sum(one.peak <= (fit.predict(one.input_bytes, 0).need if by_size else need) for one in ended)


def _words(basis: Basis, sizes: Sequence[int], stayed: int) -> str:
    """`sizes`: of earlier jobs, sorted, where they are known and differ. `stayed`: jobs it is enough for."""
    found = basis.prediction
    if not found.samples:
        reason = "MEMORY_PREDICTION=declared" if basis.fit.samples else "no job of this kind has ended yet"
        return f"it is declared by its pipeline ({reason})"
    if found.line is None:
        known = f" whose {MEASURES[basis.measure]} is known" if basis.measure and basis.fit.samples > 1 else ""
        return f"it is the peak of the only job so far{known}{_margin(found)}"
    whole = f"the same for all{_margin(found)}: {_enough(basis, stayed)}"
    if basis.measure is None:
        return f"nothing is known of their input, so it is {whole}"
    measure = MEASURES[basis.measure]
    curve, end = (basis.fit.predict(size, 0) for size in (sizes[0], sizes[-1])) if sizes else (found, found)
    if curve.base == "flat":
        if basis.size is not None or curve.need == found.need:
            return f"the {measure} tells nothing, so it is {whole}"
        how = f"it is the same for all whose {measure} is known"
    elif curve.base == "neighbours":
        how = f"it is the largest peak of the jobs with the nearest {measure}, times a factor"
    else:
        falls = (end.line or 0) < (curve.line or 0)
        how = f"it {'falls as' if falls else 'grows with'} the {measure}{' grows' if falls else ''}, by a line"
    text = f"{how}{_margin(curve)}: {_enough(basis, _stayed(basis, by_size=True))}"
    return f"{text}. As long as the {measure} is not known it is {whole}" if basis.size is None else text


def _besides(basis: Basis) -> str:
    """What the curve does not tell."""
    found, fit = basis.prediction, basis.fit
    text = ""
    if found.guessed:
        text += ". Attempts that ran out of memory are taken to have needed twice what they used"
    if found.samples and found.need < fit.predict(basis.size, 0).need:
        text += ". It is no more than the largest worker host has"
    return text


def _enough(basis: Basis, stayed: int) -> str:
    ended = sum(not one.killed for one in (*basis.fit.earlier, *basis.fit.own))
    return f"enough for {stayed} of {ended} that ended"


def _margin(found: Prediction) -> str:
    percent = f"{100 * found.margin:g} % and " if found.margin else ""
    return f", with {percent}{decimal(NOISE)} on top"
