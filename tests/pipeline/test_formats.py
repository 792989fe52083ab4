"""What corpus makers have, as a manifest: formats by sniffing and by name, files that once lost rows."""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ManifestError
from pipeline.rows.manifest import Reading, open_manifest
from pipeline.rows.normalise import scan
from pipeline.rows.payloads import AUDIO_PAYLOAD, SPEECH_PAYLOAD
from pipeline.rows.plan import make_plan, rejected_rows, select_rows
from pipeline.rows.read import read_block
from tests.pipeline.clips import NO_IDS, blocks_of, read_rows

ROWS = [{"id": f"u{i}", "text": f"Text {i}.", "audio": f"clips/{i}.wav"} for i in range(3)]


def write(path: Path, content: str | bytes | list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def seen(place: Path, format: str = "auto", **reading: Any) -> list[tuple[str, str, Any]]:
    """Of each row id, text and the path of its clip below the folder; or id, kind and text of its error."""
    table = read_rows(place, reading=Reading(format, **reading))
    root = str(place if place.is_dir() else place.parent) + "/"
    return [
        (row["id"], row["text"], row["audio"][0]["path"].removeprefix(root)) if row["error"] is None
        else (row["id"], row["error"]["type"], row["error"]["message"])
        for row in table.to_pylist()
    ]  # fmt: skip


def rejected(place: Path) -> list[str]:
    manifest, index = scan(open_manifest([str(place)], AUDIO_PAYLOAD))
    return [str(row["type"]) for row in rejected_rows(manifest, index, select_rows(index, NO_IDS))]


# ---- formats by name and by sniffing ----


@pytest.mark.parametrize("format", ["auto", "ljspeech"])
def test_ljspeech(tmp_path: Path, format: str) -> None:
    lines = (
        'LJ001-0001|In 1455 "x|In fourteen fifty-five "x\nLJ001-0002|"One, two"|"One, two"\nLJ001-0003|One|\n'
    )
    write(tmp_path / "metadata.csv", lines)
    write(tmp_path / "README", "no manifest")
    assert seen(tmp_path, format) == [
        ("LJ001-0001", 'In fourteen fifty-five "x', "wavs/LJ001-0001.wav"),
        ("LJ001-0002", "One, two", "wavs/LJ001-0002.wav"),
        ("LJ001-0003", "MissingText", "text is null"),
    ]
    listed = write(tmp_path / "filelist.lst", "wavs/a/1.wav|One.|7\nwavs/a/2.wav|Two.|7\n")
    assert seen(listed, "ljspeech") == [
        ("wavs/a/1", "One.", "wavs/a/1.wav"),
        ("wavs/a/2", "Two.", "wavs/a/2.wav"),
    ]
    assert read_rows(listed, reading=Reading("ljspeech"))["extra.speaker"].to_pylist() == ["7", "7"]


@pytest.mark.parametrize("format", ["auto", "commonvoice"])
def test_common_voice(tmp_path: Path, format: str) -> None:
    lines = [
        "client_id\tpath\tsentence\tage",
        'c1\ta_1.mp3\t"Come here, he said.\t',
        "c1\ta_2.mp3\tPlain.\ttwenties",
        'c2\ta_3.mp3\tI said."\t',
        'c2\ta_4.mp3\t"Stop!"\t',
        'c2\ta_5.mp3\t"Well," she said.\t',
    ]
    file = write(tmp_path / "validated.tsv", "\n".join(lines) + "\n")
    assert seen(file, format) == [
        ("a_1", '"Come here, he said.', "clips/a_1.mp3"),
        ("a_2", "Plain.", "clips/a_2.mp3"),
        ("a_3", 'I said."', "clips/a_3.mp3"),
        ("a_4", "Stop!", "clips/a_4.mp3"),
        ("a_5", '"Well," she said.', "clips/a_5.mp3"),
    ]
    table = read_rows(file)
    assert table["extra.client_id"].to_pylist() == ["c1", "c1", "c2", "c2", "c2"]
    assert "extra.path" not in table.schema.names


@pytest.mark.parametrize("format", ["auto", "nemo"])
def test_nemo(tmp_path: Path, format: str) -> None:
    rows = [
        {"audio_filepath": "wavs/1.wav", "duration": 1.5, "text": "One."},
        {"audio_filepath": "/data/2.wav", "duration": 2.0, "text": "Two.", "offset": 0.0},
        {"audio_filepath": "wavs/long.wav", "duration": 2.0, "text": "Three.", "offset": 7.25},
    ]
    file = write(tmp_path / "train.json", rows)
    assert seen(file, format) == [("wavs/1", "One.", "wavs/1.wav"), ("/data/2", "Two.", "/data/2.wav")]
    assert rejected(file) == ["UnsupportedAudio"]
    assert read_rows(file)["extra.duration"].to_pylist() == [1.5, 2.0]


@pytest.mark.parametrize("format", ["auto", "lhotse"])
def test_lhotse_cuts(tmp_path: Path, format: str) -> None:
    def cut(name: str, **changes: Any) -> dict[str, Any]:
        recording = {"id": name, "sources": [{"type": "file", "channels": [0], "source": f"rec/{name}.flac"}]}
        spoken = [{"id": name, "text": f"Text of {name}.", "speaker": "ada", "custom": {"x": [1, "y"]}}]
        made = {"id": f"{name}-0", "start": 0, "duration": 2.5, "channel": 0, "type": "MonoCut"}
        return made | {"supervisions": spoken, "recording": recording} | changes

    rows = [cut("a"), cut("b", start=3.5), cut("c", supervisions=[]), cut("d", supervisions=7), cut("e")]
    file = write(tmp_path / "cuts.jsonl.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert seen(file, format) == [("a-0", "Text of a.", "rec/a.flac"), ("e-0", "Text of e.", "rec/e.flac")]
    assert rejected(file) == ["UnsupportedAudio", "MalformedRow", "MalformedRow"]
    assert read_rows(file)["extra.speaker"].to_pylist() == ["ada", "ada"]


@pytest.mark.parametrize("format", ["auto", "kaldi"])
def test_kaldi(tmp_path: Path, format: str) -> None:
    write(tmp_path / "wav.scp", "b-2 b/2.wav\na-1\ta/1.wav\nc-3 sph2pipe -f wav c.sph |\n")
    write(tmp_path / "text", "a-1 ONE TWO\nb-2  THREE\nc-3 FOUR\nd-4 FIVE\n")
    write(tmp_path / "utt2spk", "a-1 ada\nb-2 ben\n")
    found = seen(tmp_path, format)
    assert found[:2] == [("a-1", "ONE TWO", "a/1.wav"), ("b-2", "THREE", "b/2.wav")]
    assert [(row_id, kind) for row_id, kind, _ in found[2:]] == [
        ("c-3", "InvalidAudioValue"),
        ("d-4", "MissingAudio"),
    ]
    assert "command" in found[2][2]
    assert read_rows(tmp_path)["extra.speaker"].to_pylist() == ["ada", "ben", None, None]
    assert read_rows(tmp_path)["source"][0].as_py() == f"{tmp_path}/wav.scp, row 1"
    write(tmp_path / "segments", "x-1 a-1 0.0 1.0\n")
    with pytest.raises(ManifestError, match="segments"):
        seen(tmp_path)


def tar_of(path: Path, members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("format", ["auto", "webdataset"])
@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_webdataset_clips_are_read_where_they_lie(tmp_path: Path, format: str, kind: int) -> None:
    long = "d/" + "x" * 90 + "/" + "y" * 60 + "003"
    members = {
        "d/001.flac": b"fLaC-1", "d/001.txt": b"One.\n", "d/001.json": b'{"speaker": "ada", "n": 1}',
        "d/002.json": b'{"text": "Two.", "n": 2}', "d/002.wav": b"RIFF-2", "d/002.cls": b"7",
        f"{long}.txt": b"Three.", f"{long}.wav": b"RIFF-3",
        "004.json": b'{"audio": {"offset": "x"}}', "004.wav": b"RIFF-4",
        "005.json": b'{"audio": {"path": "/etc/a", "offset": "x"}}', "005.txt": "Fünf.".encode(),
        "006.json": b"{", "006.wav": b"RIFF-6",
    }  # fmt: skip
    tar_of(tmp_path / "shard-000.tar", members, kind)
    table = read_rows(tmp_path, reading=Reading(format))
    assert table["id"].to_pylist() == ["d/001", "d/002", long, "004", "005"]
    assert table["text"].to_pylist() == ["One.", "Two.", "Three.", None, None]
    clips = [row and row[0]["bytes"] for row in table["audio"].to_pylist()]
    assert clips == [b"fLaC-1", b"RIFF-2", b"RIFF-3", None, None]
    assert [error and error["type"] for error in table["error"].to_pylist()] == [
        *(None, None, None, "MissingText", "MissingAudio")
    ]
    assert table["extra.n"].to_pylist() == [1, 2, None, None, None]
    assert rejected(tmp_path) == ["MalformedRow"]


def test_a_tar_that_is_replaced_meanwhile_ends_the_run(tmp_path: Path) -> None:
    members = {f"{i}.{kind}": b"RIFF" * 200 for i in range(4) for kind in ("wav", "txt")}
    tar = tar_of(tmp_path / "a.tar", members)
    manifest, index = scan(open_manifest([str(tar)], AUDIO_PAYLOAD))
    assert index.groups["num_bytes"].tolist() == [1600], "blocks are as large as their clips let them"
    plan = make_plan(index, select_rows(index, NO_IDS).todo, 2)
    assert read_block(manifest, plan.slices_of(1))["id"].to_pylist() == ["2", "3"]
    tar_of(tar, dict(reversed(members.items())))
    with pytest.raises(ManifestError, match="has changed since the run began"):
        read_block(manifest, plan.slices_of(1))


@pytest.mark.parametrize("format", ["auto", "datasets"])
def test_a_folder_that_datasets_has_saved(tmp_path: Path, format: str) -> None:
    """As `save_to_disk` writes it: Arrow streams in record batches, clips embedded, columns with types."""
    datasets = pytest.importorskip("datasets")
    audio = [{"bytes": b"RIFF%d" % i, "path": f"{i}.wav" if i else None} for i in range(7)]
    table = pa.table(
        {
            "id": [f"u{i}" for i in range(7)],
            "text": ["One."] * 7,
            "audio": audio,
            "n": pa.array(range(7), pa.int16()),
        }
    )
    whole = datasets.Dataset(table).flatten_indices()
    datasets.DatasetDict({"train": whole}).save_to_disk(tmp_path / "saved", num_shards={"train": 2})
    found = read_rows(tmp_path / "saved", reading=Reading(format))
    assert found["id"].to_pylist() == [f"u{i}" for i in range(7)]
    assert [clips[0]["bytes"] for clips in found["audio"].to_pylist()] == [clip["bytes"] for clip in audio]
    assert found.schema.field("extra.n").type == pa.int16()
    assert found["source"][0].as_py().endswith("/saved/train/data-00000-of-00002.arrow, row 1")


def test_arrow_files_with_several_batches_and_of_both_kinds(tmp_path: Path) -> None:
    table = pa.table(
        {"id": range(10), "text": ["One."] * 10, "audio": [{"path": f"{i}.wav"} for i in range(10)]}
    )
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    with pa.ipc.new_stream(tmp_path / "b.arrow", table.schema) as writer:
        writer.write_table(table.set_column(0, "id", pa.array(range(10, 20))), max_chunksize=4)
    found = read_rows(tmp_path, rows_per_block=7)
    assert found["id"].to_pylist() == [str(i) for i in range(20)]
    assert [clips[0]["path"] for clips in found["audio"].to_pylist()] == [
        f"{tmp_path}/{i % 10}.wav" for i in range(20)
    ]
    write(tmp_path / "a.arrow", (tmp_path / "a.arrow").read_bytes()[:300])
    with pytest.raises(ManifestError, match=r"a\.arrow cannot be read"):
        read_rows(tmp_path)


def test_folders_of_speakers(tmp_path: Path) -> None:
    """LibriTTS, VCTK and LibriSpeech as they are unpacked."""
    for name in ("103/1241/103_1241_01", "26/495/26_495_02"):
        write(tmp_path / "tts" / f"{name}.normalized.txt", f"Normalized {name[:2]}.")
        write(tmp_path / "tts" / f"{name}.original.txt", "Original.")
        write(tmp_path / "tts" / f"{name}.wav", b"RIFF")
    assert seen(tmp_path / "tts") == [
        ("103/1241/103_1241_01", "Normalized 10.", "103/1241/103_1241_01.wav"),
        ("26/495/26_495_02", "Normalized 26.", "26/495/26_495_02.wav"),
    ]
    assert read_rows(tmp_path / "tts")["extra.speaker"].to_pylist() == ["103", "26"]
    write(tmp_path / "vctk" / "speaker-info.txt", "ID AGE\n225 23\n")
    for name in ("p225_001", "p226_001"):
        write(tmp_path / "vctk" / "txt" / name[:4] / f"{name}.txt", f"Of {name}.\n")
        for microphone in ("mic1", "mic2"):
            write(tmp_path / "vctk" / "wav48" / name[:4] / f"{name}_{microphone}.flac", b"fLaC")
    assert seen(tmp_path / "vctk", "txt") == [
        ("txt/p225/p225_001", "Of p225_001.", "wav48/p225/p225_001_mic1.flac"),
        ("txt/p226/p226_001", "Of p226_001.", "wav48/p226/p226_001_mic1.flac"),
    ]
    write(
        tmp_path / "ls" / "84" / "121123" / "84-121123.trans.txt",
        "84-121123-0000 GO\n84-121123-0001 ON AND ON\n",
    )
    for i in range(2):
        write(tmp_path / "ls" / "84" / "121123" / f"84-121123-000{i}.flac", b"fLaC")
    assert seen(tmp_path / "ls") == [
        ("84-121123-0000", "GO", "84/121123/84-121123-0000.flac"),
        ("84-121123-0001", "ON AND ON", "84/121123/84-121123-0001.flac"),
    ]


def test_books(tmp_path: Path) -> None:
    book = write(tmp_path / "emma.txt", "\ufeffEmma\r\n\r\nEmma Woodhouse, handsome, clever.\r\n")
    with pytest.raises(ManifestError, match="the voice of the clip that has its name"):
        seen(book)
    write(tmp_path / "emma.mp3", b"mp3")
    expected = [
        ("emma/0001", "Emma", "emma.mp3"),
        ("emma/0002", "Emma Woodhouse, handsome, clever.", "emma.mp3"),
    ]
    assert seen(book) == seen(tmp_path) == expected
    assert read_rows(tmp_path)["source"].to_pylist() == [f"{tmp_path}, row 1", f"{tmp_path}, row 2"]


def test_the_hub_without_a_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ManifestError, match=r"manifest hf://datasets/some/one: ") as caught:
        open_manifest(["hf://datasets/some/one"], AUDIO_PAYLOAD)
    assert str(caught.value).isprintable()
    with pytest.raises(ManifestError, match=r"no such file.* is it hf://datasets/some/one\?"):
        open_manifest(["some/one"], AUDIO_PAYLOAD)


# ---- columns and separators ----


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "jsonl"])
@pytest.mark.parametrize("audio", ["x.wav", {"path": "x.wav", "bytes": None}, {"bytes": None}])
def test_rows_have_one_digest_wherever_their_columns_stand(tmp_path: Path, suffix: str, audio: Any) -> None:
    """What the driver compares with an output is what a block stores."""
    rows = [{"audio": audio, "n": 1, "text": f"Text {i}.", "id": str(i)} for i in range(3)]
    file, table = write(tmp_path / f"m.{suffix}", rows), pa.Table.from_pylist(rows)
    if suffix == "parquet":
        pq.write_table(table, file)
    if suffix == "arrow":
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    index = scan(open_manifest([str(file)], AUDIO_PAYLOAD))[1]
    names = [audio] if isinstance(audio, str) else [audio["path"]] if "path" in audio else []
    assert index.digests.tolist() == [AUDIO_PAYLOAD.digest(row["text"], names) for row in rows]
    assert index.digests.tolist() == read_rows(file)["row_digest"].to_pylist()


