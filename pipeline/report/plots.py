"""The plots of a report, from its figures."""

import math
from collections.abc import Sequence
from typing import Any

from pipeline.report.bars import Series, histogram_chart
from pipeline.report.charts import Line, cell, chart, empty_card, line_chart, linear_axis, log2_axis, segments
from pipeline.report.text import integer, number, percent, seconds

TIME_UNITS = ((1.0, "seconds"), (60.0, "minutes"), (3600.0, "hours"), (86_400.0, "days"))


def best_of_n_plot(curve: dict[str, Any]) -> str:
    """Expected score of the best of n candidates against n."""
    title = "Expected score of the best of n"
    points = curve["points"]
    if not points:
        return empty_card(title)
    chosen = [point["expected_chosen_score"] for point in points]
    best = [point["expected_best_score"] for point in points]
    differ = any(
        b is not None and abs(b - c) > 1e-3 * max(abs(c), 1e-9) for b, c in zip(best, chosen, strict=True)
    )
    scores = chosen + [score for score in best if score is not None]
    last = max(point["n"] for point in points)
    x = linear_axis(0, last, "n, candidates per row", snap=False)
    y = linear_axis(min(scores), max(scores), "score")
    dots = last <= 40
    lines = [Line("chosen", "first", _with_breaks(points, chosen), dots)]
    if differ:
        lines.append(Line("highest, unfinished too", "second dashed", _with_breaks(points, best)))
    hovers = [(point["n"] - 0.5, point["n"] + 0.5, _best_of_n_text(point, differ)) for point in points]
    return line_chart(title, _best_of_n_note(curve), x, y, lines, hovers)


def _with_breaks(
    points: Sequence[dict[str, Any]], scores: Sequence[float | None]
) -> list[tuple[float, float] | None]:
    """The points of a line that is broken wherever other rows come into the mean."""
    line: list[tuple[float, float] | None] = []
    rows = None
    for point, score in zip(points, scores, strict=True):
        if score is None or point["rows"] != rows:
            line.append(None)
        if score is not None:
            line.append((point["n"], score))
        rows = point["rows"]
    return line


def _best_of_n_text(point: dict[str, Any], differ: bool) -> str:
    highest = f"highest {number(point['expected_best_score'], 5)}\n" if differ else ""
    return (
        f"n = {point['n']}\nscore {number(point['expected_chosen_score'], 5)}\n{highest}"
        f"finished {percent(point['chosen_finished_share'])}\nmean of {integer(point['rows'])} rows"
    )


def _best_of_n_note(curve: dict[str, Any]) -> str:
    notes = []
    if gains := curve["n_for_share_of_gain"]:
        # The larger share where one n brings both.
        by_n = {n: part for part, n in gains.items()}
        parts = [f"n = {n} brings {part.replace('%', ' %')}" for n, part in by_n.items()]
        most = max(p["n"] for p in curve["points"] if p["rows"] == curve["points"][0]["rows"])
        notes.append(f"{' and '.join(parts)} of what {most} candidates gain over one.")
    if any(item["stored"] < item["sampled"] for item in curve["rows_by_candidates"]):
        notes.append("Only the best candidates are stored, so small n are not known.")
    if len({item["sampled"] for item in curve["rows_by_candidates"]}) > 1:
        notes.append("Rows have different numbers of candidates: a point averages those with at least n.")
    return " ".join(notes)


def score_plot(candidates: dict[str, Any]) -> str:
    return histogram_chart(
        "Distribution of scores", "", "score", _both(candidates, "score"), least_width=2**-12
    )


def duration_plots(figures: dict[str, Any]) -> list[str]:
    """Histograms of durations, speech tokens and text lengths, and duration against text length."""
    candidates = figures["candidates"]
    text = Series("rows", "third", figures["rows"]["text_characters"])
    tokens = _both(candidates, "tokens")
    return [
        histogram_chart("Duration", "", "seconds", _both(candidates, "duration_s"), least_width=2**-4),
        histogram_chart("Length", "21.5 tokens are a second.", "speech tokens", tokens, integers=True),
        histogram_chart("Text length", "", "characters without white space", [text], "rows", integers=True),
        pace_plot(figures["pace"]),
    ]


