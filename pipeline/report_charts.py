"""Plots as inline SVG inside HTML, without scripts.

Shapes are drawn in a box of 1000 x 1000 that is stretched to the width of the page; the labels are HTML
beside it, so that text keeps its size on a phone. Strokes do not scale. Every mark has a title to hover over.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report_text import escape, integer, number, percent

BOX = 1000.0


@dataclass(frozen=True)
class Axis:
    """A range of values with its ticks; `log2` axes are given the logarithms."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    label: str

    def at(self, value: float) -> float:
        """Position from 0 to 1."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Line:
    """A line of points; a break where `None` stands."""

    name: str
    style: str  # CSS class
    points: Sequence[tuple[float, float] | None]
    dots: bool = False


def linear_axis(low: float, high: float, label: str, snap: bool = True) -> Axis:
    """An axis with about six round ticks; with `snap` it ends on ticks."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    step = _round_step((high - low) / 6)
    if snap:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    decimals += decimals < 12 and abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple(
        (i * step, f"{i * step:,.{decimals}f}".replace("-", "−") if i else "0")
        for i in range(first, last + 1)
    )
    return Axis(low, high, ticks, label)


def log2_axis(low: float, high: float, label: str) -> Axis:
    """An axis over logarithms to base 2, with a tick at every doubling (or every second or third one)."""
    first, last = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    step = math.ceil((last - first) / 8)
    ticks = tuple((float(i), _power_of_two(i)) for i in range(first, last + 1, step))
    return Axis(first, last, ticks, label)


def _power_of_two(exponent: int) -> str:
    return integer(2.0**exponent) if exponent >= 0 else f"{2.0**exponent:g}"


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))


def chart(
    title: str, note: str, x: Axis, y: Axis, shapes: str, legend: Sequence[tuple[str, str]] = ()
) -> str:
    """A figure around shapes that are drawn in the box; `legend` has pairs of name and CSS class."""
    grid = "".join(f'<path class="grid" d="M0 {_y(y, at):.1f}H1000"/>' for at, _ in y.ticks)
    labels = "".join(
        f'<span class="tick x{" minor" if i % 2 and len(x.ticks) > 5 else ""}" '
        f'style="left:{100 * x.at(at):.2f}%">{escape(text)}</span>'
        for i, (at, text) in enumerate(x.ticks)
    ) + "".join(
        f'<span class="tick y" style="bottom:{100 * y.at(at):.2f}%">{escape(text)}</span>'
        for at, text in y.ticks
    )
    keys = "".join(f'<span><i class="key {style}"></i>{escape(name)}</span>' for name, style in legend)
    return (
        f'<figure class="card"><figcaption><h3>{escape(title)}</h3>'
        f"{f'<p>{escape(note)}</p>' if note else ''}</figcaption>"
        f'<div class="over"><span class="axis">{escape(y.label)}</span>'
        f'<span class="legend">{keys}</span></div>'
        f'<div class="plot"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}">{grid}{shapes}<path class="base" d="M0 1000H1000"/></svg>'
        f"{labels}</div>"
        f'<div class="axis under">{escape(x.label)}</div></figure>'
    )


def histogram_chart(
    title: str,
    note: str,
    x_label: str,
    series: Sequence[tuple[str, str, dict[str, Any] | None]],
    of_what: str = "candidates",
) -> str:
    """Shares of each series in common bars; `series` has name, CSS class and a distribution's figures."""
    shown = [(name, style, item) for name, style, item in series if item]
    if not shown:
        return empty_card(title)
    width, first, counts = _common_bars([item["histogram"] for _, _, item in shown])
    shares = [[100 * c / item["count"] for c in row] for row, (_, _, item) in zip(counts, shown, strict=True)]
    x = linear_axis(first * width, (first + len(counts[0])) * width, x_label, snap=False)
    y = linear_axis(0, max(map(max, shares)), f"% of {of_what}")
    shapes = []
    for (_, style, _), row in zip(shown, shares, strict=True):
        shapes.append(_bars(x, y, width, first, row, style))
    for i in range(len(counts[0])):
        left, right = (first + i) * width, (first + i + 1) * width
        lines = [
            f"{name}: {integer(row[i])} ({percent(row[i] / item['count'])})"
            for row, (name, _, item) in zip(counts, shown, strict=True)
        ]
        if any(row[i] for row in counts):
            text = f"{number(left)} to {number(right)}\n" + "\n".join(lines)
            shapes.append(_hover(x, left, right, text))
    notes = [note] if note else []
    outside = shown[0][2]["histogram"]
    if outside["below"] or outside["above"]:
        notes.append(
            f"Not shown: {integer(outside['below'])} {of_what} below and {integer(outside['above'])} above, "
            f"from {number(shown[0][2]['min'])} to {number(shown[0][2]['max'])}."
        )
    return chart(title, " ".join(notes), x, y, "".join(shapes), [(name, style) for name, style, _ in shown])