def test_columns_have_the_names_that_are_told(tmp_path: Path) -> None:
    rows = [
        {"utt": f"u{i}", "said": f"Text {i}.", "text": "raw", "wav": f"{i}.wav", "n": i} for i in range(3)
    ]
    write(tmp_path / "m.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    write(
        tmp_path / "m.csv",
        "utt,said,text,wav,n\n" + "".join(f"u{i},Text {i}.,raw,{i}.wav,{i}\n" for i in range(3)),
    )
    for suffix in ("jsonl", "parquet", "csv"):
        file = tmp_path / f"m.{suffix}"
        columns = "id=utt,text=said,audio=wav"
        assert seen(file, columns=columns) == [(f"u{i}", f"Text {i}.", f"{i}.wav") for i in range(3)]
        table = read_rows(file, reading=Reading(columns=columns))
        assert [name for name in table.schema.names if name.startswith("extra.")] == ["extra.n"]
        by_clip = seen(file, columns="id=wav,audio=wav")
        assert by_clip == [(f"{i}", "raw", f"{i}.wav") for i in range(3)]
        with pytest.raises(ManifestError, match="no column 'clip'"):
            seen(file, columns="id=utt,audio=clip")
    for wrong in ("id", "id=", "=x", "id=a,,text=b"):
        with pytest.raises(ValueError, match="columns="):
            Reading(columns=wrong)
    with pytest.raises(ManifestError, match="not 'speaker'"):
        seen(tmp_path / "m.csv", columns="speaker=n")


