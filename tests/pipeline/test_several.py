"""Rows made of a manifest's rows: in voices that a folder holds, and long texts as utterances."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from pipeline.errors import ManifestError
from pipeline.rows.manifest import Reading, open_manifest
from pipeline.rows.normalise import RowIndex, scan
from pipeline.rows.payloads import AUDIO_PAYLOAD, SPEECH_PAYLOAD
from pipeline.rows.plan import select_rows
from tests.pipeline.clips import blocks_of, read_rows

LONG = "He went out of the house and down to the river. " * 9
BOOK = f"CHAPTER I.\n\n{LONG}\n\n* * *\n\n“Is it you?” she said.\n"


@pytest.fixture
def voices(tmp_path: Path) -> str:
    """Voices ada of two clips, bob of one in a folder of his own, cleo beside them, and dan of none."""
    for name in ("ada/2.wav", "ada/1.FLAC", "ada/notes.txt", "bob/x/y.mp3", "cleo.wav", "dan/voice.pth"):
        path = tmp_path / "voices" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return str(tmp_path / "voices")


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def seen(place: Path, **reading: Any) -> list[tuple[Any, ...]]:
    """Of each row id, text and clips below the folder of voices, or id and kind of its error."""
    told = Reading(**reading)
    root = f"{told.voices}/"
    return [
        (row["id"], row["text"], *(clip["path"].removeprefix(root) for clip in row["audio"]))
        if row["error"] is None
        else (row["id"], row["error"]["type"])
        for row in read_rows(place, reading=told).to_pylist()
    ]


def index_of(place: Path, **reading: Any) -> RowIndex:
    return scan(open_manifest([str(place)], AUDIO_PAYLOAD, reading=Reading(**reading)))[1]


# ---- voices ----


def test_a_column_names_the_voice_of_each_row(tmp_path: Path, voices: str) -> None:
    told = ["ada", "bob", "cleo", "ada & bob", "eve", "dan", "ada&eve", None, 7]
    rows = [{"id": f"u{i}", "text": "Hi.", "who": voice} for i, voice in enumerate(told)]
    place = jsonl(tmp_path / "m.jsonl", [*rows, {"id": None, "text": "Hi.", "who": "ada"}])
    assert seen(place, columns="voice=who", voices=voices) == [
        ("u0", "Hi.", "ada/1.FLAC", "ada/2.wav"),
        ("u1", "Hi.", "bob/x/y.mp3"),
        ("u2", "Hi.", "cleo.wav"),
        ("u3", "Hi.", "ada/1.FLAC", "ada/2.wav", "bob/x/y.mp3"),
        ("u4", "UnknownVoice"),
        ("u5", "UnknownVoice"),
        ("u6", "UnknownVoice"),
        ("u7", "MissingVoice"),
        ("u8", "WrongColumnType"),
    ]
    table = read_rows(place, reading=Reading(columns="voice=who", voices=voices))
    assert table["extra.voice"].to_pylist()[:5] == told[:5]
    assert "extra.who" not in table.column_names
    assert table["source"].to_pylist()[4] == f"{place}, row 5"
    assert "'eve' has no clips; those with clips are ada, bob, cleo" in str(table["error"][4])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "txt"])
def test_one_voice_for_all_rows_of_any_format(tmp_path: Path, voices: str, kind: str) -> None:
    """No column of audio is needed, and one that is there is not read."""
    place = tmp_path / f"m.{kind}"
    rows = [{"id": f"m/000{i}", "text": f"Text {i}.", "audio": "none.wav", "day": i} for i in (1, 2)]
    if kind == "jsonl":
        jsonl(place, rows)
    elif kind == "csv":
        place.write_text("id,text\nm/0001,Text 1.\nm/0002,Text 2.\n")
    elif kind == "txt":
        place.write_text("Text 1.\nText 2.\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), place)
    expected = [(f"m/000{i}", f"Text {i}.", "ada/1.FLAC", "ada/2.wav", "cleo.wav") for i in (1, 2)]
    assert seen(place, voices=voices, voice="ada&cleo") == expected
    assert seen(place, voices=voices, voice="ada&cleo", columns="text=text") == expected


def test_every_row_in_every_voice(tmp_path: Path, voices: str) -> None:
    rows = [{"id": "a", "text": "One.", "voice": "x", "n": 1}, {"id": "b", "text": "Two.", "n": 2}]
    place = jsonl(tmp_path / "m.jsonl", rows)
    ids = [
        [row[0] for row in seen(place, voices=voices, voice=voice)] for voice in ("*", "bob,ada&cleo", "c*")
    ]
    assert ids == [
        ["a/ada", "a/bob", "a/cleo", "b/ada", "b/bob", "b/cleo"],
        ["a/bob", "a/ada&cleo", "b/bob", "b/ada&cleo"],
        ["a/cleo", "b/cleo"],
    ]
    table = read_rows(place, reading=Reading(voices=voices, voice="*"))
    assert table["extra.voice"].to_pylist() == ["ada", "bob", "cleo"] * 2
    assert table["extra.n"].to_pylist() == [1, 1, 1, 2, 2, 2]
    assert table["source"].to_pylist()[3] == f"{place}, row 2"


def test_a_clip_more_is_a_change_and_another_place_is_none(tmp_path: Path, voices: str) -> None:
    place = jsonl(tmp_path / "m.jsonl", [{"id": v, "text": "Hi.", "voice": v} for v in ("ada", "bob")])
    before = index_of(place, voices=voices).digests
    moved = Path(voices).rename(tmp_path / "moved")
    assert (index_of(place, voices=str(moved)).digests == before).all()
    (moved / "bob/new.wav").write_bytes(b"")
    assert (index_of(place, voices=str(moved)).digests == before).tolist() == [True, False]


def test_parquet_keeps_the_types_of_its_columns(tmp_path: Path, voices: str) -> None:
    place = tmp_path / "m.parquet"
    columns = {
        "id": ["a", "b"],
        "text": [LONG, "Short."],
        "voice": ["ada", "bob"],
        "small": pa.array([1, None], pa.int8()),
        "day": pa.array([1, 2], pa.date32()),
        "tags": pa.array([["x"], []], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    }
    pq.write_table(pa.table(columns), place, row_group_size=1)
    manifest, blocks = blocks_of(place, reading=Reading(voices=voices, split_text=True))
    table = pa.concat_tables(blocks)
    assert manifest.extra.field("small").type == pa.int8()
    assert manifest.extra.field("day").type == pa.date32()
    assert manifest.extra.field("part").type == pa.int64()
    assert table["id"].to_pylist() == ["a/0001", "a/0002", "b/0001"]
    assert table["extra.small"].to_pylist() == [1, 1, None]
    assert table["source"].to_pylist()[2] == f"{place}, row 2"


@pytest.mark.parametrize(
    ("reading", "problem"),
    [
        ({"voice": "eve"}, "--voice eve: the voice 'eve' has no clips; those with clips are ada, bob, cleo"),
        ({"voice": "dan"}, "the voice 'dan' has no clips"),
        ({"voice": "ada,eve"}, "the voice 'eve'"),
        ({"voice": "z*"}, "the voice 'z*'"),
        ({"voice": "ada,z*"}, "the voice 'z*'"),
        ({}, "no column 'voice'"),
        ({"columns": "voice=id"}, "no row has a voice; the first: the voice 'a' has no clips"),
        ({"columns": "speaker=id"}, "columns can name id, text, audio, voice, not 'speaker'"),
        ({"voice": "ada", "split_text": True, "columns": "text=id"}, "'part' clashes"),
        ({"voices": "/no/such/folder", "voice": "ada"}, "voices /no/such/folder: no such file"),
        ({"voices": "DAN", "voice": "ada"}, "no folder in it has a clip"),
    ],
)
def test_what_is_wrong_for_all_ends_the_run(
    tmp_path: Path, voices: str, reading: dict[str, Any], problem: str
) -> None:
    place = jsonl(tmp_path / "m.jsonl", [{"id": "a", "text": "Hi.", "part": 1}, {"id": "b", "part": 2}])
    told = {"voices": voices} | reading
    told["voices"] = told["voices"].replace("DAN", f"{voices}/dan")
    with pytest.raises(ManifestError, match=problem.replace("*", r"\*")):
        index_of(place, **told)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="voice='ada' needs"):
        Reading(voice="ada")
    with pytest.raises(ValueError, match="split_text=5"):
        Reading(split_text=5)
    with pytest.raises(ManifestError, match="to be spoken"):
        open_manifest(["m.jsonl"], SPEECH_PAYLOAD, reading=Reading(split_text=True))


# ---- long texts ----


def test_a_book_in_two_voices(tmp_path: Path, voices: str) -> None:
    place = tmp_path / "books"
    place.mkdir()
    (place / "one.txt").write_text(BOOK)
    (place / "two.txt").write_text("Short.")
    reading = Reading(voices=voices, voice="bob,cleo", split_text=True)
    rows = read_rows(place, reading=reading).to_pylist()
    parts = [f"one/{voice}/000{n}" for voice in ("bob", "cleo") for n in (1, 2, 3, 4)]
    assert [row["id"] for row in rows] == [*parts, "two/bob/0001", "two/cleo/0001"]
    assert " ".join(row["text"] for row in rows[:4]).split() == BOOK.replace("* * *", "").split()
    assert [row["extra.part_of"] for row in rows] == ["one/bob"] * 4 + ["one/cleo"] * 4 + [
        "two/bob",
        "two/cleo",
    ]
    assert [row["extra.part"] for row in rows] == [1, 2, 3, 4, 1, 2, 3, 4, 1, 1]
    assert [row["extra.pause_s"] for row in rows[:4]] == [0.8, 0.4, 0.8, None]
    assert {row["source"] for row in rows[:8]} == {f"{place}, row 1"}


def test_utterances_have_the_length_that_is_asked_for(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": LONG * 20, "audio": "x.wav"}, {"id": "b", "text": "Hi.", "audio": "y.wav"}]
    place = jsonl(tmp_path / "m.jsonl", rows)
    for length in (50, 100, 200):
        sizes = [len(row[1]) for row in seen(place, split_text=length)][:-1]
        assert max(sizes) <= length * 1.5
        assert np.mean(sizes) == pytest.approx(length, rel=0.3)
    assert len(LONG * 20) > 5_000, "more than a text may have that is not split"


def test_a_row_that_is_bad_stays_one_row(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": None, "text": LONG, "audio": "x.wav"},
        {"id": "a", "text": None, "audio": "x.wav"},
        {"id": "b", "text": LONG, "audio": None},
        {"id": "c", "text": "", "audio": "x.wav"},
        {"id": "x" * 1024, "text": LONG, "audio": "x.wav"},
    ]
    place = jsonl(tmp_path / "m.jsonl", rows)
    assert seen(place, split_text=True)[:4] == [
        ("a/0001", "MissingText"),
        ("b/0001", "MissingAudio"),
        ("b/0002", "MissingAudio"),
        ("c/0001", "", str(tmp_path / "x.wav")),
    ]
    index = index_of(place, split_text=True)
    assert len(select_rows(index, pa.chunked_array([], pa.large_string())).unusable) == 3
    assert [error.kind for error in index.problems.values()] == [
        "InvalidId" if i else "MissingId" for i in range(3)
    ]


def test_digests_tell_which_parts_of_a_text_have_changed(tmp_path: Path) -> None:
    """Also that a part has become the last: behind it lie those of the text as it was."""
    place = tmp_path / "m.jsonl"

    def digests(text: str) -> dict[str, int]:
        jsonl(place, [{"id": "a", "text": text, "audio": "x.wav"}])
        index = index_of(place, split_text=True)
        return dict(zip(index.ids.to_pylist(), index.digests.tolist(), strict=True))

    def changed(text: str) -> list[str]:
        now = digests(text)
        return [name for name, digest in now.items() if before.get(name) != digest]

    paragraphs = ["It was day.", "It was night.", "It was day again."]
    before = digests("\n\n".join(paragraphs))
    assert changed("\n\n".join(paragraphs)) == []
    assert changed("\n\n".join([*paragraphs[:2], "The end."])) == ["a/0003"]
    assert changed("\n\n".join(paragraphs[:2])) == ["a/0002"]
    assert changed("\n\n".join([*paragraphs, "The end."])) == ["a/0003", "a/0004"]


def test_clips_in_a_tar_belong_to_all_parts(tmp_path: Path) -> None:
    place = tmp_path / "m.tar"
    with tarfile.open(place, "w") as tar:
        for name, data in (("u1.txt", BOOK.encode()), ("u1.wav", b"sound")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    rows = read_rows(place, reading=Reading(split_text=True)).to_pylist()
    assert [row["id"] for row in rows] == ["u1/0001", "u1/0002", "u1/0003", "u1/0004"]
    assert {row["audio"][0]["bytes"] for row in rows} == {b"sound"}


def test_a_chapter_is_put_together_by_what_the_documentation_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From parts in any order, in two files, beside other voices and the end of the text as it was."""
    rows = [
        {"part_of": f"alice/{voice}", "part": part, "pause_s": pause, "audio": {"bytes": flac(level, part)}}
        for voice, level in (("ada", 0.25), ("bob", 0.5))
        for part, pause in ((3, None), (1, 0.5), (4, 0.4), (5, None), (2, 0.25))
    ]
    (tmp_path / "outputs/alice/data").mkdir(parents=True)
    for i in range(2):
        pq.write_table(pa.Table.from_pylist(rows[i::2]), tmp_path / f"outputs/alice/data/{i}.parquet")
    page = (Path(__file__).parents[2] / "docs/manifests.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(page.partition("```python\n")[2].partition("```")[0], {})
    samples, rate = soundfile.read("chapter.wav")
    assert rate == 24_000
    bounds = np.flatnonzero(np.diff(samples != 0)) + 1
    assert set(samples.tolist()) == {0.0, 0.25}
    assert np.diff([0, *bounds, len(samples)]).tolist() == [1_000, 12_000, 2_000, 6_000, 3_000]


def flac(level: float, part: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(1_000 * part, level), 24_000, format="FLAC")
    return buffer.getvalue()
