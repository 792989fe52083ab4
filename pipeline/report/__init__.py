"""A finished or running output as figures, plots and one HTML page. Needs neither Ray nor torch.

Reading order: `figures`, `best_of_n`, `words`, `listen`, then `page` with its template.
"""

import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb

from pipeline import storage
from pipeline.report.figures import Stored, build_figures
from pipeline.report.listen import clips_of
from pipeline.report.page import render_page

MEMORY = "1GB"  # of the database; what does not fit lies on the local disk


@dataclass(frozen=True)
class Written:
    """Where a report went, and its figures."""

    html: str
    json: str
    figures: dict[str, Any]


def write_report(output: str, html: str | None = None, json_file: str | None = None) -> Written:
    """Write the report of an output folder as HTML and JSON; by default as report.html and report.json in it.

    All three are paths or object-store URIs. Raises RunError when the folder holds no run or cannot be read,
    OSError when a file cannot be written.
    """
    with (
        tempfile.TemporaryDirectory(prefix="clvp-report-") as folder,
        duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": folder}) as database,
    ):
        stored = Stored(output, database)
        figures = build_figures(stored, datetime.now(UTC).isoformat(timespec="seconds"))
        clips = clips_of(stored)
    page = storage.absolute(html) if html else storage.join(stored.folder.uri, "report.html")
    values = storage.absolute(json_file) if json_file else storage.join(stored.folder.uri, "report.json")
    text = json.dumps(figures, indent=1, allow_nan=False, ensure_ascii=False)
    for uri, content in ((page, render_page(figures, clips)), (values, text)):
        storage.write_atomically(uri, content.encode("utf-8", "replace"), storage.parent(uri))
    return Written(page, values, figures)
