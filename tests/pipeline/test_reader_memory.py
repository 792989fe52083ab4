"""Peak memory of reading hostile manifests, each in its own process, against the bound that tasks reserve."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.rows.memory import MIB
from tests.pipeline.clips import write_clip

pytestmark = pytest.mark.slow

ROWS_PER_BLOCK = 64


def good(number: int) -> dict[str, Any]:
    return {"id": f"good-{number}", "text": "hello", "audio": "a.wav"}


def good_and_bad(count: int) -> Iterator[dict[str, Any]]:
    """Every second text has ten megabytes."""
    text = "x" * (10 * MIB)
    for i in range(count):
        yield good(i)
        yield good(i) | {"id": f"bad-{i}", "text": text}


def long_texts_jsonl(path: Path) -> dict[str, int]:
    with path.open("w") as file:
        for row in good_and_bad(25):
            file.write(json.dumps(row) + "\n")
    return {"good": 25, "TextTooLong": 25}


def long_texts_csv(path: Path) -> dict[str, int]:
    with path.open("w") as file:
        file.write("id,text,audio\n")
        for row in good_and_bad(25):
            file.write(f'{row["id"]},"{row["text"]}",{row["audio"]}\n')
    return {"good": 25, "TextTooLong": 25}


def long_texts_parquet(path: Path) -> dict[str, int]:
    with pq.ParquetWriter(path, pa.schema([(name, pa.string()) for name in good(0)])) as writer:
        for _ in range(4):
            writer.write_table(pa.Table.from_pylist(list(good_and_bad(5))))
    # The ids of the row groups are the same.
    return {"good": 5, "TextTooLong": 5, "DuplicateId": 30}


def one_value_parquet(path: Path) -> dict[str, int]:
    rows = [*map(good, range(10)), good(10) | {"text": "x" * (100 * MIB)}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return {"good": 10, "TextTooLong": 1}


def nested_jsonl(path: Path) -> dict[str, int]:
    head = '{"id": "%d", "text": "x", "audio": %s, "extra": %s}\n'
    lists, numbers = "[" + "[]," * (5 * MIB) + "[]]", "[" + "12345.5," * (MIB * 3 // 2) + "2]"
    lines = [head % (0, '"a.wav"', lists), head % (1, lists, "[]"), head % (2, numbers, "[]")]
    lines += [head % (3, '"a.wav"', numbers), head % (4, '"a.wav"', "[1]"), "[" * (15 * MIB) + "\n"]
    path.write_text("".join(lines))
    return {"good": 2, "TooManyClips": 1, "MalformedRow": 3}


def nested_parquet(path: Path) -> dict[str, int]:
    columns = {
        "id": ["0", "1", "2"],
        "text": ["x", "y", "z"],
        "audio": [["a.wav"], ["a.wav"] * (5 * MIB), ["a.wav"]],
        "extra": [[1], None, [7] * (10 * MIB)],
    }
    pq.write_table(pa.table(columns), path)
    return {"good": 1, "TooManyClips": 1, "RowTooLarge": 1}


def embedded_parquet(path: Path) -> dict[str, int]:
    clip, noise = (path.parent / "a.wav").read_bytes(), np.random.default_rng(0).bytes(2 * MIB)
    audio = [{"bytes": clip + noise[i:], "path": None} for i in range(60)]
    columns = {"id": [str(i) for i in range(60)], "text": ["x"] * 60, "audio": audio}
    pq.write_table(pa.table(columns), path)
    return {"good": 60}


def clips_jsonl(path: Path) -> dict[str, int]:
    """Voices of 64 clips, with few different ones to keep the test short."""
    for i in range(20):
        write_clip(path.parent / f"{i}.wav", 0.1 + i / 1000)
    rows = [good(i) | {"audio": [f"{(i + j) % 20}.wav" for j in range(64)]} for i in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"good": 64}


CASES = {  # writer, suffix, MiB that it may take beyond a manifest of one row
    "long texts, JSONL": (long_texts_jsonl, "jsonl", 300),
    "long texts, CSV": (long_texts_csv, "csv", 300),
    "long texts, Parquet": (long_texts_parquet, "parquet", 500),
    "one value of 100 MiB, Parquet": (one_value_parquet, "parquet", 600),
    "nested, JSONL": (nested_jsonl, "jsonl", 400),
    "nested, Parquet": (nested_parquet, "parquet", 600),
    "embedded audio, Parquet": (embedded_parquet, "parquet", 900),
    "voices of 64 clips": (clips_jsonl, "jsonl", 900),
}


def read_in_child(manifest: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.pipeline.peak_memory", str(manifest), str(ROWS_PER_BLOCK)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes of a process that has read one row."""
    folder = tmp_path_factory.mktemp("base")
    write_clip(folder / "a.wav", 0.3)
    (folder / "m.jsonl").write_text(json.dumps(good(0)) + "\n")
    return int(read_in_child(folder / "m.jsonl")["peak"])


@pytest.mark.parametrize("name", list(CASES))
def test_peak_memory_stays_below_what_is_reserved(tmp_path: Path, base: int, name: str) -> None:
    write, suffix, allowed = CASES[name]
    write_clip(tmp_path / "a.wav", 0.3)
    manifest = tmp_path / f"m.{suffix}"
    expected = write(manifest)
    measured = read_in_child(manifest)
    growth = (measured["peak"] - base) // MIB
    size = manifest.stat().st_size // MIB
    print(
        f"{name}: {size:,} MiB on disk, {growth:,} MiB beyond the {base // MIB:,} of any reader, "
        f"{measured['bound'] // MIB:,} reserved"
    )
    assert measured["rows"] == expected
    assert measured["peak"] <= measured["bound"]
    assert growth <= allowed
    manifest.unlink()
