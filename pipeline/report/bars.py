"""Histograms of several series in common bars."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.charts import Axis, box_x, box_y, chart, empty_card, hover, linear_axis
from pipeline.report.text import integer, number, percent

LEAST_BARS = 8  # that an axis has room for


@dataclass(frozen=True)
class Series:
    """One distribution's figures, None where it is empty."""

    name: str
    style: str  # CSS class
    distribution: dict[str, Any] | None


@dataclass(frozen=True)
class _Bars:
    """Bars of one width; bar i covers [i * width, (i + 1) * width) and is drawn from `shift` further left."""

    width: float
    first: int
    counts: list[list[int]]  # of each series
    shift: float

    def __len__(self) -> int:
        return len(self.counts[0])

    def edge(self, i: int) -> float:
        """Where the i-th bar is drawn from."""
        return (self.first + i) * self.width - self.shift


def histogram_chart(
    title: str,
    note: str,
    x_label: str,
    series: Sequence[Series],
    of_what: str = "candidates",
    least_width: float = 0.0,
    integers: bool = False,
) -> str:
    """Shares of each series, over the range that the first one's figures show.

    Bars are at least `least_width` wide (a power of two). Those of `integers` stand over their numbers.
    """
    shown = [item for item in series if item.distribution]
    figures = [item.distribution for item in shown if item.distribution]
    if not shown:
        return empty_card(title)
    bars = _common_bars([item["histogram"] for item in figures], least_width, 0.5 if integers else 0.0)
    shares = [[100 * c / item["count"] for c in row] for row, item in zip(bars.counts, figures, strict=True)]
    last = bars.edge(max(len(bars), LEAST_BARS))
    x = linear_axis(bars.edge(0), last, x_label, snap=False, least_step=float(integers))
    y = linear_axis(0, max(max(map(max, shares)), 1e-9), f"% of {of_what}")
    shapes = [_outline(x, y, bars, row, item.style) for row, item in zip(shares, shown, strict=True)]
    for i in range(len(bars)):
        lines = [
            f"{item.name}: {integer(row[i])} ({percent(share[i] / 100)})"
            for item, row, share in zip(shown, bars.counts, shares, strict=True)
        ]
        if any(row[i] for row in bars.counts):
            shapes.append(hover(x, bars.edge(i), bars.edge(i + 1), "\n".join([_range(bars, i), *lines])))
    outside = _outside(figures[0], of_what)
    legend = [(item.name, item.style) for item in shown]
    return chart(title, " ".join(filter(None, (note, outside))), x, y, "".join(shapes), legend)


def _common_bars(histograms: Sequence[dict[str, Any]], least_width: float, shift: float) -> _Bars:
    """Counts of every histogram in bars of the widest one's width, over the range of the first."""
    width = max(least_width, *(item["width"] for item in histograms))
    low = histograms[0]["low"]
    high = low + histograms[0]["width"] * (len(histograms[0]["counts"]) - 0.5)
    first, last = math.floor(low / width), math.floor(high / width)
    rows = []
    for item in histograms:
        row = [0] * (last - first + 1)
        for i, count in enumerate(item["counts"]):
            bar = math.floor((item["low"] + (i + 0.5) * item["width"]) / width)
            if first <= bar <= last:
                row[bar - first] += count
        rows.append(row)
    return _Bars(width, first, rows, shift)


def _outline(x: Axis, y: Axis, bars: _Bars, values: Sequence[float], style: str) -> str:
    """One path: a bar from the base for every value, as an outline of steps."""
    steps = [f"M{box_x(x, bars.edge(0)):.1f} 1000"]
    for i, value in enumerate(values):
        steps.append(f"V{box_y(y, value):.1f}H{box_x(x, bars.edge(i + 1)):.1f}")
    return f'<path class="bars {style}" d="{"".join(steps)}V1000Z"/>'


def _range(bars: _Bars, i: int) -> str:
    low, high = (bars.first + i) * bars.width, (bars.first + i + 1) * bars.width
    if not bars.shift:
        return f"{number(low)} to {number(high)}"
    return integer(low) if bars.width == 1 else f"{integer(low)} to {integer(high - 1)}"


def _outside(figures: dict[str, Any], of_what: str) -> str:
    below, above = figures["histogram"]["below"], figures["histogram"]["above"]
    if not below and not above:
        return ""
    return (
        f"Not shown: {integer(below)} {of_what} below and {integer(above)} above; "
        f"all lie from {number(figures['min'])} to {number(figures['max'])}."
    )