def token_plots(candidates: dict[str, Any]) -> list[str]:
    """Histograms of the measures of repetition."""
    runs, repeated = _both(candidates, "longest_run"), _both(candidates, "repeated_ngrams")
    label = "share of a candidate's 4-grams"
    return [
        histogram_chart("Longest run of one token", "", "tokens", runs, integers=True),
        histogram_chart("Share of repeated 4-grams", "", label, repeated, least_width=2**-7),
    ]


def _both(candidates: dict[str, Any], name: str) -> list[Series]:
    return [
        Series("all candidates", "first", candidates["all"][name]),
        Series("best of each row", "second", candidates["best"][name]),
    ]


def pace_plot(pace: dict[str, Any]) -> str:
    """Where the candidates lie in text length and duration, and what is usual."""
    title = "Duration against text length"
    cells = pace["cells"]
    if not cells:
        return empty_card(title)
    size = 1 / pace["cells_per_octave"]
    columns = [item["characters_log2"] * size for item in cells]
    rows = [item["duration_log2"] * size for item in cells]
    x = log2_axis(min(columns), max(columns) + size, "characters without white space")
    y = log2_axis(min(rows), max(rows) + size, "seconds")
    most = math.log1p(max(item["candidates"] for item in cells))
    shapes = [
        cell(
            x,
            y,
            (left, low),
            (size, size),
            math.log1p(item["candidates"]) / most,
            _cell_text(left, low, size, item),
        )
        for left, low, item in zip(columns, rows, cells, strict=True)
    ]
    for name, style in (("seconds_per_character", ""), ("usual_from", "thin"), ("usual_to", "thin")):
        shapes.append(segments(x, y, [_band_line(band, name) for band in pace["bands"]], f"{style} second"))
    note = (
        f"All candidates, darker is more. Beyond the thin lines ({pace['outlier_z']} robust deviations from "
        "the median of texts about as long) a duration counts as unusual."
    )
    return chart(title, note, x, y, "".join(shapes))


def _band_line(band: dict[str, Any], name: str) -> tuple[float, float, float, float]:
    """One rate holds for the whole band, so the duration grows with the text: a line of slope one."""
    left, right = math.log2(band["characters_from"]), math.log2(band["characters_below"])
    rate = math.log2(band[name])
    return left, left + rate, right, right + rate


def _cell_text(left: float, low: float, size: float, item: dict[str, Any]) -> str:
    return (
        f"{number(2**left, 3)} to {number(2 ** (left + size), 3)} characters\n"
        f"{seconds(2**low)} to {seconds(2 ** (low + size))}\n{integer(item['candidates'])} candidates"
    )


def throughput_plot(speed: dict[str, Any]) -> str:
    """Speech tokens per second over the time since the run began."""
    title = "Speech tokens per second over time"
    series = [points for points in speed["series"] if points]
    if not series:
        return empty_card(title)
    end = max(point["to_s"] for points in series for point in points)
    unit, name = [item for item in TIME_UNITS if end >= 2 * item[0] or item[0] == 1][-1]
    line: list[tuple[float, float] | None] = []
    hovers = []
    for points in series:
        line.append(None)
        for point in points:
            start, stop = point["from_s"] / unit, point["to_s"] / unit
            line += [(start, point["tokens_per_s"]), (stop, point["tokens_per_s"])]
            text = f"{integer(point['tokens_per_s'])} tokens/s\n{number(point['rows_per_s'], 3)} rows/s"
            hovers.append((start, stop, f"{number(start, 3)} to {number(stop, 3)} {name}\n{text}"))
    x = linear_axis(0, end / unit, f"{name} since the run began", snap=False)
    y = linear_axis(0, max(p["tokens_per_s"] for points in series for p in points), "tokens per second")
    note = f"{integer(speed['tokens_per_s'])} on average"
    note += "; a gap is a time in which the run stood still." if len(series) > 1 else "."
    return line_chart(title, note, x, y, [Line("", "first", line)], hovers)
