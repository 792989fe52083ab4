"""A finished or running output as figures, plots and one HTML page. Needs neither Ray nor torch.

Reading order: `figures`, `best_of_n`, then `page` with its template.
"""

import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.report.figures import Stored, build_figures, flag_tables
from pipeline.report.page import render_page

FLAGS_FOLDER = "flags"
MEMORY = "1GB"  # of the database; what does not fit lies on the local disk


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

    All three are paths or object-store URIs. With `flags`, the quality flags of every published candidate are
    written to OUTPUT/flags as well, one file per data file. Raises RunError when the folder holds no run or
    cannot be read, OSError when a file cannot be written.
    """
    with (
        tempfile.TemporaryDirectory(prefix="clvp-report-") as folder,
        duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": folder}) as database,
    ):
        stored = Stored(output, database)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        figures = build_figures(stored, now)
        flagged = _write_flags(stored) if flags else None
    page = storage.absolute(html) if html else storage.join(stored.uri, "report.html")
    values = storage.absolute(json_file) if json_file else storage.join(stored.uri, "report.json")
    text = json.dumps(figures, indent=1, allow_nan=False, ensure_ascii=False)
    for uri, content in ((page, render_page(figures)), (values, text)):
        storage.write_atomically(uri, content.encode("utf-8", "replace"), storage.parent(uri))
    return Written(page, values, flagged, figures)


def _write_flags(stored: Stored) -> str:
    """Write the flags of all published candidates; returns the folder."""
    folder, scratch = (storage.join(stored.uri, name) for name in (FLAGS_FOLDER, "_scratch"))
    names = set()
    for file, table in flag_tables(stored):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        names.add(storage.name_of(file))
        storage.write_atomically(storage.join(folder, storage.name_of(file)), sink.getvalue(), scratch)
    stale = set(storage.list_names(folder, ".parquet")) - names
    storage.delete_files([storage.join(folder, name) for name in stale])
    return folder