def test_embedded_clips_name_rows_without_ids(tmp_path: Path) -> None:
    audio = [
        {"bytes": b"RIFF", "path": "d/a.wav"},
        {"bytes": b"RIFF", "path": None},
        {"bytes": b"x", "path": "b.wav"},
    ]
    table = pa.table({"audio": audio, "transcription": ["One.", "Two.", "Three."]})
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"no column 'id' and no column 'text'.*--columns id=NAME"):
        seen(tmp_path)
    found = read_rows(tmp_path, reading=Reading(columns="id=audio,text=transcription"))
    assert found["id"].to_pylist() == ["d/a", "b"]


@pytest.mark.parametrize(
    ("separator", "told"), [(";", None), ("|", None), ("\t", None), ("~", "~"), (",", ",")]
)
def test_separators(tmp_path: Path, separator: str, told: str | None) -> None:
    lines = ["id,text,audio", '1,"a; b|c",x.wav', "2,plain,x.wav"]
    file = write(tmp_path / "m.csv", "\n".join(line.replace(",", separator) for line in lines))
    assert seen(file, separator=told) == [("1", "a; b|c", "x.wav"), ("2", "plain", "x.wav")]
    assert Reading(separator="\\t")
    with pytest.raises(ValueError, match="separator="):
        Reading(separator="ab")


