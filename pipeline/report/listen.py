"""Clips of a run that can be played in its report: rows from the lowest to the highest score."""

import base64
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from pipeline.report.figures import MAX_TEXT, Stored

CLIPS = 12
MAX_BYTES = 400_000  # of a clip; longer ones would make the page heavy
AUDIO, MEASURES = "audio", "measures"
TYPES = {"flac": "audio/flac", "wav": "audio/wav", "opus": "audio/ogg"}
# Published rows that have sound, as many of each score.
CHOSEN = f"""
    with heard as (select id, any_value(text) as text, max(score) filter (rank = 1) as score
        from rows join candidates using ("row") where sound_s is not null and published group by id),
    placed as (select *, row_number() over (order by score, id) - 1 as place, count(*) over () as many
        from heard)
    select id, text, score from placed
        where place = 0 or place * ({CLIPS} - 1) // (many - 1) > (place - 1) * ({CLIPS} - 1) // (many - 1)
        order by score desc, id"""


def clips_of(stored: Stored) -> list[dict[str, Any]]:
    """Chosen rows, the best first: `id`, `text`, `score`, what was `heard` (None without a recognizer), and
    `source`, the clip as a data URI.
    """
    chosen = {row["id"]: row for row in stored.query(CHOSEN)}
    found: dict[str, dict[str, Any]] = {}
    folder = stored.folder
    for name in folder.parquet_files("data"):
        if len(found) == len(chosen):
            break
        with folder.open_table("data", name) as file:
            _add(file, chosen, found)
    return [{**row, **found[row_id]} for row_id, row in chosen.items() if row_id in found]


def _add(file: pq.ParquetFile, chosen: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
    """Read of the row groups that hold a chosen row what is played of it."""
    columns = [name for name in (AUDIO, MEASURES) if name in file.schema_arrow.names]
    for group in range(file.num_row_groups):
        ids: Sequence[str] = file.read_row_group(group, ["id"])["id"].to_pylist()
        places = [place for place, row_id in enumerate(ids) if row_id in chosen]
        if not places:
            continue
        rows = file.read_row_group(group, columns).take(places).to_pylist()
        for place, row in zip(places, rows, strict=True):
            audio, measures = row.get(AUDIO), row.get(MEASURES)
            if audio and audio["bytes"] and len(audio["bytes"]) <= MAX_BYTES:
                kind = TYPES.get(audio["path"].rpartition(".")[2], "audio/flac")
                data = base64.b64encode(audio["bytes"]).decode()
                heard = measures[0].get("heard") if measures else None
                found[ids[place]] = {
                    "source": f"data:{kind};base64,{data}",
                    "heard": heard and heard[:MAX_TEXT],
                }
