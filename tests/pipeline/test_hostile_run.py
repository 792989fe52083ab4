"""One whole run whose manifest holds every hostile input next to good rows."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from clvp.sampling import SamplingParams
from jobs.synthesize import main
from pipeline.run import synthesize
from pipeline.settings import ExecutionSettings, Pool, ResultSettings, Run
from tests.pipeline.clips import chirp, write_clip, write_jsonl

pytestmark = pytest.mark.slow

MIB = 1 << 20
SETTINGS = ResultSettings(num_candidates=2, sampling=SamplingParams(max_new_tokens=8, seed=1))


def write_audio(root: Path) -> None:
    """`root/voices` is the audio root; beside it lies what no row may reach."""
    voices = root / "voices"
    write_clip(voices / "good.wav", 0.4)
    write_clip(root / "secret.wav", 0.4)
    (voices / "text.wav").write_text("this is no audio at all" * 100)
    (voices / "nothing.wav").write_bytes(b"")
    write_clip(voices / "no-samples.wav", 0.0)
    soundfile.write(voices / "nan.wav", np.array([0.1, np.nan, 0.2]), 16_000, subtype="FLOAT")
    soundfile.write(voices / "infinite.wav", np.array([0.1, -np.inf]), 16_000, subtype="FLOAT")
    soundfile.write(voices / "one-hertz.wav", chirp(1.0, 1_000), 1)
    (voices / "cut-off.wav").write_bytes((voices / "good.wav").read_bytes()[:30])
    (voices / "folder.wav").mkdir()
    os.mkfifo(voices / "fifo.wav")
    (voices / "device.wav").symlink_to("/dev/zero")
    (voices / "loop.wav").symlink_to("loop.wav")
    (voices / "link-out.wav").symlink_to(root / "secret.wav")
    (voices / "link-in.wav").symlink_to("good.wav")
    # A header that claims four gigabytes, and a sparse file that has ten hours.
    data = bytearray((voices / "good.wav").read_bytes())
    data[40:44] = (0xFFFFFFF0).to_bytes(4, "little")
    (voices / "liar.wav").write_bytes(data)
    hours = 10 * 3600 * 22_050 * 2
    data[4:8], data[40:44] = (hours + 36).to_bytes(4, "little"), hours.to_bytes(4, "little")
    with (voices / "ten-hours.wav").open("wb") as file:
        file.write(data)
        file.truncate(hours + 44)


def texts_and_values(name: str) -> dict[str, tuple[dict[str, Any] | str, str]]:
    """id -> (row of a JSONL manifest, how it ends)"""
    base = {"text": "Hello there.", "audio": "voices/good.wav"}
    row_id = f'{{"id": "{name}-%s", "text": "x", "audio": "voices/good.wav", %s}}'
    changes: dict[str, tuple[dict[str, Any], str]] = {
        "text-null": ({"text": None}, "MissingText"),
        "text-number": ({"text": 5}, "InvalidText"),
        "text-list": ({"text": ["a"]}, "InvalidText"),
        "text-object": ({"text": {"a": [1]}}, "InvalidText"),
        "text-empty": ({"text": ""}, "EmptyText"),
        "text-blank": ({"text": " \t\u00a0\u2003\n"}, "EmptyText"),
        "text-controls": ({"text": "\x00\x07\x1b\x7f\x9b\u202e\ufeff"}, "EmptyText"),
        "text-10-mb": ({"text": "x" * (10 * MIB)}, "TextTooLong"),
        "text-400-words": ({"text": "word " * 400}, "TextTooLong"),
        "text-surrogate": ({"text": "a \ud800 b"}, "InvalidText"),
        "text-escapes": ({"text": "\x1b[31mred\x1b[0m \u202edog"}, "good"),
        "audio-null": ({"audio": None}, "MissingAudio"),
        "audio-empty-list": ({"audio": []}, "MissingAudio"),
        "audio-number": ({"audio": 7}, "InvalidAudioValue"),
        "audio-nul": ({"audio": "voices/good.wav\x00.png"}, "InvalidAudioValue"),
        "audio-surrogate": ({"audio": "\ud800.wav"}, "InvalidAudioValue"),
        "audio-base64": ({"audio": {"bytes": "UklGRg=="}}, "InvalidAudioValue"),
        "audio-65-clips": ({"audio": ["voices/good.wav"] * 65}, "TooManyClips"),
        "audio-long-path": ({"audio": "x" * MIB}, "InvalidAudioValue"),
        "column-type": ({"number": "many"}, "WrongColumnType"),
        "column-size": ({"number": 10**30}, "WrongColumnType"),
    }
    rows: dict[str, tuple[dict[str, Any] | str, str]] = {
        f"{name}-{key}": (base | {"id": f"{name}-{key}", "number": 1} | change, end)
        for key, (change, end) in changes.items()
    }
    rows[f"{name}-wide"] = (row_id % ("wide", '"e": [' + "[]," * 30_000 + "[]]"), "MalformedRow")
    rows[f"{name}-deep"] = (row_id % ("deep", '"e": ' + "[" * 200 + "]" * 200), "MalformedRow")
    rows[f"{name}-17-mb"] = (row_id % ("17-mb", f'"e": "{"x" * 17 * MIB}"'), "RecordTooLong")
    rows[f"{name}-no-json"] = ("{" + row_id % ("no-json", '"e": 1'), "MalformedRow")
    rows[f"{name}-array"] = ("[1, 2, 3]", "MalformedRow")
    rows[f"{name}-no-id"] = (base, "MissingId")
    rows[f"{name}-true-id"] = (base | {"id": True}, "InvalidId")
    rows[f"{name}-float-id"] = (base | {"id": 1.5}, "InvalidId")
    rows[f"{name}-long-id"] = (base | {"id": "x" * 2_000}, "InvalidId")
    return rows


AUDIO = {  # path -> how its row ends
    "voices/good.wav": "good",
    "voices/link-in.wav": "good",
    "voices/liar.wav": "good",
    "voices/ten-hours.wav": "good",
    "voices/../voices/good.wav": "good",
    "voices/missing.wav": "AudioNotFound",
    "voices/text.wav": "UndecodableAudio",
    "voices/nothing.wav": "EmptyAudio",
    "voices/cut-off.wav": "UndecodableAudio",
    "voices/no-samples.wav": "EmptyAudio",
    "voices/nan.wav": "InvalidSamples",
    "voices/infinite.wav": "InvalidSamples",
    "voices/one-hertz.wav": "UnsupportedSampleRate",
    "voices/folder.wav": "UnreadableAudio",
    "voices/fifo.wav": "UnreadableAudio",
    "voices/loop.wav": "UnreadableAudio",
    "voices/good.wav/more": "UnreadableAudio",
    "voices/device.wav": "AudioOutsideRoot",
    "voices/link-out.wav": "AudioOutsideRoot",
    "voices/../secret.wav": "AudioOutsideRoot",
    "secret.wav": "AudioOutsideRoot",
    "/dev/zero": "AudioOutsideRoot",
    "/etc/passwd": "AudioOutsideRoot",
    "file:///etc/passwd": "AudioOutsideRoot",
    "s3://bucket/voices/good.wav": "AudioOutsideRoot",
    "": "MissingAudio",
}


def write_csv(path: Path) -> dict[str, str]:
    rows = [(f"csv-{i}", "Hello there.", audio, end) for i, (audio, end) in enumerate(AUDIO.items())]
    lines = [f"{row_id},{text},{audio}" for row_id, text, audio, _ in rows]
    odd = {
        "csv-fields": ("csv-fields,too,many,fields", "MalformedRow"),
        "csv-latin": ("csv-latin,caf\udce9,voices/good.wav", "MalformedRow"),
        "csv-return": ("csv-return,a\rb,voices/good.wav", "MalformedRow"),
        "csv-nul": ("csv-nul,\0\0,voices/good.wav", "EmptyText"),
        "csv-10-mb": (f'csv-10-mb,"{"x" * 10 * MIB}",voices/good.wav', "TextTooLong"),
        "csv-lines": ('csv-lines,"two\nlines, and a ""quote""",voices/good.wav', "good"),
    }
    lines += [line for line, _ in odd.values()]
    text = "\ufeffid,text,audio\n" + "\n".join(lines) + "\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return {row[0]: row[3] for row in rows} | {row_id: end for row_id, (_, end) in odd.items()}