def test_tabs_may_stand_in_quotes_too(tmp_path: Path) -> None:
    file = write(tmp_path / "m.tsv", 'id\ttext\taudio\n1\t"two\n\nlines, a ""quote"""\tx.wav\n2\tb\tx.wav\n')
    assert seen(file) == [("1", 'two\n\nlines, a "quote"', "x.wav"), ("2", "b", "x.wav")]


# ---- what lost rows or columns, or was not recognised ----


@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_stray_quotes_lose_no_rows(tmp_path: Path, suffix: str) -> None:
    texts = [
        "Plain.",
        '"Come here.',
        "Third.",
        'He said "no".',
        '"Stop at once.',
        "Sixth.",
        '5" nails',
        '"Never',
    ]
    separator = {"tsv": "\t", "csv": ","}[suffix]
    lines = [separator.join(("id", "text", "audio"))]
    lines += [separator.join((f"r{i}", text, "x.wav")) for i, text in enumerate(texts)]
    file = write(tmp_path / f"m.{suffix}", "\n".join(lines) + "\n")
    assert seen(file) == [(f"r{i}", text, "x.wav") for i, text in enumerate(texts)]


def test_a_record_that_no_quote_ends_is_an_error_of_its_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", 'id,text,audio\n1,a,x.wav\n2,"He said "hi" to\nme",x.wav\n3,c,x.wav\n')
    assert [row_id for row_id, *_ in seen(file)] == ["1", "3"]
    assert rejected(file) == ["MalformedRow", "MalformedRow"]


