"""Clips in the report: rows from the lowest to the highest score, played from the page itself."""

import base64
import html
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.report import write_report
from pipeline.report.listen import CLIPS, MAX_BYTES
from tests.pipeline.synthetic_output import write_run


def with_sound(output: Path, count: int, largest: int = 100) -> dict[str, bytes]:
    """A run of which all rows but the first have sound, in small row groups; the clip of each."""
    write_run(output, count=count)
    clips: dict[str, bytes] = {}
    for path in sorted((output / "data").glob("*.parquet")):
        table = pq.read_table(path)
        ids = table["id"].to_pylist()
        clips |= {row_id: row_id.encode() * largest for row_id in ids}
        audio = [{"bytes": clips[row_id], "path": "x.opus"} for row_id in ids]
        measures = [{"duration_s": 1.0, "peak": 0.5, "rms_dbfs": -20.0, "clipped_share": 0.0}] * len(ids)
        heard = [[{"rank": 1, "candidate": 0, "heard": f"<b>{row_id}"}] for row_id in ids]
        columns = {"audio": audio, "audio_measures": measures, "measures": heard}
        for name, values in columns.items():
            table = table.append_column(name, pa.array([None, *values[1:]]))
        pq.write_table(table, path, row_group_size=7)
    return clips


def played(output: Path) -> list[tuple[str, bytes]]:
    """What the page plays: the name above each clip, and its bytes."""
    write_report(str(output))
    page = (output / "report.html").read_text()
    found = re.findall(r'<bdi>([^<]*)</bdi></h3><audio [^>]*src="data:audio/ogg;base64,([^"]*)"', page)
    return [(html.unescape(name), base64.b64decode(data)) for name, data in found]


def test_the_page_plays_rows_of_every_score(tmp_path: Path) -> None:
    clips = with_sound(tmp_path, 60)
    found = played(tmp_path)
    assert len(found) == CLIPS
    assert all(clips[name] == data for name, data in found)
    rows = [row for path in (tmp_path / "data").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    scores = {row["id"]: row["candidates"][0]["score"] for row in rows if row["audio"]}
    shown = [scores[name] for name, _ in found]
    assert shown == sorted(shown, reverse=True)
    assert (shown[0], shown[-1]) == (max(scores.values()), min(scores.values()))
    page = (tmp_path / "report.html").read_text()
    assert "media-src data:" in page
    assert f"heard: <bdi>&lt;b&gt;{html.escape(found[0][0])}</bdi>" in page
    assert "base64" not in (tmp_path / "report.json").read_text()


def test_few_rows_are_all_there_and_long_clips_are_not(tmp_path: Path) -> None:
    clips = with_sound(tmp_path / "few", 5)
    found = played(tmp_path / "few")
    assert len(found) >= 3
    assert dict(found).items() <= clips.items()
    with_sound(tmp_path / "long", 5, largest=MAX_BYTES)
    assert played(tmp_path / "long") == []


@pytest.mark.parametrize("count", [0, 12])
def test_without_sound_there_is_nothing_to_play(tmp_path: Path, count: int) -> None:
    write_run(tmp_path, count=count)
    assert played(tmp_path) == []
    assert "Listen" not in (tmp_path / "report.html").read_text()