def write_parquet(path: Path, voices: Path) -> dict[str, str]:
    """Embedded audio, invalid UTF-8, huge values; a page that is damaged in the last row group."""
    clip = (voices / "good.wav").read_bytes()
    rows: dict[str, tuple[bytes | None, Any, Any, str]] = {
        "pq-embedded": (b"Hello there.", clip, None, "good"),
        "pq-no-bytes": (b"Hello there.", b"", None, "EmptyAudio"),
        "pq-not-unicode": (b"caf\xe9", clip, None, "InvalidUtf8"),
        "pq-null": (None, clip, None, "MissingText"),
        "pq-10-mb": (b"x" * (10 * MIB), clip, None, "TextTooLong"),
        "pq-70-mb-audio": (b"Hello there.", b"\0" * (70 * MIB), None, "ValueTooLarge"),
        "pq-20-mb-column": (b"Hello there.", clip, [[0] * (3 * MIB)], "RowTooLarge"),
        "pq-nested-column": (b"Hello there.", clip, [[1, None], None, []], "good"),
    }
    texts = pa.array([text for text, *_ in rows.values()], pa.binary())
    table = pa.table(
        {
            "id": pa.array(rows),
            "text": pa.Array.from_buffers(pa.string(), len(rows), texts.buffers()),
            "audio": [[{"bytes": audio, "path": None}] for _, audio, _, _ in rows.values()],
            "nested": pa.array([nested for *_, nested, _ in rows.values()], pa.list_(pa.list_(pa.int64()))),
        }
    )
    damaged = table.slice(0, 1).set_column(0, "id", pa.array(["pq-damaged"]))
    with pq.ParquetWriter(path, table.schema, use_dictionary=False, compression="gzip") as writer:
        writer.write_table(table)
        writer.write_table(damaged)
    column = pq.read_metadata(path).row_group(1).column(1)
    data = bytearray(path.read_bytes())
    end = column.data_page_offset + column.total_compressed_size
    data[end - 10 : end] = b"\xff" * 10
    path.write_bytes(data)
    return {row_id: end for row_id, (*_, end) in rows.items()} | {"pq-damaged": "UnreadableRow"}


