"""Stage 1, `read`: the manifest's rows of one block, every value checked and of its column's type.

Input: the slices of the manifest that make up the block. A value that is missing or of the wrong kind becomes
the row's error. `audio` paths come out absolute or as URIs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.columns import EXTRA_PREFIX, ID, SOURCE, TEXT
from pipeline.errors import ERROR, ManifestError, RowError, error_array, error_record
from pipeline.manifest import Manifest, Slice, open_file
from pipeline.payloads import Payload
from pipeline.plan import source_of
from pipeline.row_types import convert
from pipeline.scan import checked_id, text_records

BATCH_ROWS = 256  # of a Parquet file, held at a time


@dataclass
class RawRows:
    """Rows as the manifest holds them; lists and arrays are [n]."""

    numbers: list[int]  # record numbers in the file, from 1
    ids: list[str]
    texts: list[Any]
    payloads: list[Any]
    extra: list[pa.Array]  # in the manifest's order, of the manifest's types
    problems: dict[int, RowError]


def output_schema(manifest: Manifest) -> pa.Schema:
    """Columns of a block that has been read."""
    extra = [field.with_name(EXTRA_PREFIX + field.name) for field in manifest.extra]
    return pa.schema([ID, TEXT, manifest.payload.field, SOURCE, ERROR, *extra])


def read_block(manifest: Manifest, slices: Sequence[Slice]) -> pa.Table:
    """The rows of a block, in manifest order, as `output_schema` says.

    Raises ManifestError when a file has changed or cannot be read any more.
    """
    tables = []
    for part in slices:
        file = manifest.files[part.file]
        try:
            raw = _read_parquet(manifest, part) if file.is_parquet else _read_text(manifest, part)
        except (OSError, pa.ArrowException) as error:
            raise ManifestError(f"manifest file {file.uri} cannot be read: {error}") from error
        tables.append(_table(manifest, part, raw))
    return pa.concat_tables(tables).combine_chunks()


def _read_parquet(manifest: Manifest, part: Slice) -> RawRows:
    names = list(manifest.payload.required)
    wanted = {row - part.first_row + part.begin for row in part.rows} if part.rows is not None else None
    pieces: list[pa.Table] = []
    with open_file(manifest.files[part.file].uri) as stream:
        parquet = pq.ParquetFile(stream)
        present = [field for field in manifest.extra if field.name in parquet.schema_arrow.names]
        columns = names + [field.name for field in present]
        position = 0
        for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[part.group], columns=columns):
            chosen = [
                i - position
                for i in range(max(part.begin, position), min(part.end, position + len(batch)))
                if wanted is None or i in wanted
            ]
            if chosen:
                # A copy, not a view: a view would keep the whole batch in memory.
                pieces.append(pa.Table.from_batches([batch]).take(pa.array(chosen)))
            position += len(batch)
            if position >= part.end:
                break
    table = pa.concat_tables(pieces).combine_chunks()
    extra = [
        _single_array(table[field.name].cast(field.type))
        if field in present
        else pa.nulls(len(table), field.type)
        for field in manifest.extra
    ]
    numbers = (
        list(part.rows) if part.rows is not None else list(range(part.first_row, part.first_row + len(table)))
    )
    ids, texts, payloads = (table[name].to_pylist() for name in names)
    return RawRows(numbers, [checked_id(value) for value in ids], texts, payloads, extra, {})


def _read_text(manifest: Manifest, part: Slice) -> RawRows:
    file = manifest.files[part.file]
    wanted = set(part.rows) if part.rows is not None else None
    numbers, rows = [], []
    with open_file(file.uri) as stream:
        for number, record in enumerate(
            text_records(file, stream, part.begin, part.end), start=part.first_row
        ):
            if wanted is not None and number not in wanted:
                continue
            if isinstance(record.value, RowError):
                raise ManifestError(
                    f"{source_of(manifest, part.file, number)} has changed since the run began"
                )
            numbers.append(number)
            rows.append(record.value)
    extra: list[pa.Array] = []
    problems: dict[int, RowError] = {}
    for field in manifest.extra:
        array, misfits = convert(field.name, [row.get(field.name) for row in rows], field.type)
        extra.append(array)
        problems = misfits | problems
    payload = manifest.payload.column
    return RawRows(
        numbers,
        [checked_id(row.get("id")) for row in rows],
        # CSV knows no null: an empty field is a missing value.
        [row.get("text") if file.header is None else row["text"] or None for row in rows],
        [row.get(payload) if file.header is None else row[payload] or None for row in rows],
        extra,
        problems,
    )


def _table(manifest: Manifest, part: Slice, raw: RawRows) -> pa.Table:
    folder = manifest.files[part.file].folder
    errors = dict(raw.problems)
    texts: list[str | None] = []
    payloads: list[Any] = []
    for i, (text, payload) in enumerate(zip(raw.texts, raw.payloads, strict=True)):
        checked_text, checked_payload = None, None
        try:
            checked_text = _checked_text(text)
            checked_payload = _checked_payload(manifest.payload, payload, folder)
        except RowError as error:
            errors.setdefault(i, error)
        texts.append(checked_text)
        payloads.append(checked_payload)
    sources = [source_of(manifest, part.file, number) for number in raw.numbers]
    columns = [
        pa.array(raw.ids, ID.type),
        pa.array(texts, TEXT.type),
        pa.array(payloads, manifest.payload.field.type),
        pa.array(sources, SOURCE.type),
        error_array([error_record("read", errors[i]) if i in errors else None for i in range(len(raw.ids))]),
        *raw.extra,
    ]
    return pa.table(columns, schema=output_schema(manifest))


def _checked_text(text: Any) -> str:
    if text is None:
        raise RowError("MissingText", "text is null")
    if not isinstance(text, str):
        raise RowError("InvalidText", f"text must be a string, not {text!r:.80}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RowError("InvalidText", "text holds a lone surrogate, which is no Unicode text") from None
    return text


def _checked_payload(payload: Payload, value: Any, folder: str) -> Any:
    converted = payload.convert(value, folder)
    try:
        pa.array([converted], payload.field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise RowError("InvalidValue", f"column {payload.column!r}: {error}") from error
    return converted


def _single_array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