@pytest.mark.parametrize(
    ("name", "encoding"), [("m.jsonl", "utf-16"), ("m.csv", "utf-16"), ("m.csv", "utf-8-sig")]
)
def test_encodings_that_a_file_states(tmp_path: Path, name: str, encoding: str) -> None:
    text = json.dumps(ROWS[0] | {"text": "Größe “x”"}, ensure_ascii=False)
    if name == "m.csv":
        text = "id,text,audio\r\nu0,Größe “x”,clips/0.wav\r\n"
    assert seen(write(tmp_path / name, text.encode(encoding))) == [("u0", "Größe “x”", "clips/0.wav")]


def test_latin_1_is_told_row_by_row(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", "id,text,audio\n1,Größe,x.wav\n2,plain,x.wav\n".encode("latin-1"))
    assert seen(file) == [("2", "plain", "x.wav")]
    index = scan(open_manifest([str(file)], AUDIO_PAYLOAD))[1]
    assert "iconv" in str(index.problems[0])


def test_compression_is_told_by_the_first_bytes(tmp_path: Path) -> None:
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode())
    for name in ("named.jsonl", "named.jsonl.gz", "plain.jsonl.gz"):
        file = write(tmp_path / name, ROWS if name.startswith("plain") else packed)
        assert [row_id for row_id, *_ in seen(file)] == ["u0", "u1", "u2"]


