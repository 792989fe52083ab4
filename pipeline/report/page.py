"""The report as one HTML page that needs nothing else: no scripts, no network, and plots as inline SVG.

The template escapes every value that it prints, and a content security policy keeps the page from loading or
running anything even so. Plots have the colours of the style sheet, for light and dark.
"""

import io
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import LogLocator, MaxNLocator

from pipeline.readable import hours, integer, number, percent, seconds
from pipeline.report import figures as limits
from pipeline.rows.token_measures import NGRAM

# By the style sheet's variable; no two are equal, so that one can be found by the other.
COLOURS = {"first": "#2a6fdb", "second": "#d9730d", "third": "#1a936f", "soft": "#5d6878", "grid": "#e9ecf1"}
FIRST, SECOND, THIRD, SOFT, GRID = COLOURS.values()
_VARIABLES = {colour: name for name, colour in COLOURS.items()}
_STYLE = {
    **{"svg.fonttype": "none", "font.size": 8, "text.color": SOFT, "grid.color": GRID, "axes.titlesize": 8},
    **{f"axes.spines.{side}": False for side in ("left", "right", "top")},
    **{"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "axes.titlelocation": "left"},
    **{"axes.edgecolor": SOFT, "axes.labelcolor": SOFT, "xtick.labelcolor": SOFT, "ytick.labelcolor": SOFT},
    **{"xtick.bottom": False, "xtick.minor.bottom": False, "ytick.left": False, "ytick.minor.left": False},
    "axes.prop_cycle": cycler(color=[FIRST, SECOND, THIRD, SOFT], linestyle=["-", "--", "-.", ":"]),
    "lines.linewidth": 1.4,
}
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of characters, but for
SEEN = "\n\t\u200c\u200d"  # the last two join letters and emoji
LEAST_BARS = 8  # that an axis has room for


def render_page(figures: Mapping[str, Any], clips: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page of the figures of `pipeline.report.figures.build_figures`, and of what `clips_of` gives."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {f.__name__: f for f in (hours, integer, number, percent, rate, seconds)}
    with matplotlib.rc_context(_STYLE):
        plots = _plots(figures)
    every, best = (figures["candidates"][view]["flags"] for view in ("all", "best"))
    flags = [{"name": name, "all": found, "best": best[name]} for name, found in every.items()]
    # As many lines as there are powers of two, and the last.
    points = figures["words"]
    words = [p for p in points if not p["n"] & (p["n"] - 1) or p is points[-1]]
    more = {"flags": flags, "word_lines": words, "clips": clips, "plots": plots}
    return environment.get_template("page.html.j2").render(figures, limits=limits, ngram=NGRAM, **more)


def visible(value: Any) -> Any:
    """Text in which characters without a glyph, or that turn the direction of the rest, are code points."""
    if isinstance(value, Markup):
        return value
    unseen = {c for c in str(value) if unicodedata.category(c) in UNSEEN and c not in SEEN}
    return str(value).translate({ord(c): f"⟨U+{ord(c):04X}⟩" for c in unseen})


def rate(found: Mapping[str, Any]) -> str:
    """Of words, with its interval."""
    mean, within = f"{100 * found['rate']:.1f} %", found["within"]
    return mean if within is None else f"{mean} ± {100 * within:.1f}"


def _plots(figures: Mapping[str, Any]) -> dict[str, Markup | None]:
    """The drawings by name; None where there is nothing to draw."""
    series = (figures["speed"] or {}).get("series", ())
    drawings: dict[str, tuple[Callable[[Any], Axes], Any]] = {
        "best_of_n": (_best_of_n, figures["best_of_n"]["points"]),
        "words": (_words, figures["words"]),
        "score": (_scores, [view["score"] for view in figures["candidates"].values() if view["score"]]),
        "pace": (_pace, figures["pace"]["cells"] and figures["pace"]),
        "throughput": (_throughput, [points for points in series if points]),
    }
    return {name: _svg(draw(data)) if data else None for name, (draw, data) in drawings.items()}


def _axes(x_label: str, y_label: str, whole: bool = False) -> Axes:
    # As wide as a card at its narrowest, so that letters have one size on every screen.
    axes = Figure(figsize=(3.8, 2.4), layout="constrained").add_subplot(title=y_label, xlabel=x_label)
    axes.margins(x=0.02 * whole)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_formatter("{x:,g}")
    return axes


def _svg(axes: Axes) -> Markup:
    """The drawing as SVG that can stand in HTML, which needs no names, links and sizes in it."""
    file, figure = io.StringIO(), axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()[file.getvalue().index("<svg") :]
    text = re.sub(r"<!--.*?-->|<(metadata|defs)>.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r' (id|clip-path|xmlns|xmlns:xlink|width|height|version)="[^"]*"', "", text)
    return Markup(re.sub("|".join(COLOURS.values()), lambda found: f"var(--{_VARIABLES[found[0]]})", text))


def _scores(views: list[dict[str, Any]]) -> Axes:
    """Shares of each view, all in the same bars."""
    bars = views[0]["histogram"]
    edges = bars["low"] + bars["width"] * np.arange(len(bars["counts"]) + 1)
    axes = _axes("score", "% of candidates")
    for view, colour in zip(views, (FIRST, SECOND), strict=False):
        shares = 100 * np.array(view["histogram"]["counts"]) / view["count"]
        axes.stairs(shares, edges, fill=True, color=colour, alpha=0.22, linewidth=0)
        axes.stairs(shares, edges, color=colour, linewidth=1)
    axes.set_xlim(edges[0], max(edges[-1], edges[0] + LEAST_BARS * bars["width"]))
    return axes


def _best_of_n(points: list[dict[str, Any]]) -> Axes:
    """Expected score of the best of n candidates against n; lines break where the mean is over other rows."""
    axes = _axes("n, candidates per row", "score", whole=True)
    breaks = 1 + np.flatnonzero(np.diff([point["rows"] for point in points]))
    for kind in ("chosen", "best"):
        pairs = np.array([(point["n"], point[f"expected_{kind}_score"]) for point in points], float)
        axes.plot(*np.insert(pairs, breaks, np.nan, axis=0).T)
    return axes


def _words(points: list[dict[str, Any]]) -> Axes:
    """Expected word error rates against n, with the interval of the choice by score."""
    axes = _axes("n, candidates per row", "% of words wrong", whole=True)
    counts = [point["n"] for point in points]
    for name in ("clvp", "oracle", "log_probability", "chance"):
        axes.plot(counts, [100 * point[name]["rate"] for point in points])
    rates, widths = 100 * np.array([(p["clvp"]["rate"], p["clvp"]["within"] or 0) for p in points]).T
    # As a path: `fill_between` would be drawn by a link within the SVG.
    around = np.append(rates - widths, (rates + widths)[::-1])
    axes.fill([*counts, *counts[::-1]], around, color=FIRST, alpha=0.15, linewidth=0)
    axes.set_ylim(0)
    return axes


def _pace(pace: dict[str, Any]) -> Axes:
    """Where the candidates lie in text length and duration, and what is usual."""
    size, cells = 2 ** (1 / pace["cells_per_octave"]), pace["cells"]
    axes = _axes("characters without white space", "seconds")
    lefts, lows, counts = np.array([list(cell.values()) for cell in cells], float).T
    lefts, lows, depths = size**lefts, size**lows, np.log1p(counts)
    colours = [(FIRST, 0.12 + 0.88 * depth) for depth in depths / max(depths)]
    axes.bar(lefts, lows * (size - 1), lefts * (size - 1), lows, align="edge", color=colours)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(2, numticks=8))
        axis.set_major_formatter("{x:,g}")
    ends = (min(lows), max(lows) * size)
    axes.set(xlim=(min(lefts), max(lefts) * size), ylim=ends)
    for band in pace["bands"]:
        # One rate holds for the whole band, so the duration grows with the text.
        length = np.geomspace(band["characters_from"], band["characters_below"], 12).clip(*axes.get_xlim())
        for name, width in (("seconds_per_character", 1.6), ("usual_from", 0.8), ("usual_to", 0.8)):
            usual = length * band[name]
            usual[(usual < ends[0]) | (usual > ends[1])] = np.nan
            axes.plot(length, usual, "-", color=SECOND, linewidth=width)
    return axes


def _throughput(series: list[list[dict[str, float]]]) -> Axes:
    """Speech tokens per second over the time since the run began."""
    end = max(points[-1]["to_s"] for points in series)
    unit, name = (3600, "hours") if end >= 7200 else (60, "minutes")
    axes = _axes(f"{name} since the run began", "tokens per second")
    for points in series:
        edges = np.array([points[0]["from_s"], *(point["to_s"] for point in points)]) / unit
        rates = [point["tokens_per_s"] for point in points]
        axes.stairs(rates, edges, baseline=None, color=FIRST, linewidth=1.4)
    axes.set(xlim=(0, end / unit))
    axes.set_ylim(0)
    return axes
