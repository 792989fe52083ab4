"""A run's report: figures as JSON and one HTML page, of an output that is finished or still growing.

The figures are computed in one pass over the stored files, in memory that does not grow with the rows.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline import storage
from pipeline.metrics import read_sessions
from pipeline.report.best_of_n import BestOfN
from pipeline.report.flags import write_flags
from pipeline.report.html import render_page
from pipeline.report.pace import PaceModel, pace_figures, unusual_rows
from pipeline.report.speed import speed_figures
from pipeline.report.stored import Failures, StoredOutput
from pipeline.report.totals import LISTED, FailureTotals, RunTotals, distribution, share

REPORT_VERSION = 1
GAIN_SHARES = (0.5, 0.9)  # of what the largest N gains over one candidate


@dataclass(frozen=True)
class Written:
    """Where a report went, and its figures."""

    html: str
    json: str
    flags: str | None
    figures: dict[str, Any]


def write_report(
    output: str, html: str | None = None, json_file: str | None = None, flags: bool = False
) -> Written:
    """Write the report of an output folder as HTML and JSON; by default as report.html and report.json in it.

    All three are paths or object-store URIs. With `flags`, every candidate's quality flags are written to
    OUTPUT/flags as well. Raises RunError when the folder holds no run or cannot be read, OSError when a file
    cannot be written.
    """
    stored = StoredOutput(output)
    totals, failures = read_totals(stored)
    model = PaceModel(totals.all.pace)
    figures = build_figures(stored, totals, failures, model, datetime.now(UTC))
    folder = stored.uri
    written = Written(
        storage.absolute(html) if html else storage.join(folder, "report.html"),
        storage.absolute(json_file) if json_file else storage.join(folder, "report.json"),
        write_flags(stored, model) if flags else None,
        figures,
    )
    text = json.dumps(figures, indent=1, allow_nan=False, ensure_ascii=False)
    for uri, content in ((written.html, render_page(figures)), (written.json, text)):
        storage.write_atomically(uri, content.encode("utf-8", "replace"), storage.parent(uri))
    return written


def read_totals(stored: StoredOutput) -> tuple[RunTotals, FailureTotals]:
    """One pass over all that is stored."""
    settings = stored.settings()
    totals = RunTotals(
        _find_int(settings, "num_candidates"),
        _find_int(settings, "keep"),
        _find(settings, "unfinished_last") is False,
    )
    failures = FailureTotals()
    for batch in stored.read():
        if isinstance(batch, Failures):
            failures.add(batch)
        else:
            totals.add(batch)
    return totals, failures


def build_figures(
    stored: StoredOutput, totals: RunTotals, failures: FailureTotals, model: PaceModel, now: datetime
) -> dict[str, Any]:
    """All figures of a report as JSON values without NaN or infinity."""
    figures = {
        "report_version": REPORT_VERSION,
        "output": shown_uri(stored.uri),
        "created": now.isoformat(timespec="seconds"),
        "rows": {
            "done": totals.rows,
            "failed": failures.rows,
            "failed_share": share(failures.rows, totals.rows + failures.rows),
            "unpublished": totals.unpublished,
            "text_characters": distribution(totals.text_characters),
        },
        "candidates": {"all": totals.all.figures(), "best": totals.best.figures()},
        "best_of_n": best_of_n_figures(totals.best_of_n),
        "pace": pace_figures(totals, model),
        "look_at": {
            "unusual_duration": unusual_rows(totals, model, LISTED),
            "repeated": totals.repeated.records(),
            "long_runs": totals.long_runs.records(),
            "low_scores": totals.low_scores.records(),
        },
        "failures": failures.figures(),
        "speed": speed_figures(read_sessions(stored.uri)),
        "run": stored.description(),
    }
    return dict(json_safe(figures))


def shown_uri(uri: str) -> str:
    """A path or URI without the connection options and credentials that it may carry."""
    if storage.scheme_of(uri) is None:
        return uri
    return re.sub("(?<=://)[^/@]*@", "", uri.partition("?")[0])


def best_of_n_figures(best: BestOfN) -> dict[str, Any]:
    """The curve, and the smallest n that brings a share of what all candidates gain over one."""
    curve = best.curve()
    points = curve["points"]
    # Points of different rows are not comparable; those of n = 1 are usually all.
    same = [point for point in points if point["rows"] == points[0]["rows"] and points[0]["n"] == 1]
    gains = {}
    if len(same) > 1:
        first, last = (same[i]["expected_chosen_score"] for i in (0, -1))
        for part in GAIN_SHARES if last > first else ():
            wanted = first + part * (last - first)
            gains[f"{part:.0%}"] = next(p["n"] for p in same if p["expected_chosen_score"] >= wanted)
    return {**curve, "n_for_share_of_gain": gains}


def json_safe(value: Any) -> Any:
    """The value with null for what JSON cannot hold."""
    if isinstance(value, dict):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _find(value: Any, name: str) -> Any:
    """The first value under this name anywhere in nested objects, None if there is none."""
    return next(_found(value, name), None)


def _find_int(value: Any, name: str) -> int | None:
    found = _find(value, name)
    return found if type(found) is int else None


def _found(value: Any, name: str) -> Iterator[Any]:
    if isinstance(value, dict):
        if name in value:
            yield value[name]
        for item in value.values():
            yield from _found(item, name)
