"""What a whole run will take, from a trial of some of its blocks.

A trial runs blocks as the run would have them, so a block is the unit that was drawn at random: every figure
is a sum over blocks divided by their rows, with the range in which it lies nine times out of ten if blocks
differ as those of the trial did. The stage that needs the most time per row, divided by its workers, is the
one that all others wait for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CPU_STAGES = ("prepare", "write")
MODEL_STAGES = ("sample", "rank")
_Z = 1.6449  # of the normal distribution: 5% lie above


@dataclass(frozen=True)
class Range:
    """An expected value, and the bounds of its 90% interval."""

    expected: float
    low: float
    high: float

    def scaled(self, factor: float, offset: float = 0.0) -> "Range":
        """`offset + factor * value`."""
        return Range(*(offset + factor * value for value in (self.expected, self.low, self.high)))


@dataclass(frozen=True)
class TrialBlock:
    """What one block of the trial took and gave. Rows that failed count as rows, with nothing to show."""

    rows: int
    failed: int
    candidates: int  # stored ones
    best_s: float  # speech of the best candidates
    all_s: float  # speech of all stored candidates
    num_bytes: float  # of output
    seconds: Mapping[str, float]  # of one worker, by stage; stages that were still warming up are left out


@dataclass(frozen=True)
class Trial:
    """A trial of a run of `num_rows` rows. `startup_s`: from the beginning to the first block, its own time
    not counted."""

    num_rows: int
    blocks: Sequence[TrialBlock]
    startup_s: float


@dataclass(frozen=True)
class Fleet:
    """What the run will have: workers of each stage, and devices that are paid for.

    CPU stages that are not in `workers` get as many cores as they need.
    """

    workers: Mapping[str, float]
    devices: float  # GPUs, or CPU cores where there are none
    is_gpu: bool


@dataclass(frozen=True)
class StageLoad:
    """A stage: seconds of one worker per row, its workers, and how much of the run they are busy."""

    name: str
    seconds: Range
    workers: float
    busy: float


@dataclass(frozen=True)
class Forecast:
    """A run as it will be. Hours are of speech; `device_s` is time of GPUs, or of cores without GPUs."""

    num_rows: int
    failed: Range
    candidates: Range
    best_hours: Range
    all_hours: Range
    num_bytes: Range
    wall_s: Range
    device_s: Range
    feeding_cores: float  # CPU cores that keep up with the rest
    limit: str  # the stage that all others wait for
    loads: tuple[StageLoad, ...]


def forecast(trial: Trial, fleet: Fleet) -> Forecast:
    """Raises ValueError when the trial brought no block to an end."""
    if not trial.blocks:
        raise ValueError("a trial without blocks tells nothing")

    def total(amount: Callable[[TrialBlock], float], factor: float = 1.0) -> Range:
        return _per_row(trial.blocks, amount).scaled(trial.num_rows * factor)

    stages = list(dict.fromkeys(name for block in trial.blocks for name in block.seconds))
    seconds = {name: _stage_seconds(trial.blocks, name) for name in stages}
    per_row = {
        name: value.scaled(1 / fleet.workers[name])
        for name, value in seconds.items()
        if name in fleet.workers
    }
    limit = max(per_row, key=lambda name: per_row[name].expected)
    pace = per_row[limit]
    wall = pace.scaled(trial.num_rows, trial.startup_s + _latency(trial, limit))
    feeding = sum(seconds[name].expected for name in CPU_STAGES if name in seconds)
    return Forecast(
        trial.num_rows,
        _failed(trial).scaled(trial.num_rows),
        total(lambda block: block.candidates),
        total(lambda block: block.best_s, 1 / 3600),
        total(lambda block: block.all_s, 1 / 3600),
        total(lambda block: block.num_bytes),
        wall,
        wall.scaled(fleet.devices),
        feeding / pace.expected,
        limit,
        tuple(_load(name, seconds[name], fleet, pace) for name in stages),
    )


def _failed(trial: Trial) -> Range:
    """Share of rows that fail. None in the trial does not mean none at all."""
    share = _per_row(trial.blocks, lambda block: block.failed)
    if share.expected:
        return share
    return Range(0.0, 0.0, 1 - 0.05 ** (1 / sum(block.rows for block in trial.blocks)))


def _load(name: str, seconds: Range, fleet: Fleet, pace: Range) -> StageLoad:
    needed = seconds.expected / max(pace.expected, 1e-12)
    workers = fleet.workers.get(name, math.ceil(needed))
    return StageLoad(name, seconds, workers, needed / max(workers, 1e-12))


def _latency(trial: Trial, limit: str) -> float:
    """Time of one block in the other stages: of the first before the limit, of the last after it."""
    others = [sum(s for name, s in block.seconds.items() if name != limit) for block in trial.blocks]
    return float(np.mean(others))


def _stage_seconds(blocks: Sequence[TrialBlock], name: str) -> Range:
    return _per_row([block for block in blocks if name in block.seconds], lambda block: block.seconds[name])


def _per_row(blocks: Sequence[TrialBlock], amount: Callable[[TrialBlock], float]) -> Range:
    return ratio([amount(block) for block in blocks], [block.rows for block in blocks])


def ratio(amounts: Sequence[float], rows: Sequence[int]) -> Range:
    """Sum of `amounts` [n] over the sum of `rows` [n], as a ratio estimator of the population they are from.

    Its variance is that of the residuals (Cochran, Sampling Techniques, 1977, section 6.4), its interval
    Student's, and never below zero. One block alone has no interval: it spans everything.
    """
    y, x = np.asarray(amounts, float), np.asarray(rows, float)
    value = float(y.sum() / x.sum())
    count = len(y)
    if count < 2:
        return Range(value, 0.0, math.inf)
    residuals = y - value * x
    error = math.sqrt(float((residuals**2).sum()) / (count - 1) / count) / float(x.mean())
    width = student_95(count - 1) * error
    return Range(value, max(value - width, 0.0), value + width)


def student_95(freedom: int) -> float:
    """The value that Student's t exceeds once in twenty times; exact for 1 and 2 degrees of freedom, within
    0.5% above (Abramowitz and Stegun, 26.7.5).
    """
    if freedom == 1:
        return math.tan(math.pi * 0.45)
    if freedom == 2:
        return 0.9 * math.sqrt(2 / (1 - 0.9**2))
    z, v = _Z, freedom
    terms = (
        z,
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
    )
    return sum(terms)