@pytest.mark.timeout(280)
def test_every_hostile_row_ends_in_the_error_table_and_every_other_in_the_output(
    ray_instance: None, checkpoint: Path, tmp_path: Path
) -> None:
    write_audio(tmp_path)
    named = texts_and_values("json")
    write_jsonl(tmp_path / "a.jsonl", [row for row, _ in named.values()])
    expected = {row_id: end for row_id, (_, end) in named.items()}
    expected |= write_csv(tmp_path / "b.csv")
    expected |= write_parquet(tmp_path / "c.parquet", tmp_path / "voices")
    execution = ExecutionSettings(
        rows_per_block=8,
        samplers=Pool(1, 1, num_gpus=0),
        rankers=Pool(1, 1, num_gpus=0),
        torch_threads=1,
        audio_root=str(tmp_path / "voices"),
    )
    manifest = tuple(str(tmp_path / name) for name in ("a.jsonl", "b.csv", "c.parquet"))
    synthesize(Run(manifest, str(tmp_path / "out"), str(checkpoint), SETTINGS, execution))

    errors = pq.read_table(tmp_path / "out" / "errors").to_pylist()
    print()
    for error in errors:
        place, name = error["source"].rpartition("/")[2], (error["id"] or "-")[:18]
        print(f"{place:18} {name:18} {error['stage']:9} {error['type']:22} {error['message']}")
    done = pq.read_table(tmp_path / "out" / "data", columns=["id", "candidates"]).to_pylist()
    assert sorted(row["id"] for row in done) == sorted(i for i, end in expected.items() if end == "good")
    assert all(len(row["candidates"]) == 2 for row in done)
    without_id = {"MalformedRow", "RecordTooLong", "MissingId", "InvalidId"}
    with_id = {row_id: end for row_id, end in expected.items() if end != "good" and end not in without_id}
    assert {error["id"]: error["type"] for error in errors if error["id"] is not None} == with_id
    assert sorted(error["type"] for error in errors if error["id"] is None) == sorted(
        end for end in expected.values() if end in without_id
    )
    assert len(errors) + len(done) == len(expected)
    assert all(error["message"].isprintable() and len(error["message"]) <= 500 for error in errors)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("m.csv", b"id,text\n1,a\n", "has no column 'audio'"),
        ("m.jsonl", b"\xff\xfe{\0\n\0", "no row can be read as jsonl"),
        ("m.parquet", b"PAR1" + b"\xff" * 100 + b"PAR1", "cannot be read"),
        ("m.csv", b"id,\x1b[2Jtext,audio\n1,a,b\n", "no column 'text'"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_one_line_and_exit_code_2(
    checkpoint: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    data: bytes,
    message: str,
) -> None:
    (tmp_path / name).write_bytes(data)
    where = ["--manifest", str(tmp_path / name), "--output", str(tmp_path / "out")]
    assert main([*where, "--model", str(checkpoint)]) == 2
    errors = capfd.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert errors.strip().isprintable()
    assert not (tmp_path / "out" / "data").exists()
