"""A histogram for streams of any length and range, in bounded memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_BINS = 4096
MAX_BIN_NUMBER = 2**50  # what a float64 still counts exactly, with a margin


class Histogram:
    """Counts of numbers in bins of one width, which doubles whenever the range outgrows MAX_BINS bins.

    Counts, sum, minimum and maximum are exact; a quantile is off by less than one bin, that is by less than
    1/2000 of the range. Bin i covers [i * width, (i + 1) * width). Numbers that are not finite are left out
    and counted. `integers` starts with a width of 1, which makes quantiles exact up to a range of MAX_BINS.
    """

    def __init__(self, integers: bool = False) -> None:
        self.integers = integers
        self.width = 1.0 if integers else 2.0**-20
        self.first = 0  # number of the first bin
        self.counts = np.zeros(0, np.int64)
        self.sum = 0.0
        self.low = float("inf")
        self.high = float("-inf")
        self.not_finite = 0

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        return self.sum / self.count

    def add(self, values: np.ndarray) -> None:
        """Count numbers [k]."""
        values = np.asarray(values, np.float64)
        finite = values[np.isfinite(values)]
        self.not_finite += len(values) - len(finite)
        if not len(finite):
            return
        low, high = float(finite.min()), float(finite.max())
        self.sum += float(finite.sum())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._cover(self.low, self.high)
        bins = np.floor(finite / self.width).astype(np.int64) - self.first
        self.counts += np.bincount(bins, minlength=len(self.counts))

    def merge(self, other: "Histogram") -> None:
        """Count all that another histogram of the same kind has counted."""
        if other.count:
            self.low, self.high = min(self.low, other.low), max(self.high, other.high)
            self._rebin(other.width)
            self._cover(self.low, self.high)
            scale = round(self.width / other.width)
            bins = (np.arange(len(other.counts)) + other.first) // scale - self.first
            np.add.at(self.counts, bins[other.counts > 0], other.counts[other.counts > 0])
            self.sum += other.sum
        self.not_finite += other.not_finite

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """Numbers that these shares of all lie below, interpolated within a bin; needs a number or more."""
        return [_clip(self._quantile(share), self.low, self.high) for share in shares]

    def median(self) -> float:
        """The middle number, or the mean of the two in the middle, as exact as the bins."""
        return self._median_of(self.centers())

    def median_distance(self, center: float) -> float:
        """Median of the distances from `center`, as exact as the bins."""
        return self._median_of(np.abs(self.centers() - center))

    def mean_distance(self, center: float) -> float:
        """Mean of the distances from `center`, as exact as the bins."""
        return float((np.abs(self.centers() - center) * self.counts).sum() / self.count)

    def centers(self) -> np.ndarray:
        """float64 [bins]: the middle of each bin, held within minimum and maximum."""
        middles = (np.arange(len(self.counts)) + self.first + 0.5) * self.width
        return np.clip(middles, self.low, self.high)

    def bars(self, most: int) -> dict[str, Any]:
        """At most `most` bars: `low` edge of the first, `width` of all, `counts`, and what lies outside.

        Where few far values would squeeze the rest into a corner, they are counted as `below` and `above`.
        """
        begin, end = self._core()
        width, first, counts = self.width, self.first + begin, self.counts[begin:end]
        while len(counts) > most:
            first, counts = _halve(first, counts)
            width *= 2
        return {
            "low": first * width,
            "width": width,
            "counts": counts.tolist(),
            "below": int(self.counts[:begin].sum()),
            "above": int(self.counts[end:].sum()),
        }

    def _core(self) -> tuple[int, int]:
        """The bins to show: all, or those around the middle 99.8 % where that is under half of the range."""
        below = np.cumsum(self.counts)
        low, high = (int(np.searchsorted(below, part * self.count)) for part in (0.001, 0.999))
        margin = (high - low) // 8 + 1
        begin, end = max(low - margin, 0), min(high + margin + 1, len(self.counts))
        return (begin, end) if 2 * (end - begin) < len(self.counts) else (0, len(self.counts))

    def _cover(self, low: float, high: float) -> None:
        """Make the bins cover the range from `low` to `high`."""
        width = self.width
        largest = max(abs(low), abs(high))
        while np.floor(high / width) - np.floor(low / width) >= MAX_BINS or largest / width > MAX_BIN_NUMBER:
            width *= 2
        self._rebin(width)
        first, last = int(np.floor(low / width)), int(np.floor(high / width))
        counts = np.zeros(last - first + 1, np.int64)
        begin = self.first - first if len(self.counts) else 0
        counts[begin : begin + len(self.counts)] = self.counts
        self.first, self.counts = first, counts

    def _median_of(self, values: np.ndarray) -> float:
        """Median of values [bins] that each stand for all numbers of a bin."""
        order = np.argsort(values, kind="stable")
        below = np.cumsum(self.counts[order])
        middle = [(self.count - 1) // 2, self.count // 2]
        return float(values[order][np.searchsorted(below, middle, side="right")].mean())

    def _rebin(self, width: float) -> None:
        while self.width < width:
            self.first, self.counts = _halve(self.first, self.counts)
            self.width *= 2

    def _quantile(self, share: float) -> float:
        below = np.cumsum(self.counts)
        wanted = share * self.count
        i = min(int(np.searchsorted(below, wanted)), len(below) - 1)
        if self.integers and self.width == 1:
            return float(self.first + i)
        within = (wanted - (below[i] - self.counts[i])) / max(int(self.counts[i]), 1)
        return float((self.first + i + within) * self.width)


def _halve(first: int, counts: np.ndarray) -> tuple[int, np.ndarray]:
    """Bins of twice the width."""
    padded = np.pad(counts, (first % 2, (first + len(counts)) % 2))
    return first // 2, padded.reshape(-1, 2).sum(axis=1)


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
