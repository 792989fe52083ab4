"""Plots as inline SVG inside HTML, without scripts.

Shapes are drawn in a box of 1000 x 1000 that is stretched to the width of the page; the labels are HTML
beside it, so that text keeps its size on a phone. Strokes do not scale. Every mark has a title to hover over.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.text import escape, integer

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


def linear_axis(low: float, high: float, label: str, snap: bool = True, least_step: float = 0.0) -> Axis:
    """An axis with about six round ticks; with `snap` it ends on ticks."""
    if not high > low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    step = _round_step(max((high - low) / 6, least_step))
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
    grid = "".join(f'<path class="grid" d="M0 {box_y(y, at):.1f}H1000"/>' for at, _ in y.ticks)
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
            path.append(f"{pen}{box_x(x, point[0]):.1f} {box_y(y, point[1]):.1f}")
            pen = "L"
        shapes.append(f'<path class="line {line.style}" d="{"".join(path)}"/>')
        if line.dots:
            dots = "".join(f"M{box_x(x, p[0]):.1f} {box_y(y, p[1]):.1f}h0" for p in line.points if p)
            shapes.append(f'<path class="dots {line.style}" d="{dots}"/>')
    shapes += [hover(x, left, right, text) for left, right, text in hovers]
    legend = [(line.name, f"{line.style} line") for line in lines if line.name]
    return chart(title, note, x, y, "".join(shapes), legend if len(legend) > 1 else ())


def cell(
    x: Axis, y: Axis, corner: tuple[float, float], size: tuple[float, float], depth: float, text: str
) -> str:
    """A rectangle of a map; `depth` from 0 to 1 is how dark it is."""
    left, top = box_x(x, corner[0]), box_y(y, corner[1] + size[1])
    return (
        f'<rect class="cell" x="{left:.1f}" y="{top:.1f}" width="{box_x(x, corner[0] + size[0]) - left:.1f}" '
        f'height="{box_y(y, corner[1]) - top:.1f}" fill-opacity="{0.12 + 0.88 * depth:.2f}">'
        f"<title>{escape(text)}</title></rect>"
    )


def segments(x: Axis, y: Axis, ends: Sequence[tuple[float, float, float, float]], style: str) -> str:
    """Straight lines from (x, y) to (x, y), each cut where it leaves the axes' ranges."""
    steps = []
    for left, low, right, high in ends:
        inside = [_inside(x, left, right), _inside(y, low, high)]
        begin, end = max(0.0, *(part[0] for part in inside)), min(1.0, *(part[1] for part in inside))
        if begin < end:
            steps.append(
                f"M{box_x(x, left + begin * (right - left)):.1f} {box_y(y, low + begin * (high - low)):.1f}"
                f"L{box_x(x, left + end * (right - left)):.1f} {box_y(y, low + end * (high - low)):.1f}"
            )
    return f'<path class="line {style}" d="{"".join(steps)}"/>'


def _inside(axis: Axis, start: float, stop: float) -> tuple[float, float]:
    """From which to which part of the way from `start` to `stop` a point is within the axis."""
    if start == stop:
        return (0.0, 1.0) if axis.low <= start <= axis.high else (1.0, 0.0)
    parts = [(edge - start) / (stop - start) for edge in (axis.low, axis.high)]
    return min(parts), max(parts)


def empty_card(title: str) -> str:
    return f'<figure class="card"><figcaption><h3>{escape(title)}</h3><p>No data.</p></figcaption></figure>'


def hover(x: Axis, left: float, right: float, text: str) -> str:
    start, end = max(box_x(x, left), 0), min(box_x(x, right), BOX)
    return (
        f'<rect class="hover" x="{start:.1f}" y="0" width="{max(end - start, 0.1):.1f}" height="1000">'
        f"<title>{escape(text)}</title></rect>"
    )


def box_x(axis: Axis, value: float) -> float:
    """Position of a value in the box, from the left."""
    return BOX * axis.at(value)


def box_y(axis: Axis, value: float) -> float:
    """Position of a value in the box, from the top."""
    return BOX * (1 - axis.at(value))
