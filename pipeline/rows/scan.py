"""One pass over the manifest on the driver: ids, where each row lies, and the rows without a usable id.

Texts and audio are never kept. The index costs about 45 bytes a row and the ids themselves.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ManifestError, RowError, is_unicode, shown
from pipeline.rows import arrow_values, manifest_text
from pipeline.rows.manifest import UNREADABLE, Manifest, ManifestFile, check_columns, open_file, own_columns
from pipeline.rows.memory import MAX_COLUMNS, MAX_ID_CHARS, MIB
from pipeline.rows.parquet_rows import open_parquet
from pipeline.rows.payloads import Payload
from pipeline.rows.row_types import ColumnTypes

CHUNK_ROWS, CHUNK_BYTES = 8192, 8 * MIB
MAX_PROBLEMS = 1_000_000  # rows without a usable id; more of them make it a bad manifest

LOCATION = np.dtype(
    [
        ("file", np.int32),
        ("group", np.int32),  # Parquet row group, -1 for text
        ("begin", np.int64),  # row within the group, or byte
        ("end", np.int64),
        ("row", np.int64),  # record number in the file, from 1
        ("num_bytes", np.int64),  # of the row, exact for text, an average for Parquet
        ("digest", np.uint64),  # ROW_DIGEST, 0 where it cannot be known
    ]
)


@dataclass(frozen=True)
class RowIndex:
    """All rows of a manifest in their order."""

    ids: pa.ChunkedArray  # [n] large_string, null exactly where `problems` has the row
    locations: np.ndarray  # [n] LOCATION
    problems: dict[int, RowError]  # by position


def scan(manifest: Manifest) -> tuple[Manifest, RowIndex]:
    """Index all rows. The manifest comes back with the types of the pass-through columns of its JSONL files.

    Raises ManifestError for a file that cannot be read or lacks a column.
    """
    types = ColumnTypes(manifest.extra)
    ids: list[pa.Array] = []
    locations: list[np.ndarray] = []
    problems: dict[int, RowError] = {}
    position = 0
    for index, file in enumerate(manifest.files):
        try:
            chunks = (
                _scan_parquet(index, file, manifest.payload)
                if file.is_parquet
                else _scan_text(index, manifest, types)
            )
            for chunk_locations, values in chunks:
                chunk_ids, chunk_problems = _checked_ids(values)
                problems.update({position + i: error for i, error in chunk_problems.items()})
                if len(problems) > MAX_PROBLEMS:
                    raise ManifestError(
                        f"over {MAX_PROBLEMS:,} rows have no usable id; the first: {problems[min(problems)]}"
                    )
                ids.append(chunk_ids)
                locations.append(chunk_locations)
                position += len(values)
        except UNREADABLE as error:
            raise ManifestError(f"manifest file {file.uri} cannot be read: {error}") from error
    if not position:
        raise ManifestError(f"the manifest has no rows: {', '.join(file.uri for file in manifest.files)}")
    all_ids = pa.chunked_array(ids, type=pa.large_string())
    return dataclasses.replace(manifest, extra=types.schema()), RowIndex(
        all_ids, np.concatenate(locations), problems
    )


Chunk = tuple[np.ndarray, Sequence[Any]]  # locations [n], id values [n] as the manifest holds them


def _scan_parquet(index: int, file: ManifestFile, payload: Payload) -> Iterator[Chunk]:
    with open_parquet(file.uri) as parquet:
        first = 1
        for group in range(parquet.metadata.num_row_groups):
            info = parquet.metadata.row_group(group)
            row_bytes, begin = info.total_byte_size // max(info.num_rows, 1), 0
            batches = parquet.iter_batches(CHUNK_ROWS, row_groups=[group], columns=["id"], use_threads=False)
            digests = _digests(parquet, group, payload)
            for batch in batches:
                begins = np.arange(begin, begin + len(batch))
                places = (begins, begins + 1, first + begins, row_bytes, list(islice(digests, len(batch))))
                yield _locations(len(batch), index, group, *places), _column(batch, "id")
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
        for batch in parquet.iter_batches(CHUNK_ROWS, row_groups=[group], columns=columns, use_threads=False):
            yield from map(payload.digest, _column(batch, "text"), _column(batch, payload.column))
    yield from repeat(0)


def _column(batch: pa.RecordBatch, name: str) -> list[Any]:
    place = batch.schema.get_field_index(name)
    return [None] * len(batch) if place < 0 else arrow_values.values(batch.column(place), name)


def _made_from(row: Any, payload: Payload) -> tuple[Any, Any]:
    return (row.get("text"), row.get(payload.column)) if isinstance(row, dict) else (None, None)


def _scan_text(index: int, manifest: Manifest, types: ColumnTypes) -> Iterator[Chunk]:
    file = manifest.files[index]
    with open_file(file.uri) as stream:
        seen: dict[str, None] = dict.fromkeys(file.columns or ())
        own = set(own_columns(manifest.payload))
        any_row = False
        for numbers, chunk in chunks(enumerate(text_records(file, stream), 1), CHUNK_ROWS, CHUNK_BYTES):
            any_row = True
            if file.columns is None:
                rows = [record.value for record in chunk if isinstance(record.value, dict)]
                for row in rows:
                    seen |= dict.fromkeys(row)
                    if len(seen) > MAX_COLUMNS:
                        raise ManifestError(
                            f"manifest file {file.uri}: over {MAX_COLUMNS:,} different columns; is every "
                            "line a row?"
                        )
                for name in [name for name in seen if name not in own]:
                    types.observe(name, [row.get(name) for row in rows], file.uri)
            begins = np.array([record.begin for record in chunk])
            ends = np.array([record.end for record in chunk])
            values = [r.value if isinstance(r.value, RowError) else r.value.get("id") for r in chunk]
            digests = [manifest.payload.digest(*_made_from(r.value, manifest.payload)) for r in chunk]
            yield _locations(len(chunk), index, -1, begins, ends, numbers, ends - begins, digests), values
        if seen:
            check_columns(file.uri, list(seen), manifest.payload)
        elif any_row:
            raise ManifestError(f"manifest file {file.uri}: no line holds a JSON object; is it JSON Lines?")


def chunks(
    records: Iterable[tuple[int, manifest_text.Record]], max_rows: int, max_bytes: int
) -> Iterator[tuple[list[int], list[manifest_text.Record]]]:
    """Numbers and records in lists of bounded length and size."""
    numbers: list[int] = []
    chunk: list[manifest_text.Record] = []
    size = 0
    for number, record in records:
        numbers.append(number)
        chunk.append(record)
        size += record.end - record.begin
        if len(chunk) >= max_rows or size >= max_bytes:
            yield numbers, chunk
            numbers, chunk, size = [], [], 0
    if chunk:
        yield numbers, chunk


def text_records(
    file: ManifestFile, stream: pa.NativeFile, begin: int = 0, end: int | None = None
) -> Iterable[manifest_text.Record]:
    """Records of a JSONL or CSV file in the bytes [begin, end)."""
    buffered = manifest_text.open_buffered(stream, begin)
    if file.columns is None:
        return manifest_text.jsonl_records(buffered, begin, end)
    if begin == 0:
        begin = manifest_text.csv_header(buffered, file.uri)[1]
    return manifest_text.csv_records(buffered, file.uri, list(file.columns), begin, end)


def _locations(count: int, *columns: Any) -> np.ndarray:
    locations = np.empty(count, LOCATION)
    for name, column in zip(LOCATION.names or (), columns, strict=True):
        locations[name] = column
    return locations


def _checked_ids(values: Sequence[Any]) -> tuple[pa.Array, dict[int, RowError]]:
    ids: list[str | None] = [None] * len(values)
    problems: dict[int, RowError] = {}
    for i, value in enumerate(values):
        try:
            ids[i] = checked_id(value)
        except RowError as error:
            problems[i] = error
    return pa.array(ids, type=pa.large_string()), problems


def checked_id(value: Any) -> str:
    """A row's id as a string; whole numbers become decimal digits. Raises RowError for anything else."""
    if isinstance(value, RowError):
        raise value
    if value is None or value == "":
        raise RowError("MissingId", "id is null or empty")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError("InvalidId", f"id must be a string or a whole number, not {shown(value)}")
    text = str(value)  # JSON and Parquet have no whole number of so many digits that this fails
    if len(text) > MAX_ID_CHARS:
        raise RowError("InvalidId", f"id has {len(text):,} characters; at most {MAX_ID_CHARS:,}")
    if not is_unicode(text):
        raise RowError("InvalidId", f"id holds a lone surrogate: {shown(text)}")
    return text
