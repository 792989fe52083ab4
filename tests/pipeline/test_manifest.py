import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ManifestError
from pipeline.rows import formats, normalise
from pipeline.rows.manifest import open_manifest
from pipeline.rows.normalise import scan
from pipeline.rows.payloads import AUDIO_PAYLOAD, SPEECH_PAYLOAD, STORED_PAYLOAD
from tests.pipeline.clips import read_rows, write_jsonl

ROWS = [{"id": f"00{i}", "text": f"Text, “{i}”\nover two lines", "audio": f"clips/{i}.wav"} for i in range(7)]


def write_csv(path: Path) -> Path:
    lines = ["id,text,audio"] + [f'{r["id"]},"{r["text"]}",{r["audio"]}' for r in ROWS]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_parquet(path: Path, table: pa.Table | None = None, **options: object) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS) if table is None else table, path, **options)
    return path


def test_formats_agree(tmp_path: Path) -> None:
    files = [
        write_csv(tmp_path / "m.csv"),
        write_jsonl(tmp_path / "m.jsonl", ROWS),
        write_parquet(tmp_path / "m.parquet", row_group_size=2),
    ]
    for file in files:
        table = read_rows(file)
        assert table["id"].to_pylist() == [row["id"] for row in ROWS], "leading zeros stay"
        assert table["text"].to_pylist() == [row["text"] for row in ROWS]
        paths = [[clip["path"] for clip in clips] for clips in table["audio"].to_pylist()]
        assert paths == [[str(tmp_path / row["audio"])] for row in ROWS]
        assert table["source"].to_pylist() == [f"{file}, row {n}" for n in range(1, 8)]
        assert table["error"].null_count == 7


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: bytes(pa.Codec("zstd").compress(data)),
    ".GZ": lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:]),  # as bgzip and `cat` make it
}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_text_is_read_as_it_is_uncompressed(tmp_path: Path, suffix: str) -> None:
    for plain in (write_csv(tmp_path / "m.csv"), write_jsonl(tmp_path / "m.jsonl", ROWS)):
        expected = read_rows(plain).drop_columns("source")
        packed = plain.with_name(plain.name + suffix)
        packed.write_bytes(COMPRESS[suffix](plain.read_bytes()))
        found = read_rows(packed)
        assert found.drop_columns("source").equals(expected)
        assert found["source"][0].as_py() == f"{packed}, row 1"


def test_a_folder_leaves_out_no_compressed_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "part-0.jsonl", ROWS[:1])
    for i, (name, suffix) in enumerate([("1.jsonl", ".gz"), ("2.JSONL", ".bz2"), ("3.json", ".zst")], 1):
        line = json.dumps(ROWS[i]).encode()
        (tmp_path / f"part-{name}{suffix}").write_bytes(COMPRESS[suffix](line))
    assert read_rows(tmp_path)["id"].to_pylist() == [row["id"] for row in ROWS[:4]]


