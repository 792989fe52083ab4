"""One pass over the manifest on the driver: ids, where each row lies, and the rows without a usable id.

Text files become Parquet first. Texts and audio are never kept in memory. The index costs about 37 bytes a
row and the ids themselves.
"""

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ManifestError, RowError
from pipeline.rows import arrow_values
from pipeline.rows.manifest import UNREADABLE, Manifest, ManifestFile, readable
from pipeline.rows.normalise import normalised
from pipeline.rows.parquet_rows import open_parquet
from pipeline.rows.payloads import Payload, checked_id, taken
from pipeline.rows.row_types import ColumnTypes

CHUNK_ROWS = 8192
MAX_PROBLEMS = 1_000_000  # rows without a usable id; more of them make it a bad manifest

LOCATION = np.dtype(
    [
        ("file", np.int32),
        ("group", np.int32),  # Parquet row group
        ("begin", np.int64),  # row within the group
        ("row", np.int64),  # record number in the file, from 1
        ("num_bytes", np.int64),  # of the row, on average in its group
        ("digest", np.uint64),  # ROW_DIGEST, 0 where it cannot be known
    ]
)


@dataclass(frozen=True)
class RowIndex:
    """All rows of a manifest in their order."""

    ids: pa.ChunkedArray  # [n] large_string, null exactly where `problems` has the row
    locations: np.ndarray  # [n] LOCATION
    problems: dict[int, RowError]  # by position
    copies: "tempfile.TemporaryDirectory[str] | None" = None  # Parquet of text files, deleted with the index


def scan(manifest: Manifest) -> tuple[Manifest, RowIndex]:
    """Index all rows. The manifest comes back with the copies of its text files and all column types.

    Raises ManifestError for a file that cannot be read or lacks a column.
    """
    types, payload = ColumnTypes(manifest.extra), manifest.payload
    copies = tempfile.TemporaryDirectory(prefix="clvp-manifest-")
    files: list[ManifestFile] = []
    for file in manifest.files:
        with readable(file):
            files += [file] if file.parquet else normalised(file, payload, types, copies.name)
    ids: list[pa.Array] = []
    locations: list[np.ndarray] = []
    problems: dict[int, RowError] = {}
    position = 0
    for number, file in enumerate(files):
        with readable(file):
            for places, found in _rows_of(number, file, payload):
                locations.append(places)
                usable = [None if isinstance(value, RowError) else value for value in found]
                ids.append(pa.array(usable, pa.large_string()))
                problems |= {i: e for i, e in enumerate(found, position) if isinstance(e, RowError)}
                position += len(found)
                if len(problems) > MAX_PROBLEMS:
                    first = problems[min(problems)]
                    raise ManifestError(f"over {MAX_PROBLEMS:,} rows have no usable id; the first: {first}")
    if not position:
        raise ManifestError(f"the manifest has no rows: {', '.join(file.uri for file in manifest.files)}")
    index = RowIndex(pa.chunked_array(ids), np.concatenate(locations), problems, copies)
    return replace(manifest, files=tuple(files), extra=types.schema()), index


def _rows_of(
    number: int, file: ManifestFile, payload: Payload
) -> Iterator[tuple[np.ndarray, list[str | RowError]]]:
    """LOCATION, and the id or why there is none, of all rows of a file, some at a time."""
    columns, first = ["id"], file.first_row
    if file.is_copy:
        columns += ["error", "row_digest"]
    with open_parquet(file.parquet) as parquet:
        for group in range(parquet.metadata.num_row_groups):
            info = parquet.metadata.row_group(group)
            row_bytes = info.total_byte_size // max(info.num_rows, 1)
            begin, digests = 0, _digests(parquet, group, payload)
            for batch in _batches(parquet, group, columns):
                ids = _column(batch, "id")
                if file.is_copy:  # which says why there is no id
                    digests = iter(_column(batch, "row_digest"))
                    errors = zip(ids, _column(batch, "error"), strict=True)
                    ids = [e and RowError(e["type"], e["message"]) if i is None else i for i, e in errors]
                places = np.empty(len(batch), LOCATION)
                places["begin"] = np.arange(begin, begin + len(batch))
                places["row"] = places["begin"] + first
                places["digest"] = list(islice(digests, len(batch)))
                for name, value in (("file", number), ("group", group), ("num_bytes", row_bytes)):
                    places[name] = value
                yield places, [taken(checked_id, value) for value in ids]
                begin += len(batch)
            if begin != info.num_rows:
                raise OSError(f"row group {group} has {begin:,} of {info.num_rows:,} rows; it is damaged")
            first += begin


def _digests(parquet: pq.ParquetFile, group: int, payload: Payload) -> Iterator[int]:
    """ROW_DIGEST of each row of a row group, without a look at bytes of clips; 0 from a damaged page on."""
    columns = ["text"]
    if payload.named:
        paths = (parquet.schema.column(i).path for i in range(len(parquet.schema)))
        columns += [p for p in paths if p.split(".")[0] == payload.column and not p.endswith(".bytes")]
    with suppress(*UNREADABLE):
        for batch in _batches(parquet, group, columns):
            yield from map(payload.digest, _column(batch, "text"), _column(batch, payload.column))
    yield from repeat(0)


def _batches(parquet: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    return parquet.iter_batches(CHUNK_ROWS, row_groups=[group], columns=columns, use_threads=False)


def _column(batch: pa.RecordBatch, name: str) -> list[Any]:
    place = batch.schema.get_field_index(name)
    return [None] * len(batch) if place < 0 else arrow_values.values(batch.column(place), name)
