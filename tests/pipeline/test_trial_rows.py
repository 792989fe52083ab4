"""Trials take their rows from everywhere in the manifest, and from texts of every length."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.rows.manifest import Manifest, open_manifest
from pipeline.rows.payloads import AUDIO_PAYLOAD
from pipeline.rows.plan import make_plan
from pipeline.rows.scan import RowIndex, scan
from pipeline.trial_rows import choose_rows, text_sizes

ROWS = 400


def open_rows(folder: Path, suffix: str, lengths: list[int]) -> tuple[Manifest, RowIndex]:
    rows = [{"id": f"r{i}", "text": "x" * length, "audio": "a.wav"} for i, length in enumerate(lengths)]
    path = folder / f"manifest.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=70)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return scan(open_manifest([str(path)], AUDIO_PAYLOAD))


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_sizes_grow_with_the_text(tmp_path: Path, suffix: str) -> None:
    lengths = np.random.default_rng(0).integers(0, 300, ROWS)
    manifest, index = open_rows(tmp_path, suffix, lengths.tolist())
    sizes = text_sizes(manifest, index)
    if suffix == "parquet":
        assert (sizes == lengths).all()
    else:  # the record's bytes, with an id of up to four characters
        assert (np.abs(sizes - lengths - (sizes - lengths).mean()) < 4).all()


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_short_and_long_texts_take_part_as_in_the_manifest(tmp_path: Path, suffix: str) -> None:
    """One text in four is long, in one place of the manifest: eight blocks always hold two of those."""
    lengths = [10] * 150 + [250] * 100 + [10] * 150
    manifest, index = open_rows(tmp_path, suffix, lengths)
    todo = np.arange(ROWS)
    seen = set()
    for seed in range(20):
        rows = choose_rows(manifest, index, todo, 10, 8, seed)
        assert len(set(rows.tolist())) == 80
        assert (np.diff(rows) > 0).all()
        assert sum(lengths[i] == 250 for i in rows) == 20
        seen |= set(rows.tolist())
    assert len(seen) > 300


def test_a_trial_runs_whole_blocks_of_the_run(tmp_path: Path) -> None:
    manifest, index = open_rows(tmp_path, "jsonl", [20] * ROWS)
    todo = np.delete(np.arange(ROWS), [3, 50, 51])
    plan = make_plan(index, todo, 7)
    blocks = {tuple(part.tolist()) for part in np.split(todo, plan.starts[1:])}
    rows = choose_rows(manifest, index, todo, 7, 9)
    for part in np.split(rows, np.flatnonzero(np.isin(rows, [block[0] for block in blocks]))[1:]):
        assert tuple(part.tolist()) in blocks


def test_more_blocks_than_there_are(tmp_path: Path) -> None:
    manifest, index = open_rows(tmp_path, "jsonl", [20] * ROWS)
    assert choose_rows(manifest, index, np.arange(ROWS), 64, 100).tolist() == list(range(ROWS))