def _common_bars(histograms: Sequence[dict[str, Any]]) -> tuple[float, int, list[list[int]]]:
    """Width, number of the first bar, and counts of every histogram in bars of the widest one's width."""
    width = max(item["width"] for item in histograms)
    rows: list[dict[int, int]] = []
    for item in histograms:
        row: dict[int, int] = {}
        for i, count in enumerate(item["counts"]):
            bar = math.floor((item["low"] + i * item["width"]) / width)
            row[bar] = row.get(bar, 0) + count
        rows.append(row)
    first, last = min(min(row) for row in rows), max(max(row) for row in rows)
    return width, first, [[row.get(bar, 0) for bar in range(first, last + 1)] for row in rows]


def _bars(x: Axis, y: Axis, width: float, first: int, values: Sequence[float], style: str) -> str:
    """One path: a bar from the base for every value, as an outline of steps."""
    path = [f"M{_x(x, first * width):.1f} 1000"]
    for i, value in enumerate(values):
        path.append(f"V{_y(y, value):.1f}H{_x(x, (first + i + 1) * width):.1f}")
    return f'<path class="bars {style}" d="{"".join(path)}V1000Z"/>'


def line_chart(
    title: str,
    note: str,
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    hovers: Sequence[tuple[float, float, str]] = (),
) -> str:
    """Lines over each other; `hovers` are columns from x to x with their text."""
    shapes = []
    for line in lines:
        path, pen = [], "M"
        for point in line.points:
            if point is None:
                pen = "M"
                continue
            path.append(f"{pen}{_x(x, point[0]):.1f} {_y(y, point[1]):.1f}")
            pen = "L"
        shapes.append(f'<path class="line {line.style}" d="{"".join(path)}"/>')
        if line.dots:
            dots = "".join(f"M{_x(x, p[0]):.1f} {_y(y, p[1]):.1f}h0" for p in line.points if p)
            shapes.append(f'<path class="dots {line.style}" d="{dots}"/>')
    shapes += [_hover(x, left, right, text) for left, right, text in hovers]
    legend = [(line.name, f"{line.style} line") for line in lines if line.name]
    return chart(title, note, x, y, "".join(shapes), legend if len(legend) > 1 else ())


def cell(
    x: Axis, y: Axis, corner: tuple[float, float], size: tuple[float, float], depth: float, text: str
) -> str:
    """A rectangle of a map; `depth` from 0 to 1 is how dark it is."""
    left, top = _x(x, corner[0]), _y(y, corner[1] + size[1])
    return (
        f'<rect class="cell" x="{left:.1f}" y="{top:.1f}" width="{_x(x, corner[0] + size[0]) - left:.1f}" '
        f'height="{_y(y, corner[1]) - top:.1f}" fill-opacity="{0.12 + 0.88 * depth:.2f}">'
        f"<title>{escape(text)}</title></rect>"
    )


def path(x: Axis, y: Axis, points: Sequence[tuple[float, float]], style: str) -> str:
    """A line without legend or hover."""
    steps = "L".join(f"{_x(x, a):.1f} {_y(y, b):.1f}" for a, b in points)
    return f'<path class="line {style}" d="M{steps}"/>'


def empty_card(title: str) -> str:
    return f'<figure class="card"><figcaption><h3>{escape(title)}</h3><p>No data.</p></figcaption></figure>'


def _hover(x: Axis, left: float, right: float, text: str) -> str:
    start, end = max(_x(x, left), 0), min(_x(x, right), BOX)
    return (
        f'<rect class="hover" x="{start:.1f}" y="0" width="{max(end - start, 0.1):.1f}" height="1000">'
        f"<title>{escape(text)}</title></rect>"
    )


def _x(axis: Axis, value: float) -> float:
    return BOX * axis.at(value)


def _y(axis: Axis, value: float) -> float:
    return BOX * (1 - axis.at(value))