def test_rows_do_not_depend_on_how_a_file_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns appear late, types widen, kinds of audio alternate; bad rows lie between."""
    base = {"text": "t", "audio": "a.wav"}
    changes: list[dict[str, object] | str] = [
        {"n": 1, "d": {"a": 1}},
        {"n": 2, "tags": []},
        "no JSON",
        {"n": 1.5, "audio": ["a.wav", {"path": "b.wav"}], "d": {"b": [True]}},
        {"n": "many", "audio": 7},
        {"n": None, "late": "x", "audio": {"path": "c.wav"}},
        {"text": 5, "tags": ["q"]},
        {"late": 3, "audio": ""},
        {"n": 2**40, "d": {"a": 2.5}, "audio": "\ud800"},
        {"id": None},
    ]
    lines = [c if isinstance(c, str) else {"id": f"r{i}"} | base | c for i, c in enumerate(changes)]
    file = write_jsonl(tmp_path / "m.jsonl", lines)
    whole = read_rows(file)
    problems = scan(open_manifest([str(file)], AUDIO_PAYLOAD))[1].problems
    assert sorted(problems) == [2, 9]
    assert [error and error["type"] for error in whole["error"].to_pylist()] == [
        *(None, None, None, "WrongColumnType", None, "InvalidText", "WrongColumnType", "InvalidAudioValue")
    ]
    for rows in (1, 2, 3, 7):
        monkeypatch.setattr(normalise, "CHUNK_ROWS", rows)
        cut = read_rows(file, rows_per_block=4)
        assert cut.schema.equals(whole.schema)
        assert cut.drop_columns("error").equals(whole.drop_columns("error"))
        assert [error and error["type"] for error in cut["error"].to_pylist()] == [
            error and error["type"] for error in whole["error"].to_pylist()
        ]
        again = scan(open_manifest([str(file)], AUDIO_PAYLOAD))[1]
        assert {i: str(error) for i, error in again.problems.items()} == {
            i: str(error) for i, error in problems.items()
        }
        assert sum(again.groups["row"] == again.groups["first"] + 1) == len(again.groups)


def test_several_files_are_one_manifest_in_the_order_given(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    first = write_jsonl(tmp_path / "z.jsonl", ROWS[:2])
    second = write_parquet(tmp_path / "x" / "b.parquet", pa.Table.from_pylist(ROWS[4:]))
    third = write_jsonl(tmp_path / "x" / "a.jsonl", ROWS[2:4])
    table = read_rows(first, tmp_path / "x", rows_per_block=4)
    assert table["id"].to_pylist() == [row["id"] for row in ROWS]
    assert table["audio"][2].as_py()[0]["path"] == str(tmp_path / "x" / "clips" / "2.wav")
    assert {source.as_py().partition(",")[0] for source in table["source"]} == {
        str(f) for f in (first, second, third)
    }


def test_audio_values(tmp_path: Path) -> None:
    values = ["a.wav", ["a.wav", "/b.wav", "s3://c/d.wav"], {"path": "e.wav"}, [{"path": "f.wav"}, "g.wav"]]
    rows = [{"id": str(i), "text": "x", "audio": value} for i, value in enumerate(values)]
    audio = read_rows(write_jsonl(tmp_path / "m.jsonl", rows))["audio"].to_pylist()
    folder = str(tmp_path)
    assert [[clip["path"] for clip in clips] for clips in audio] == [
        [f"{folder}/a.wav"],
        [f"{folder}/a.wav", "/b.wav", "s3://c/d.wav"],
        [f"{folder}/e.wav"],
        [f"{folder}/f.wav", f"{folder}/g.wav"],
    ]


def test_audio_struct_of_hugging_face_datasets(tmp_path: Path) -> None:
    struct = [
        {"bytes": b"RIFF1", "path": "a.wav"},
        {"bytes": None, "path": "b.wav"},
        {"bytes": b"RIFF2", "path": None},
    ]
    table = pa.table({"id": [1, 2, 3], "text": ["x", "y", "z"], "audio": struct})
    read = read_rows(write_parquet(tmp_path / "m.parquet", table))
    assert read["id"].to_pylist() == ["1", "2", "3"]
    clips = [clips[0] for clips in read["audio"].to_pylist()]
    assert [clip["bytes"] for clip in clips] == [b"RIFF1", None, b"RIFF2"]
    assert clips[1]["path"] == str(tmp_path / "b.wav")
    several = table.set_column(2, "audio", pa.array([struct[:2], struct[2:], struct]))
    assert [
        len(c) for c in read_rows(write_parquet(tmp_path / "m.parquet", several))["audio"].to_pylist()
    ] == [2, 1, 3]


def test_pass_through_columns_keep_their_types(tmp_path: Path) -> None:
    extra = {
        "count": pa.array([1, 2, None], pa.int16()),
        "when": pa.array([0, 1, 2], pa.timestamp("ms", "UTC")),
        "tags": pa.array([["a"], [], None]),
        "voice": pa.array(["x", "y", "x"]).dictionary_encode(),
        "meta": pa.array([{"a": 1, "b": "q"}, None, {"a": 2, "b": None}]),
        "error": pa.array([b"1", b"2", b"3"]),  # also the name of a working column
    }
    table = pa.table({"text": ["a", "b", "c"], **extra, "id": ["1", "2", "3"], "audio": ["w"] * 3})
    read = read_rows(write_parquet(tmp_path / "m.parquet", table, row_group_size=1), rows_per_block=2)
    for name, column in extra.items():
        assert read[f"extra.{name}"].type == column.type
        assert read[f"extra.{name}"].to_pylist() == column.to_pylist()


def test_json_types_are_those_of_all_lines(tmp_path: Path) -> None:
    base = {"text": "t", "audio": "a.wav"}
    rows = [
        base | {"id": "1", "n": 1, "late": None, "d": {"a": 1}},
        base | {"id": "2", "n": 1.5, "d": {"b": [True]}},
        base | {"id": "3", "n": None, "late": "x"},
        base | {"id": "4", "n": "many", "late": 7},
    ]
    read = read_rows(write_jsonl(tmp_path / "m.jsonl", rows))
    assert read["extra.n"].to_pylist() == [1.0, 1.5, None, None]
    assert read["extra.late"].to_pylist() == [None, None, "x", None]
    assert read["extra.d"][1].as_py() == {"a": None, "b": [True]}
    assert [error and error["type"] for error in read["error"].to_pylist()] == [
        None,
        None,
        None,
        "WrongColumnType",
    ]
    assert "'n' is double" in read["error"][3].as_py()["message"]


def test_objects_without_fields_are_nothing(tmp_path: Path) -> None:
    """Parquet has no such type; numbers beyond 64 bits and lone surrogates are errors of their rows."""
    values = [{}, {}, 10**30, "\ud800", None]
    rows = [ROWS[0] | {"id": str(i), "d": value} for i, value in enumerate(values)]
    table = read_rows(write_jsonl(tmp_path / "m.jsonl", rows))
    assert table["extra.d"].to_pylist() == [None] * 5
    assert [error and error["type"] for error in table["error"].to_pylist()] == [
        *(None, None, "WrongColumnType", "WrongColumnType", None)
    ]
    mixed = [rows[0], rows[1] | {"d": {"a": 1}}]
    table = read_rows(write_jsonl(tmp_path / "m.jsonl", mixed))
    assert table["extra.d"].to_pylist() == [{"a": None}, {"a": 1}]
    assert table["error"].null_count == 2


def bad_manifests() -> dict[str, tuple[dict[str, bytes], str]]:
    """name -> (files, what the message says)"""
    good = json.dumps(ROWS[0])

    def parquet(**columns: object) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        return bytes(sink.getvalue())

    return {
        "no file": ({}, "no such file"),
        "unknown format": ({"m.doc": b"hello"}, "no file of a known kind (.parquet,"),
        "a text without a voice": ({"m.txt": b"hello"}, "the voice of the clip that has its name"),
        "empty csv": ({"m.csv": b""}, "no rows"),
        "header only": ({"m.csv": b"id,text,audio\n"}, "no rows"),
        "empty jsonl": ({"m.jsonl": b"\n\n"}, "no rows"),
        "csv without a column": ({"m.csv": b"id,text,wav\n1,a,b\n"}, "no column 'audio'; its columns are"),
        "csv with a column twice": ({"m.csv": b"id,text,audio,text\n"}, "must be unique"),
        "jsonl without columns": ({"m.jsonl": b'{"id": "1"}\n'}, "no column 'text' and no column 'audio'"),
        "parquet without id": ({"m.parquet": parquet(text=["a"], audio=["b"])}, "no column 'id'"),
        "not parquet": ({"m.parquet": b"PAR1 but no more"}, "cannot be read"),
        "truncated parquet": ({"m.parquet": parquet(id=["1"], text=["a"], audio=["b"])[:-9]}, "be read"),
        "float id": ({"m.parquet": parquet(id=[1.5], text=["a"], audio=["b"])}, "'id' holds double: id"),
        "number text": ({"m.parquet": parquet(id=["1"], text=[3], audio=["b"])}, "'text' holds int64: text"),
        "number audio": ({"m.parquet": parquet(id=["1"], text=["a"], audio=[3])}, "'audio' holds int64"),
        "clash": ({"m.csv": b"id,text,audio,candidates\n1,a,b,c\n"}, "'candidates' clashes"),
        "clash in jsonl": ({"m.jsonl": good[:-1].encode() + b', "seed": 1}\n'}, "'seed' clashes"),
        "clash with a voice": ({"m.csv": b"id,text,audio,voice_key\n1,a,b,c\n"}, "'voice_key' clashes"),
        "types differ between files": (
            {
                "a.parquet": parquet(id=["1"], text=["a"], audio=["b"], n=[1]),
                "b.csv": b"id,text,audio,n\n2,a,b,3\n",
            },
            "'n' holds string; in the files before it held int64",
        ),
        "types differ from jsonl": (
            {"a.csv": b"id,text,audio,n\n2,a,b,3\n", "b.jsonl": good[:-1].encode() + b', "n": 1}\n'},
            "'n' holds int64",
        ),
        "quote open in the header": ({"m.csv": b'id,"text,audio\n1,a,b\n'}, "no column 'text'"),
        "csv in Latin-1": ({"m.csv": "id,text,auf nähe\n1,ä,b\n".encode("latin-1")}, "is not valid UTF-8"),
        "UTF-16 that ends early": ({"m.jsonl": (good + "\n").encode("utf-16")[:-1]}, "cannot be read"),
        "a JSON document": ({"m.json": json.dumps(ROWS, indent=1).encode()}, "no row can be read as jsonl"),
        "columns without end": (
            {"m.csv": b"id,text,audio," + b",".join(b"c%d" % i for i in range(2000)) + b"\n" + b"," * 2002},
            "2,003 columns",
        ),
        "columns without end in Parquet": (
            {"m.parquet": parquet(id=["1"], text=["a"], audio=["b"], **{f"c{i}": [i] for i in range(2000)})},
            "2,003 columns",
        ),
        "columns without end in JSON": (
            {"m.jsonl": b"".join(b'{"id": "1", "c%d": 1}\n' % i for i in range(2000))},
            "2,001 columns",
        ),
        "objects without end": (
            {"m.jsonl": b"".join(good[:-1].encode() + b', "d": {"c%d": 1}}\n' % i for i in range(2000))},
            "over 1,000 different fields",
        ),
        "audio as numbers": (
            {"m.parquet": parquet(id=["1"], text=["a"], audio=[{"array": [0.1], "path": 3}])},
            "audio must be a path",
        ),
        "blank before the header": ({"m.csv": b"\n\nid,text,wav\n1,a,b\n"}, "no column 'audio'"),
        "truncated gzip": ({"m.csv.gz": gzip.compress(b"id,text,audio\n1,a,b\n")[:-12]}, "cannot be read"),
        "null ids": ({"m.parquet": parquet(id=[None], text=["a"], audio=["b"])}, "'id' holds null"),
        "escape codes": ({"m.csv": b"id,text,\x1b[31maudio\n1,2,3\n"}, r"'\x1b[31maudio'"),
        "endless quote": ({"m.csv": b'id,text,audio\n1,"' + b"a\n" * 60_000}, "no row can be read as csv"),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(bad_manifests()))
def test_bad_manifest_is_one_clear_line(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_RECORD_BYTES", 100_000)
    files, expected = bad_manifests()[name]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ManifestError) as caught:
        scan(open_manifest([str(tmp_path)], AUDIO_PAYLOAD))
    message = str(caught.value)
    assert expected in message
    assert str(tmp_path) in message
    assert message.isprintable()
    assert len(message) <= 2000


def test_unreadable_rows_do_not_spoil_a_manifest(tmp_path: Path) -> None:
    lines = [
        json.dumps(ROWS[0]),
        "{not json",
        "[1, 2]",
        '{"text": "no id", "audio": "a"}',
        '{"id": null, "text": "x", "audio": "a"}',
        '{"id": true, "text": "x", "audio": "a"}',
        '{"id": "\\ud800", "text": "x", "audio": "a"}',
        json.dumps({"id": "x" * 2000, "text": "x", "audio": "a"}),
        "[" * 100_000,
        json.dumps(ROWS[0]),
        json.dumps(ROWS[1]),
    ]
    file = tmp_path / "m.jsonl"
    file.write_bytes("\n".join(lines).encode() + b'\n{"id": "\xff", "text": "x", "audio": "a"}')
    index = scan(open_manifest([str(file)], AUDIO_PAYLOAD))[1]
    assert len(index.ids) == 12
    assert {i: error.kind for i, error in index.problems.items()} == {
        **dict.fromkeys((1, 2, 8, 11), "MalformedRow"),
        **dict.fromkeys((3, 4), "MissingId"),
        **dict.fromkeys((5, 6, 7), "InvalidId"),
    }
    assert read_rows(file)["id"].to_pylist() == [ROWS[0]["id"], ROWS[1]["id"]]


def test_csv_oddities(tmp_path: Path) -> None:
    file = tmp_path / "m.csv"
    file.write_bytes(
        b"\xef\xbb\xbfid,text,audio,n\r\n"
        b'1,5" nails,a.wav,007\r\n'
        b"\r\n"
        b'2,"a ""quoted"", text\r\nof two lines",a.wav,\r\n'
        b"3,too,many,fields,here\r\n"
        b"4,\xff,a.wav,x\r\n"
        b"5,,,\r\n"
        b"6,last,a.wav,x"
    )
    table = read_rows(file, rows_per_block=2)
    assert table["id"].to_pylist() == ["1", "2", "5", "6"]
    assert table["text"].to_pylist() == ['5" nails', 'a "quoted", text\r\nof two lines', None, "last"]
    assert table["extra.n"].to_pylist() == ["007", "", "", "x"], (
        "CSV has no types: text stays as it is written"
    )
    assert table["source"].to_pylist() == [f"{file}, row {n}" for n in (1, 2, 5, 6)]
    assert [error and error["type"] for error in table["error"].to_pylist()] == [
        None,
        None,
        "MissingText",
        None,
    ]


def test_tab_separated(tmp_path: Path) -> None:
    (tmp_path / "m.tsv").write_text("id\ttext\taudio\n1\ta, b\tc.wav\n")
    assert read_rows(tmp_path / "m.tsv")["text"].to_pylist() == ["a, b"]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": None}, "MissingText"),
        ({"text": 5}, "InvalidText"),
        ({"text": ["a"]}, "InvalidText"),
        ({"text": "\ud800"}, "InvalidText"),
        ({"audio": None}, "MissingAudio"),
        ({"audio": []}, "MissingAudio"),
        ({"audio": ""}, "MissingAudio"),
        ({"audio": {"path": None}}, "MissingAudio"),
        ({"audio": ["a.wav", None]}, "MissingAudio"),
        ({"audio": 7}, "InvalidAudioValue"),
        ({"audio": [["a.wav"]]}, "InvalidAudioValue"),
        ({"audio": "a\0b"}, "InvalidAudioValue"),
        ({"audio": {"bytes": "UklGRg=="}}, "InvalidAudioValue"),
        ({"audio": "\ud800"}, "InvalidAudioValue"),
        ({"audio": ["a.wav"] * 65}, "TooManyClips"),
    ],
)
def test_bad_values_are_errors_of_their_rows(tmp_path: Path, row: dict[str, object], kind: str) -> None:
    rows = [ROWS[0], {"id": "bad", "text": "x", "audio": "a.wav"} | row, ROWS[1]]
    table = read_rows(write_jsonl(tmp_path / "m.jsonl", rows))
    errors = table["error"].to_pylist()
    assert table["id"].to_pylist() == ["000", "bad", "001"]
    assert errors[0] is None
    assert errors[2] is None
    assert (errors[1]["stage"], errors[1]["type"]) == ("read", kind)
    assert errors[1]["message"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 2, 3], [(0, True, [1, 2, 3])]),
        ([[1, 2], []], [(0, True, [1, 2]), (1, True, [])]),
        ("[[5], [6, 7]]", [(0, True, [5]), (1, True, [6, 7])]),
        (
            [{"candidate": 4, "finished": False, "speech_ids": [9], "score": 1.0}, {"speech_ids": [8]}],
            [(4, False, [9]), (1, True, [8])],
        ),
    ],
)
def test_speech_tokens(tmp_path: Path, value: object, expected: list[object]) -> None:
    file = write_jsonl(tmp_path / "m.jsonl", [{"id": "1", "text": "x", "speech_ids": value}])
    candidates = read_rows(file, payload=SPEECH_PAYLOAD)["speech_ids"][0].as_py()
    assert [(c["candidate"], c["finished"], c["speech_ids"]) for c in candidates] == expected


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_finished_output_is_a_manifest_of_its_candidates(tmp_path: Path, suffix: str) -> None:
    """Seed, voice and ranks are the output's own: they neither clash nor pass through."""
    stored = {"rank": 1, "candidate": 7, "score": 0.5, "speech_ids": [5, 6], "finished": False}
    row = {"id": "1", "text": "x", "n": 3, "seed": 1, "voice_key": "ab"}
    row |= {"candidates": [stored, stored | {"candidate": 2, "speech_ids": [], "finished": True}]}
    file = tmp_path / f"m.{suffix}"
    if suffix == "parquet":
        write_parquet(file, pa.Table.from_pylist([row]))
    else:
        write_jsonl(file, [row])
    table = read_rows(file, payload=STORED_PAYLOAD)
    assert table.schema.names == ["id", "text", "speech_ids", "source", "row_digest", "error", "extra.n"]
    assert table["speech_ids"].to_pylist() == [
        [
            {"candidate": 7, "finished": False, "speech_ids": [5, 6]},
            {"candidate": 2, "finished": True, "speech_ids": []},
        ]
    ]
    for payload in (AUDIO_PAYLOAD, SPEECH_PAYLOAD):
        with pytest.raises(ManifestError, match=r"no column '(audio|speech_ids)'"):
            scan(open_manifest([str(file)], payload))


@pytest.mark.parametrize(
    "value", [None, [], "no list", 3, [1.5], [70_000], [-1], [[1], 2], [True], [{"speech_ids": None}]]
)
def test_bad_speech_tokens(tmp_path: Path, value: object) -> None:
    file = write_jsonl(tmp_path / "m.jsonl", [{"id": "1", "text": "x", "speech_ids": value}])
    assert read_rows(file, payload=SPEECH_PAYLOAD)["error"][0].as_py()["type"] in (
        "InvalidSpeechIds",
        "MissingSpeechIds",
    )


def test_a_line_that_is_too_long_is_skipped_without_being_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MAX_RECORD_BYTES", 1000)
    long = {"id": "long", "text": "x" * 5000, "audio": "a.wav"}
    file = write_jsonl(tmp_path / "m.jsonl", [ROWS[0], long, ROWS[1]])
    index = scan(open_manifest([str(file)], AUDIO_PAYLOAD))[1]
    assert index.problems[1].kind == "RecordTooLong"
    assert read_rows(file)["id"].to_pylist() == [ROWS[0]["id"], ROWS[1]["id"]]
