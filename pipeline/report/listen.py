"""Clips of a run that can be played in its report: rows from the lowest to the highest score."""

import base64
from typing import Any

from pipeline.report.figures import MAX_TEXT, Stored

CLIPS = 12
MAX_BYTES = 400_000  # of a clip; longer ones would make the page heavy
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
    tables = stored.folder.matching("data", chosen, ["id", "audio", "measures"]) if chosen else ()
    for row in (row for table in tables for row in table.to_pylist()):
        audio, measures = row.get("audio"), row.get("measures")
        if audio and audio["bytes"] and len(audio["bytes"]) <= MAX_BYTES:
            kind = TYPES.get(audio["path"].rpartition(".")[2], "audio/flac")
            heard = measures[0].get("heard") if measures else None
            source = f"data:{kind};base64,{base64.b64encode(audio['bytes']).decode()}"
            chosen[row["id"]] |= {"source": source, "heard": heard and heard[:MAX_TEXT]}
    return [row for row in chosen.values() if "source" in row]
