"""Duration against text length: what is usual for a text of some length in this run, and what is not.

The measure is log2 of the seconds per character, so that half and twice the usual rate are equally far off.
The usual rate is the median of all finished candidates in the band of texts of about that length (two bands
double the number of characters), the spread is the median absolute deviation; both come from histograms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.histogram import Histogram
from pipeline.report.stored import Rows
from pipeline.report.totals import CELLS_PER_OCTAVE, RunTotals, pace, share
from pipeline.report.unusual import BANDS_PER_OCTAVE, OUTLIER_Z, length_bands, robust_deviation, z_scores

MIN_BAND = 50  # candidates; a band with fewer borrows from those beside it


@dataclass(frozen=True)
class Usual:
    """Median and robust standard deviation of log2(seconds per character)."""

    center: float
    deviation: float


class PaceModel:
    """The usual rate by text length, and how unusual a candidate is."""

    def __init__(self, bands: Mapping[int, Histogram]) -> None:
        self._usual = {band: _usual(_enough(bands, band)) for band in bands if bands[band].count}

    def bands(self) -> list[int]:
        return sorted(self._usual)

    def usual(self, band: int) -> Usual:
        return self._usual[band]

    def z(self, rows: Rows, characters: np.ndarray) -> np.ndarray:
        """Robust z-scores [k] of durations, of texts of so many characters; NaN where unfinished or empty."""
        paces, bands = pace(rows, characters), length_bands(characters)
        scores = np.full(len(paces), np.nan)
        for band, usual in self._usual.items():
            chosen = np.isfinite(paces) & (bands == band)
            scores[chosen] = z_scores(paces[chosen], usual.center, usual.deviation)
        return scores

    def outliers(self, bands: Mapping[int, Histogram]) -> dict[str, int]:
        """How many of the candidates in these histograms are unusually long and short."""
        long, short = 0, 0
        for band, histogram in bands.items():
            if band in self._usual and histogram.count:
                usual = self._usual[band]
                z = z_scores(histogram.centers(), usual.center, usual.deviation)
                long += int(histogram.counts[z > OUTLIER_Z].sum())
                short += int(histogram.counts[z < -OUTLIER_Z].sum())
        return {"long": long, "short": short}


def _enough(bands: Mapping[int, Histogram], band: int) -> Histogram:
    """The band's histogram together with as many beside it as it takes."""
    for radius in range(64):
        merged = Histogram()
        for near in range(band - radius, band + radius + 1):
            if near in bands:
                merged.merge(bands[near])
        if merged.count >= MIN_BAND:
            break
    return merged


def _usual(histogram: Histogram) -> Usual:
    center = histogram.median()
    return Usual(center, robust_deviation(histogram.median_distance(center), histogram.mean_distance(center)))


def pace_figures(totals: RunTotals, model: PaceModel) -> dict[str, Any]:
    """The map of duration against text length, the usual rates, and the outliers."""
    return {
        "outlier_z": OUTLIER_Z,
        "outliers": {
            name: {
                kind: {"count": count, "share": share(count, view.count)}
                for kind, count in model.outliers(view.pace).items()
            }
            for name, view in (("all", totals.all), ("best", totals.best))
        },
        "bands": [_band_figures(band, totals, model.usual(band)) for band in model.bands()],
        "cells_per_octave": CELLS_PER_OCTAVE,
        "cells": [
            {"characters_log2": x, "duration_log2": y, "candidates": count}
            for (x, y), count in sorted(totals.cells.items())
        ],
    }


def _band_figures(band: int, totals: RunTotals, usual: Usual) -> dict[str, Any]:
    reach = OUTLIER_Z * usual.deviation
    return {
        "characters_from": 2 ** (band / BANDS_PER_OCTAVE),
        "characters_below": 2 ** ((band + 1) / BANDS_PER_OCTAVE),
        "candidates": totals.all.pace[band].count,
        "seconds_per_character": 2**usual.center,
        "usual_from": 2 ** (usual.center - reach),
        "usual_to": 2 ** (usual.center + reach),
    }


def unusual_rows(totals: RunTotals, model: PaceModel, most: int) -> list[dict[str, Any]]:
    """Best candidates whose duration is an outlier, the strongest first, with their z-score."""
    found = {}
    for tops, sign in ((totals.slow, 1), (totals.fast, -1)):
        for band, top in tops.items():
            usual = model.usual(band)
            for key, record in top.entries():
                z = float(z_scores(np.array([sign * key]), usual.center, usual.deviation)[0])
                if abs(z) > OUTLIER_Z:
                    found[record["id"]] = {**record, "duration_z": z}
    return sorted(found.values(), key=lambda record: (-abs(record["duration_z"]), record["id"]))[:most]