def test_the_index_of_pandas_is_a_column_like_any_other(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", "\n\n,id,text,audio\n0,u0,One.,x.wav\n1,u1,Two.,x.wav\n\n")
    assert read_rows(file)["extra.Unnamed: 0"].to_pylist() == ["0", "1"]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_hive_partitions_are_columns(tmp_path: Path, suffix: str) -> None:
    for speaker in ("ada", "J%C3%B6rg"):
        file = tmp_path / "run=1" / "hive" / f"speaker={speaker}" / "year=007" / f"part.{suffix}"
        row = {"id": speaker, "text": "One.", "audio": "x.wav"}
        write(file, ",".join(row) + "\n" + ",".join(row.values()) + "\n" if suffix == "csv" else [row])
        if suffix == "parquet":
            pq.write_table(pa.Table.from_pylist([row]), file)
    for place in ("hive", f"hive/speaker=*/*/*.{suffix}", "hive/**"):
        table = read_rows(tmp_path / "run=1" / place)
        assert dict(zip(table["extra.year"].to_pylist(), table["extra.speaker"].to_pylist(), strict=True))
        assert sorted(table["extra.speaker"].to_pylist()) == ["Jörg", "ada"], place
        assert table["extra.year"].to_pylist() == ["007", "007"]
        assert "extra.run" not in table.schema.names


@pytest.mark.parametrize(
    "name", ["part-1.jsonl.xz", "more.csv.zip", "sheet.xlsx", "part.parquet.gz", "x.tar.gz"]
)
def test_a_folder_with_a_file_that_would_be_skipped_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "part-0.jsonl", ROWS)
    for harmless in ("README.md", "LICENSE.txt", "clip.wav", "_tmp.jsonl.xz", "dataset_info.json", ".x.csv"):
        write(tmp_path / harmless, "{}")
    assert len(read_rows(tmp_path)) == 3
    write(tmp_path / name, b"x")
    with pytest.raises(ManifestError, match=f"{name} has no reader"):
        read_rows(tmp_path)
    assert len(read_rows(tmp_path, reading=Reading("jsonl"))) == 3


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_columns_without_values_are_text(tmp_path: Path, suffix: str) -> None:
    """Parquet's type null cannot be read together with what another run has there."""
    extra = {"note": None, "tags": [], "meta": {"a": None, "b": [{"c": None}]}}
    rows = [row | extra for row in ROWS]
    file = write(tmp_path / f"m.{suffix}", rows)
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    manifest, (table, *_) = blocks_of(file)
    inner = pa.struct([("a", pa.string()), ("b", pa.list_(pa.struct([("c", pa.string())])))])
    expected = pa.schema([("note", pa.string()), ("tags", pa.list_(pa.string())), ("meta", inner)])
    assert manifest.extra.equals(expected)
    assert [table[f"extra.{name}"][0].as_py() for name in extra] == list(extra.values())


def test_formats_without_types_bring_tokens_as_text(tmp_path: Path) -> None:
    file = write(tmp_path / "m.csv", 'id,text,speech_ids\n1,a,"[1, 2]"\n2,b,\n')
    table = read_rows(file, payload=SPEECH_PAYLOAD)
    assert table["speech_ids"][0].as_py()[0]["speech_ids"] == [1, 2]
    assert table["error"][1].as_py()["type"] == "MissingSpeechIds"
