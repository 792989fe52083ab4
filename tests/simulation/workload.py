"""A manifest of many rows, and a finished output of many rows, both made in seconds."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ERROR
from pipeline.rows.columns import ID as ID_FIELD
from pipeline.rows.columns import SOURCE, TEXT, VOICE_KEY
from tests.simulation.stand_ins import StandInRanker, StandInSampler

ROWS_PER_GROUP = 100_000
TEXT_OF_A_ROW = "The quick brown fox jumps over the lazy dog, number {}, and comes back in the evening."


def write_manifest(path: Path, rows: int) -> int:
    """A Parquet manifest with `rows` rows, several row groups; returns its size in bytes."""
    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("audio", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for begin in range(0, rows, ROWS_PER_GROUP):
            numbers = range(begin, min(begin + ROWS_PER_GROUP, rows))
            writer.write_table(
                pa.table(
                    [
                        pa.array([f"utterance-{n:09}" for n in numbers]),
                        pa.array([TEXT_OF_A_ROW.format(n) for n in numbers]),
                        pa.array([f"voices/{n // 16}.wav" for n in numbers]),
                    ],
                    schema=schema,
                )
            )
    return path.stat().st_size


def finished_block(first: int, rows: int, candidates: int = 16) -> pa.Table:
    """A block as it comes from the last model stage, rows numbered from `first`."""
    numbers = range(first, first + rows)
    table = pa.table(
        {
            "id": pa.array([f"utterance-{n:09}" for n in numbers], ID_FIELD.type),
            "text": pa.array([TEXT_OF_A_ROW.format(n) for n in numbers], TEXT.type),
            "input_ids": pa.array(np.zeros((rows, 1), np.int32).tolist(), pa.list_(pa.int32())),
            "voice_key": pa.array([f"{n // 16:032x}" for n in numbers], VOICE_KEY.type),
            "source": pa.array([f"manifest.parquet, row {n + 1}" for n in numbers], SOURCE.type),
            "error": pa.nulls(rows, ERROR.type),
        }
    )
    sampled = StandInSampler(0, candidates)(table)
    return StandInRanker(0)(sampled)
